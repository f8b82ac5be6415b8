//! What the cluster's servers tell of their encryption, on their Nodes.

use std::collections::BTreeMap;

use k3s_controllers::{ClusterView, Derived};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams};

use super::stage::State;

/// k3s' key of a server's state.
pub(super) const ANNOTATION: &str = "k3s.io/encryption-config-hash";
/// k3s' label of servers that have an API.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Each server's state, by the name of its Node; `None` for one that tells none.
pub(super) type Servers = BTreeMap<String, Option<String>>;

/// As they change.
pub(super) fn watched(view: &ClusterView) -> Derived<Servers> {
    view.nodes().derive(state_of, Clone::clone)
}

/// As they are at this moment.
pub(super) async fn listed(client: &Client) -> kube::Result<Servers> {
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&ListParams::default().labels(CONTROL_PLANE)).await?;
    Ok(nodes.iter().filter_map(|node| Some((node.name_any(), state_of(node)?))).collect())
}

/// Why not all of them are in `state`: a sentence about the first one that is not. `own` is the own server's, and has just come to it, or
/// is about to.
pub(super) fn disagreement(servers: &Servers, state: &State) -> Option<String> {
    let expected = state.to_string();
    let (name, told) = servers.iter().find(|(_, told)| told.as_deref() != Some(&*expected))?;
    Some(match told {
        Some(_) => format!(
            "hash does not match between the stored configuration and {name}: it loads it within a minute while it runs, or when it is started \
             again; delete its Node if the server is gone"
        ),
        None => format!("{name} tells no encryption configuration: start it with --secrets-encryption"),
    })
}

/// `None` for a node that is no server.
fn state_of<K: Resource>(node: &K) -> Option<Option<String>> {
    node.labels().contains_key(CONTROL_PLANE).then(|| node.annotations().get(ANNOTATION).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::{config::EncryptionConfig, stage::Stage};

    #[test]
    fn servers_agree_when_all_tell_the_same() {
        let state = State::of(Stage::Prepare, &EncryptionConfig::identity());
        let told = |told: &[Option<String>]| {
            let servers: Servers = ["one", "two"].into_iter().map(str::to_owned).zip(told.iter().cloned()).collect();
            disagreement(&servers, &state).unwrap_or_default()
        };
        assert_eq!(told(&[Some(state.to_string()), Some(state.to_string())]), "");
        let before = State { stage: Stage::Start, ..state.clone() };
        assert!(told(&[Some(state.to_string()), Some(before.to_string())]).contains("hash does not match between"));
        assert!(told(&[None, Some(state.to_string())]).starts_with("one tells no encryption configuration"));
        // A server without a node is alone with what it knows.
        assert_eq!(told(&[]), "");
    }
}
