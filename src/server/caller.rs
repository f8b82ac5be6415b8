//! Who asks, as far as it matters for what may be asked.

use std::collections::BTreeSet;

/// Somebody whose credentials were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The user's name.
    pub(crate) user: String,
    /// Those of the user's groups that open a route.
    pub(crate) groups: BTreeSet<Group>,
}

/// A group that opens routes. No other group matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// Servers, by the server token.
    Server,
    /// Agents, by the agent token.
    Agent,
    /// Nodes that have joined, by their certificate.
    Nodes,
    /// Agents, by a bootstrap token.
    Bootstrappers,
    /// kube-apiserver and administrators, by their certificates.
    Masters,
}

/// Before the name of a node, in the name of its user.
const NODE: &str = "system:node:";

impl Group {
    const ALL: [Self; 5] = [Self::Server, Self::Agent, Self::Nodes, Self::Bootstrappers, Self::Masters];

    /// Its name in certificates and `cred/passwd`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "k3s:server",
            Self::Agent => "k3s:agent",
            Self::Nodes => "system:nodes",
            Self::Bootstrappers => "system:bootstrappers",
            Self::Masters => "system:masters",
        }
    }
}

impl Caller {
    /// A user with all its groups.
    pub(crate) fn new<'a>(user: impl Into<String>, groups: impl IntoIterator<Item = &'a String>) -> Self {
        let known = |name: &String| Group::ALL.into_iter().find(|group| group.name() == name);
        Self { user: user.into(), groups: groups.into_iter().filter_map(known).collect() }
    }

    /// The node that asks, if its own certificate says so, as Kubernetes reads it.
    pub(crate) fn node(&self) -> Option<&str> {
        self.user.strip_prefix(NODE).filter(|_| self.groups.contains(&Group::Nodes))
    }

    pub(crate) fn is_in(&self, groups: &[Group]) -> bool {
        groups.iter().any(|group| self.groups.contains(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_one_by_name_and_group() {
        let caller = |user: &str, group: &str| Caller::new(user, &[group.to_owned()]);
        assert_eq!(caller("system:node:edge-1", "system:nodes").node(), Some("edge-1"));
        assert_eq!(caller("system:node:edge-1", "system:masters").node(), None);
        assert_eq!(caller("edge-1", "system:nodes").node(), None);
    }
}
