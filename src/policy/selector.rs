//! Which labels a policy asks for.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::InvalidPolicy;

/// An object's labels.
pub type Labels = BTreeMap<String, String>;

/// Requirements on labels, of which all have to be met; without any, everything is selected. Equal however they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(BTreeSet<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Selector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met_by(labels))
    }
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = InvalidPolicy;

    fn try_from(selector: &LabelSelector) -> Result<Self, InvalidPolicy> {
        let labels = selector.match_labels.iter().flatten();
        let labels = labels.map(|(key, value)| Ok(Requirement::In(key.clone(), [value.clone()].into())));
        let expressions = selector.match_expressions.iter().flatten().map(Requirement::try_from);
        Ok(Self(labels.chain(expressions).collect::<Result<_, _>>()?))
    }
}

impl Requirement {
    fn is_met_by(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // An object without the label has none of the values: as in Kubernetes.
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl TryFrom<&LabelSelectorRequirement> for Requirement {
    type Error = InvalidPolicy;

    fn try_from(requirement: &LabelSelectorRequirement) -> Result<Self, InvalidPolicy> {
        let key = requirement.key.clone();
        let values = requirement.values.iter().flatten().cloned().collect();
        match requirement.operator.as_str() {
            "In" => Ok(Self::In(key, values)),
            "NotIn" => Ok(Self::NotIn(key, values)),
            "Exists" => Ok(Self::Exists(key)),
            "DoesNotExist" => Ok(Self::DoesNotExist(key)),
            other => Err(InvalidPolicy::Operator(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selects(selector: Value, labels: &[(&str, &str)]) -> bool {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Selector::try_from(&selector).unwrap().matches(&labels)
    }

    #[test]
    fn labels_are_asked_for_as_kubernetes_does() {
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]});
        let (web, db, none): ([_; 1], [_; 1], [_; 0]) = ([("tier", "web")], [("tier", "db")], []);
        for (selector, expected) in [
            (json!({}), [true, true, true]),
            (json!({"matchLabels": {"tier": "web"}}), [true, false, false]),
            (expression("In", &["web", "cache"]), [true, false, false]),
            (expression("NotIn", &["web"]), [false, true, true]),
            (expression("Exists", &[]), [true, true, false]),
            (expression("DoesNotExist", &[]), [false, false, true]),
        ] {
            let selected =
                [selects(selector.clone(), &web), selects(selector.clone(), &db), selects(selector.clone(), &none)];
            assert_eq!(selected, expected, "{selector}");
        }
        let both = json!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]});
        assert!(selects(both.clone(), &[("app", "a"), ("tier", "web")]));
        assert!(!selects(both, &[("app", "a")]));
    }

    #[test]
    fn the_same_in_other_words_is_the_same() {
        let parse = |selector: Value| Selector::try_from(&serde_json::from_value(selector).unwrap()).unwrap();
        let words = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]});
        assert_eq!(parse(json!({"matchLabels": {"a": "1"}})), parse(words));
    }

    #[test]
    fn an_operator_of_the_future_is_named() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Near", "values": []}]});
        let error = Selector::try_from(&serde_json::from_value(selector).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "the operator `Near` of a label selector is not known");
    }
}
