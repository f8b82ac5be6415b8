//! Manifest files as objects.

use kube::core::DynamicObject;
use serde_json::Value;

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    /// It is not YAML.
    #[error("it is not YAML: {0}")]
    Yaml(String),
    /// A document is not a Kubernetes object.
    #[error("document {number} is no Kubernetes object: {reason}")]
    Object {
        /// Counted from 1, empty documents left out.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// The objects of a manifest in their order; lists are flattened and empty documents left out.
pub(super) fn parse(text: &str) -> Result<Vec<DynamicObject>, ManifestError> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| ManifestError::Yaml(error.to_string()))?;
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let number = index + 1;
        let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
        match document {
            Value::Object(mut list) if is_list && list.contains_key("items") => {
                let Some(Value::Array(items)) = list.remove("items") else {
                    return Err(ManifestError::Object { number, reason: "its items are no list".into() });
                };
                for item in items {
                    objects.push(object(item, number)?);
                }
            }
            document => objects.push(object(document, number)?),
        }
    }
    Ok(objects)
}

fn object(document: Value, number: usize) -> Result<DynamicObject, ManifestError> {
    let wrong = |reason: String| ManifestError::Object { number, reason };
    let object: DynamicObject = serde_json::from_value(document).map_err(|error| wrong(error.to_string()))?;
    if object.types.is_none() {
        return Err(wrong("it has no apiVersion and kind".into()));
    }
    if object.metadata.name.as_deref().is_none_or(str::is_empty) {
        return Err(wrong("it has no metadata.name".into()));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse(text).unwrap().into_iter().map(|object| object.metadata.name.unwrap()).collect()
    }

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "\
# a comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: one}
---
---
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: two}}
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: three}}
";
        assert_eq!(names(text), ["one", "two", "three"]);
        assert!(names("# nothing\n").is_empty());
    }

    #[test]
    fn what_is_no_object_says_so() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        assert!(refused("a: [").starts_with("it is not YAML"));
        assert_eq!(refused("metadata: {name: a}"), "document 1 is no Kubernetes object: it has no apiVersion and kind");
        assert_eq!(
            refused("{apiVersion: v1, kind: Secret}"),
            "document 1 is no Kubernetes object: it has no metadata.name"
        );
    }
}
