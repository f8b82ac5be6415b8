//! A node's taints after its configuration has changed. What the configuration before had and this one has not goes, what is new is set,
//! and what administrators and controllers did stays.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tracing::{debug, info, warn};

use crate::backoff::{self, Failure};

/// What has changed of a node's taints in its configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaintChange {
    gone: Vec<Taint>,
    set: Vec<Taint>,
}

impl TaintChange {
    /// Between the taints that a node was configured with `before` and has `now`.
    pub fn between(before: &[Taint], now: &[Taint]) -> Self {
        let gone = before.iter().filter(|taint| !now.iter().any(|other| is_same(taint, other)));
        Self {
            gone: gone.cloned().collect(),
            set: now.iter().filter(|taint| !before.contains(taint)).cloned().collect(),
        }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.set.is_empty()
    }

    /// Makes the node called `name` agree, however long the API takes. `client` is an administrator's.
    pub async fn apply(&self, client: Client, name: &str) {
        let nodes: Api<Node> = Api::all(client);
        let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
        let mut backoff = backoff::of_api();
        loop {
            let attempt = async {
                // Where it is not there, kubelet registers it with them.
                let Some(node) = nodes.get_opt(name).await? else { return Ok(false) };
                let present = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
                let Some(taints) = self.applied_to(&present) else { return Ok(false) };
                // Others write taints, too: nobody's is lost.
                let version = node.metadata.resource_version;
                let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}));
                nodes.patch(name, &params, &patch).await.map(|_| true)
            };
            match attempt.await {
                Ok(written) => {
                    if written {
                        info!(node = name, "Set this node's taints.");
                    }
                    return;
                }
                Err(error) => match Failure::of(&error) {
                    Failure::Refused => {
                        return warn!(node = name, %error, "The API refuses this node's taints: correct --node-taint.");
                    }
                    Failure::Passing | Failure::Outdated => {
                        debug!(node = name, %error, "This node's taints could not be set; trying again.");
                    }
                },
            }
            backoff.wait().await;
        }
    }

    /// What a node with the taints `present` has afterwards, if that is something else.
    fn applied_to(&self, present: &[Taint]) -> Option<Vec<Taint>> {
        let changes = |taint: &&Taint| !self.gone.iter().chain(&self.set).any(|other| is_same(taint, other));
        let kept = present.iter().filter(changes).cloned();
        // One that is there as it should be keeps its time.
        let set = self.set.iter().map(|taint| {
            let same = |other: &&Taint| is_same(taint, other) && other.value == taint.value;
            present.iter().find(same).unwrap_or(taint).clone()
        });
        let taints: Vec<_> = kept.chain(set).collect();
        let differs = taints.len() != present.len() || taints.iter().any(|taint| !present.contains(taint));
        differs.then_some(taints)
    }
}

/// A node has one taint of a key and an effect.
fn is_same(taint: &Taint, other: &Taint) -> bool {
    (&taint.key, &taint.effect) == (&other.key, &other.effect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;

    fn taint(text: &str) -> Taint {
        let (rest, effect) = text.split_once(':').unwrap();
        let (key, value) = rest.split_once('=').unwrap();
        Taint { key: key.into(), value: Some(value.into()), effect: effect.into(), time_added: None }
    }

    fn taints(texts: &[&str]) -> Vec<Taint> {
        texts.iter().map(|text| taint(text)).collect()
    }

    fn after(before: &[&str], now: &[&str], present: &[&str]) -> Option<Vec<String>> {
        let told = |taint: Taint| format!("{}={}:{}", taint.key, taint.value.unwrap_or_default(), taint.effect);
        let change = TaintChange::between(&taints(before), &taints(now));
        change.applied_to(&taints(present)).map(|taints| taints.into_iter().map(told).collect())
    }

    #[test]
    fn taints_of_others_stay_and_ones_own_follow_the_configuration() {
        let (one, two, other) = ("a=1:NoSchedule", "a=2:NoSchedule", "other=x:NoExecute");
        for (case, before, now, present, expected) in [
            ("added", vec![], vec![one], vec![other], Some(vec![other, one])),
            ("changed", vec![one], vec![two], vec![one, other], Some(vec![other, two])),
            ("removed", vec![one], vec![], vec![one, other], Some(vec![other])),
            ("another effect", vec![one], vec!["a=1:NoExecute"], vec![one], Some(vec!["a=1:NoExecute"])),
            ("there already", vec![], vec![one], vec![one, other], None),
            ("gone already", vec![one], vec![], vec![other], None),
            ("taken off by an administrator", vec![one], vec![one], vec![], None),
        ] {
            let expected = expected.map(|taints| taints.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(after(&before, &now, &present), expected, "{case}");
        }
        assert!(TaintChange::between(&taints(&[one]), &taints(&[one])).is_empty());
    }

    #[tokio::test]
    async fn the_node_in_the_api_agrees_afterwards() {
        let api = FakeApi::new();
        api.put(
            "/api/v1/nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
                "spec": {"taints": [{"key": "old", "value": "", "effect": "NoSchedule"}]}}),
        );
        let change = TaintChange::between(&taints(&["old=:NoSchedule"]), &taints(&["new=1:NoExecute"]));
        change.apply(api.client(), "a").await;
        change.apply(api.client(), "not-registered-yet").await;
        let taints = api.get("/api/v1/nodes/a").unwrap()["spec"]["taints"].clone();
        assert_eq!(taints, json!([{"key": "new", "value": "1", "effect": "NoExecute"}]));
    }
}
