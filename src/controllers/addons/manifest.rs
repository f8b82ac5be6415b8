//! Manifest files as objects.

use kube::core::DynamicObject;
use serde_json::Value;
use serde_saphyr::{Error as YamlError, Options, options};

/// Objects of one file: far more than anybody keeps in one, and few enough for the memory of a small device.
const MOST: usize = 10_000;
/// Mappings and sequences within each other, each of which takes some of a thread's stack. The most nested definitions of resources that
/// are around have some forty.
const DEEPEST: usize = 64;
/// Mappings, sequences and scalars of one document, whose text is bounded too.
const MOST_NODES: usize = 1_000_000;

/// An object, and where in its file it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ManifestObject {
    pub(super) object: DynamicObject,
    pub(super) place: Place,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Counted from 1, empty documents left out.
    pub(super) document: usize,
    /// Counted from 1.
    pub(super) line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "document {}, line {}", self.document, self.line)
    }
}

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ManifestError {
    /// Its bytes are no text.
    #[error("it is not UTF-8: save it as UTF-8")]
    Encoding,
    /// It has too many objects.
    #[error("it has more than {MOST} objects: divide it into several files")]
    TooMany,
    /// A document is not what it has to be.
    #[error("{place}: {reason}")]
    Document {
        /// Which one, and where in it.
        place: Place,
        /// What is wrong with it.
        reason: String,
    },
}

/// The objects of a manifest in their order; lists are flattened, also lists of lists, and empty documents left out.
///
/// YAML is read as Kubernetes' own tools read it: numbers that begin with a zero are octal, the last of several equal keys counts, and
/// aliases are expanded, up to a limit.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<ManifestObject>, ManifestError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Encoding)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut objects = Vec::new();
    let documents = documents(text).filter(|(_, document)| !is_empty(document));
    for (index, (line, document)) in documents.enumerate() {
        let place = Place { document: index + 1, line: line + first_content(document) };
        for value in values(document, line, place)? {
            flatten(value, place, &mut objects)?;
            if objects.len() > MOST {
                return Err(ManifestError::TooMany);
            }
        }
    }
    Ok(objects)
}

/// Each document, with the number of the line before it.
fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut rest = Some((0, text));
    std::iter::from_fn(move || {
        let (line, text) = rest.take()?;
        let mut position = 0;
        for (number, content) in (line..).zip(text.split_inclusive('\n')) {
            let mark = content.trim_end();
            // What stands behind a mark is a comment, or the document's begin.
            let behind =
                content.strip_prefix("---").filter(|behind| behind.trim_end() == "" || behind.starts_with([' ', '\t']));
            if let Some(behind) = behind {
                let has_content = mark != "---" && !behind.trim_start().starts_with('#');
                let next = if has_content { position + 3 } else { position + content.len() };
                rest = Some((if has_content { number } else { number + 1 }, &text[next..]));
                return Some((line, &text[..position]));
            }
            position += content.len();
        }
        Some((line, text))
    })
}

fn is_empty(document: &str) -> bool {
    first_content(document) == 0
}

/// The first line that says something, counted from 1; 0 if there is none.
fn first_content(document: &str) -> u64 {
    let says = |line: &str| {
        !matches!(line.trim().trim_start_matches('\u{feff}').chars().next(), None | Some('#')) && line.trim() != "..."
    };
    (1..).zip(document.lines()).find(|(_, line)| says(line)).map_or(0, |(number, _)| number)
}

fn values(document: &str, line: u64, place: Place) -> Result<Vec<Value>, ManifestError> {
    let wrong = |line: u64, reason: String| ManifestError::Document { place: Place { line, ..place }, reason };
    // JSON is YAML, but for tabs and for several values one after the other.
    if document.trim_start().starts_with('{')
        && let Ok(values) = serde_json::Deserializer::from_str(document).into_iter().collect()
    {
        return Ok(values);
    }
    let document = document.trim_start_matches('\u{feff}');
    let value = serde_saphyr::from_str_with_options::<Value>(document, yaml_options()).map_err(|error| {
        let line = error.location().map_or(place.line, |location| line + location.line());
        wrong(line, reason(&error))
    })?;
    Ok(vec![value])
}

fn yaml_options() -> Options {
    let mut options = options! {
        budget: serde_saphyr::budget! {
            max_depth: DEEPEST,
            flow_nesting_limit: DEEPEST,
            max_nodes: MOST_NODES,
            max_events: 3 * MOST_NODES,
        },
        // There may be any number of them between two keys.
        emit_comments: false,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    options.alias_limits.max_total_replayed_events = 100_000;
    options
}

/// In one line, without the place, which is told by us.
fn reason(error: &YamlError) -> String {
    let text = error.to_string();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or(first);
    let first = first.strip_prefix("error: ").unwrap_or(first);
    format!("it is not YAML: {}", first.trim_end_matches([':', ',']))
}

fn flatten(value: Value, place: Place, objects: &mut Vec<ManifestObject>) -> Result<(), ManifestError> {
    let is_list = value["items"].is_array() && value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match value {
        Value::Object(mut list) if is_list => {
            let Some(Value::Array(items)) = list.remove("items") else { return Ok(()) };
            items.into_iter().try_for_each(|item| flatten(item, place, objects))
        }
        value => {
            objects.push(ManifestObject { object: object(value, place)?, place });
            Ok(())
        }
    }
}

fn object(value: Value, place: Place) -> Result<DynamicObject, ManifestError> {
    let wrong = |reason: String| ManifestError::Document { place, reason };
    let object: DynamicObject =
        serde_json::from_value(value).map_err(|error| wrong(format!("it is no Kubernetes object: {error}")))?;
    let Some(types) = &object.types else { return Err(wrong("it has no apiVersion and kind".into())) };
    if types.kind.is_empty() || types.api_version.is_empty() {
        return Err(wrong("it has no apiVersion and kind".into()));
    }
    if object.metadata.name.as_deref().is_none_or(str::is_empty) {
        return Err(wrong(format!("the {} has no metadata.name", types.kind)));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: impl AsRef<[u8]>) -> Vec<String> {
        parse(text.as_ref()).unwrap().into_iter().map(|found| found.object.metadata.name.unwrap()).collect()
    }

    fn refused(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    const ONE: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: one}}";
    const TWO: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: two\n";

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
  - apiVersion: v1
    kind: ConfigMapList
    items:
    - {apiVersion: v1, kind: ConfigMap, metadata: {name: three}}
";
        assert_eq!(names(text), ["one", "two", "three"]);
    }

    #[test]
    fn files_as_editors_and_tools_leave_them() {
        for (what, text) in [
            ("a mark at the end", format!("{ONE}\n---\n{TWO}---\n")),
            ("several at the end", format!("{ONE}\n---\n{TWO}---\n---\n# the end\n")),
            ("a mark at the begin, with a comment", format!("--- # first\n{ONE}\n--- # second\n{TWO}")),
            ("CRLF", format!("---\r\n{ONE}\r\n---\r\n{}", TWO.replace('\n', "\r\n"))),
            ("a BOM", format!("\u{feff}{ONE}\n---\n{TWO}")),
            ("a BOM before each document", format!("\u{feff}{ONE}\n---\n\u{feff}{TWO}")),
            ("the end of a document", format!("{ONE}\n...\n---\n{TWO}...\n")),
            ("content behind a mark", format!("--- {ONE}\n---\n{TWO}")),
            ("no end of the last line", format!("{ONE}\n---\n{}", TWO.trim_end())),
        ] {
            assert_eq!(names(text), ["one", "two"], "{what}");
        }
        for empty in ["", "\n\n", "# nothing\n", "---\n", "---\n# nothing\n---\n", "\u{feff}", "\u{feff}# nothing"] {
            assert_eq!(names(empty), [""; 0], "{empty:?}");
        }
    }

    #[test]
    fn json_is_read_with_tabs_and_one_after_the_other() {
        let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"one\"}\n}\n";
        assert_eq!(names(json), ["one"]);
        assert_eq!(names(format!("{json}{}", json.replace("one", "two"))), ["one", "two"]);
    }

    #[test]
    fn values_are_those_that_kubectl_reads() {
        let text = "\
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {a: 'yes', b: '0644'}}
spec:
  defaultMode: 0644
  flag: yes
  text: |
    ---
    no mark
  twice: 1
  twice: 2
";
        let found = parse(text.as_bytes()).unwrap().remove(0).object;
        let spec = &found.data["spec"];
        assert_eq!((&spec["defaultMode"], &spec["flag"], &spec["twice"]), (&420.into(), &true.into(), &2.into()));
        assert_eq!(spec["text"], "---\nno mark\n");
        assert_eq!(found.metadata.annotations.unwrap()["b"], "0644");
    }

    #[test]
    fn what_is_no_object_says_where_and_why() {
        let text = format!("# first\n{ONE}\n---\n\n# second\napiVersion: v1\nkind: Secret\n");
        assert_eq!(refused(&text), "document 2, line 6: the Secret has no metadata.name");
        assert_eq!(refused("metadata: {name: a}"), "document 1, line 1: it has no apiVersion and kind");
        let broken = format!("{ONE}\n---\n{TWO}data:\n  a: [1\n  b: 2\n");
        let error = refused(&broken);
        assert!(error.starts_with("document 2, line ") && error.contains("it is not YAML: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(
            refused("just text"),
            "document 1, line 1: it is no Kubernetes object: invalid type: string \"just text\", expected struct DynamicObject"
        );
        assert_eq!(parse(b"\xff\xfea\0"), Err(ManifestError::Encoding));
    }

    #[test]
    fn what_definitions_and_exports_are_like_is_read() {
        let nested = |open: &str, close: &str, depth| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        let file = |field: &str| format!("apiVersion: v1\nkind: A\nmetadata: {{name: a}}\n{field}");
        let blocks: String = (0..DEEPEST - 2).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        for (what, field) in [
            ("many comments", format!("spec:\n{}  a: 1\n  b:\n{0}  - 1\n{0}  - 2\n", "  # like this\n".repeat(500))),
            ("nested as deeply as definitions", blocks),
            ("nested as in JSON", format!("spec: {}\n", nested("{a: [", "]}", DEEPEST / 2 - 1))),
            ("many items", format!("items:\n{}", "- {a: 1}\n".repeat(100_000))),
        ] {
            assert_eq!(names(file(&field)), ["a"], "{what}");
        }
        for (open, close) in [("[", "]"), ("{a: ", "}")] {
            for depth in [DEEPEST + 1, 100_000] {
                let error = refused(&file(&format!("spec: {}\n", nested(open, close, depth))));
                assert!(error.starts_with("document 1, line 4: it is not YAML: "), "{error}");
            }
        }
        let blocks: String = (0..3000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        assert!(refused(&file(&blocks)).contains("it is not YAML"));
    }

    #[test]
    fn a_file_of_many_documents_is_read_in_time_and_one_of_too_many_is_refused() {
        let text = format!("{TWO}---\n").repeat(MOST);
        assert_eq!(names(&text).len(), MOST);
        assert_eq!(refused(&format!("{text}{TWO}")), "it has more than 10000 objects: divide it into several files");
        let broken = refused(&format!("{}{TWO}a: [", text.replace("two", "one").split_at(text.len() / 2).0));
        assert!(broken.starts_with("document 5001, line 250"), "{broken}");
    }

    #[test]
    fn aliases_of_a_long_text_do_not_fill_the_memory() {
        let anchors: String = (0..2000).map(|number| format!("a{number}: &a{number} x\n")).collect();
        let aliases = "- *long\n".repeat(10_000);
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\n{anchors}long: &long {}\nb:\n{aliases}",
            "x".repeat(1 << 20)
        );
        assert!(refused(&text).contains("it is not YAML"));
    }

    #[test]
    fn aliases_do_not_unpack_without_end() {
        let mut text = String::from("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\na0: &a0 [x, x]\n");
        for level in 1..30 {
            text += &format!("a{level}: &a{level} [*a{}, *a{0}]\n", level - 1);
        }
        assert!(refused(&text).contains("it is not YAML"));
    }
}
