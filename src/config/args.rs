//! Users' arguments for a component, and how they combine with our defaults.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// What a user passed with `--kube-apiserver-arg`, `--kubelet-arg` and their like, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComponentArgs(Vec<ComponentArg>);

/// One `name=value`, `name+=value` or `name-=value`, without leading dashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentArg {
    /// The component's flag, without dashes.
    pub name: String,
    /// What becomes of our default.
    pub merge: Merge,
    /// `true` where the user gave none.
    pub value: String,
}

/// How a user's value meets our default for the same flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// `name=value`: instead of the default.
    Replace,
    /// `name+=value`: after the default, as a second flag.
    Append,
    /// `name-=value`: before the default.
    Prepend,
}

/// A component argument that names no flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a component's argument is written name=value, with letters, digits, `-`, `_` and `.` in the name")]
pub struct InvalidComponentArg;

impl ComponentArgs {
    /// The component's command line over our `defaults` (flag without dashes → value), as k3s' `GetArgs` makes it:
    /// `--name=value` sorted by name, a repeated name in the order given.
    pub fn merge(&self, mut defaults: BTreeMap<String, String>) -> Vec<String> {
        let mut merged = BTreeMap::<String, Vec<String>>::new();
        for arg in &self.0 {
            let default = defaults.remove(&arg.name);
            let values = merged.entry(arg.name.clone()).or_default();
            match arg.merge {
                Merge::Replace => values.push(arg.value.clone()),
                Merge::Append => {
                    values.splice(0..0, default);
                    values.push(arg.value.clone());
                }
                Merge::Prepend => {
                    values.splice(0..0, std::iter::once(arg.value.clone()).chain(default));
                }
            }
        }
        merged.extend(defaults.into_iter().map(|(name, value)| (name, vec![value])));
        merged
            .into_iter()
            .flat_map(|(name, values)| values.into_iter().map(move |value| format!("--{name}={value}")))
            .collect()
    }

    /// Each of them, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &ComponentArg> {
        self.0.iter()
    }

    /// The value that the user's last argument for `name` (without dashes) holds.
    pub fn value_of(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|arg| arg.name == name).map(|arg| arg.value.as_str())
    }
}

impl FromIterator<ComponentArg> for ComponentArgs {
    fn from_iter<I: IntoIterator<Item = ComponentArg>>(args: I) -> Self {
        Self(args.into_iter().collect())
    }
}

impl fmt::Display for ComponentArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let merge = match self.merge {
            Merge::Replace => "",
            Merge::Append => "+",
            Merge::Prepend => "-",
        };
        write!(f, "{}{merge}={}", self.name, self.value)
    }
}

impl FromStr for ComponentArg {
    type Err = InvalidComponentArg;

    /// Leading dashes are tolerated: `--v=2` is `v=2`.
    fn from_str(text: &str) -> Result<Self, InvalidComponentArg> {
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        let name = name.trim_start_matches('-');
        let (name, merge) = match name.as_bytes().last() {
            Some(b'+') => (&name[..name.len() - 1], Merge::Append),
            Some(b'-') => (&name[..name.len() - 1], Merge::Prepend),
            _ => (name, Merge::Replace),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return Err(InvalidComponentArg);
        }
        Ok(Self { name: name.to_owned(), merge, value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(user: &[&str], defaults: &[(&str, &str)]) -> Vec<String> {
        let args: ComponentArgs = user.iter().map(|arg| arg.parse().expect("a valid argument")).collect();
        args.merge(defaults.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_value_replaces_the_default() {
        assert_eq!(merged(&["v=4"], &[("v", "2"), ("profiling", "false")]), ["--profiling=false", "--v=4"]);
    }

    #[test]
    fn plus_appends_and_minus_prepends() {
        let defaults = [("authorization-mode", "Node")];
        assert_eq!(
            merged(&["authorization-mode+=RBAC"], &defaults),
            ["--authorization-mode=Node", "--authorization-mode=RBAC"]
        );
        assert_eq!(
            merged(&["authorization-mode-=RBAC"], &defaults),
            ["--authorization-mode=RBAC", "--authorization-mode=Node"]
        );
    }

    #[test]
    fn repeated_names_become_repeated_flags_in_the_order_given() {
        let defaults = [("cors", "0")];
        assert_eq!(merged(&["cors=1", "cors=2"], &defaults), ["--cors=1", "--cors=2"]);
        assert_eq!(merged(&["cors+=1", "cors=2"], &defaults), ["--cors=0", "--cors=1", "--cors=2"]);
        assert_eq!(merged(&["cors=1", "cors+=2"], &defaults), ["--cors=1", "--cors=2"]);
        assert_eq!(merged(&["cors+=1", "cors-=2"], &defaults), ["--cors=2", "--cors=0", "--cors=1"]);
    }

    #[test]
    fn a_name_alone_means_true_and_dashes_are_tolerated() {
        assert_eq!(merged(&["--anonymous-auth"], &[("anonymous-auth", "false")]), ["--anonymous-auth=true"]);
    }

    #[test]
    fn values_may_hold_anything() {
        assert_eq!(merged(&["feature-gates=A=true,B=false"], &[]), ["--feature-gates=A=true,B=false"]);
        assert_eq!(merged(&["v="], &[("v", "2")]), ["--v="]);
    }

    #[test]
    fn the_last_value_counts() {
        let args: ComponentArgs = ["v=1", "v=3"].iter().map(|arg| arg.parse().expect("a valid argument")).collect();
        assert_eq!(args.value_of("v"), Some("3"));
        assert_eq!(args.value_of("profiling"), None);
    }

    #[test]
    fn an_argument_without_a_name_is_refused() {
        for text in ["", "--", "=1", "a b=1", "+=1"] {
            assert_eq!(text.parse::<ComponentArg>(), Err(InvalidComponentArg), "{text:?}");
        }
    }
}
