//! How a node was started, for all to see: the annotations `k3s.io/node-args` and `k3s.io/node-env`. Secrets are masked as k3s
//! masks them.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
};

use crate::flags::{Flag, Role};

/// What stands where a secret stood.
pub const MASK: &str = "********";

/// A node's arguments and variables, without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The verb, then the files' settings and the command line, as [`node_args`] writes them.
    pub args: Vec<String>,
    /// The `K3S_*` variables.
    pub variables: BTreeMap<String, String>,
}

impl Provenance {
    pub(crate) fn new(
        role: Role,
        files: &[String],
        command_line: &[OsString],
        variables: &HashMap<OsString, OsString>,
    ) -> Self {
        let command_line = command_line.iter().map(|arg| arg.to_string_lossy().into_owned());
        let args: Vec<_> =
            std::iter::once(role.verb().to_owned()).chain(files.iter().cloned()).chain(command_line).collect();
        Self { args: node_args(&args), variables: node_variables(variables) }
    }
}

/// Arguments as k3s annotates them: `--flag=value` in two, the value of a secret flag masked.
pub fn node_args(args: &[impl AsRef<str>]) -> Vec<String> {
    let mut masked: Vec<String> = Vec::with_capacity(args.len());
    let mut secret_follows = false;
    for arg in args.iter().map(AsRef::as_ref) {
        if std::mem::take(&mut secret_follows) {
            masked.push(MASK.to_owned());
        } else if let Some((flag, value)) = arg.split_once('=').filter(|_| arg.starts_with('-')) {
            let value = if is_secret(flag) { MASK } else { value };
            masked.extend([flag.to_owned(), value.to_owned()]);
        } else if let Some(flag) =
            arg.get(..2).filter(|flag| arg.len() > 2 && !arg.starts_with("--") && is_secret(flag))
        {
            // `-tSECRET`
            masked.extend([flag.to_owned(), MASK.to_owned()]);
        } else {
            secret_follows = is_secret(arg);
            masked.push(arg.to_owned());
        }
    }
    masked
}

fn node_variables(variables: &HashMap<OsString, OsString>) -> BTreeMap<String, String> {
    let ours = variables.iter().filter_map(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with("K3S_"))?;
        let secret = flags().any(|flag| flag.secret && flag.variable == Some(name));
        Some((name.to_owned(), if secret { MASK.to_owned() } else { value.to_string_lossy().into_owned() }))
    });
    ours.collect()
}

fn is_secret(arg: &str) -> bool {
    let name = arg.trim_start_matches('-');
    arg.starts_with('-')
        && [Role::Server, Role::Agent].iter().any(|role| Flag::find(*role, name).is_some_and(|f| f.secret))
}

fn flags() -> impl Iterator<Item = &'static Flag> {
    Flag::of(Role::Server).chain(Flag::of(Role::Agent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_secret_flags_are_masked_however_they_are_written() {
        let args = ["server", "--token", "s3cret", "-t=s3cret", "-ts3cret", "--agent-token=s3cret", "--node-name=a=b"];
        assert_eq!(
            node_args(&args),
            ["server", "--token", MASK, "-t", MASK, "-t", MASK, "--agent-token", MASK, "--node-name", "a=b"]
        );
    }

    #[test]
    fn the_datastore_endpoint_may_hold_a_password() {
        assert_eq!(node_args(&["--datastore-endpoint", "postgres://user:pass@db/k"]), ["--datastore-endpoint", MASK]);
    }

    #[test]
    fn only_our_variables_are_told_and_secret_ones_are_masked() {
        let variables = [("K3S_TOKEN", "s3cret"), ("K3S_NODE_NAME", "a"), ("HOME", "/root")];
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        let told = node_variables(&variables);
        assert_eq!(told, [("K3S_NODE_NAME".into(), "a".into()), ("K3S_TOKEN".into(), MASK.into())].into());
    }
}
