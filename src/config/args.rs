//! Users' arguments for a component, and how they combine with our defaults.

use std::collections::BTreeMap;

/// What a user passed with `--kube-apiserver-arg` and its like, in the order given.
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
