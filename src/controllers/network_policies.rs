//! What network policies are made of, as a node reads it.

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use ipnet::IpNet;
use k3s_policy::{Event, InvalidPolicy, ObjectKey, Pod, Policy};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod as PodObject},
    networking::v1::NetworkPolicy,
};
use kube::{
    Resource, ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};

use crate::{
    ClusterView,
    view::{Object, Reflector},
};

/// Changes that are taken at once: as many as one transaction of a packet filter should make.
const AT_ONCE: usize = 4096;

/// What has become of an object.
#[derive(Debug, Clone)]
pub enum PolicyChange {
    /// It is understood.
    Event(Event),
    /// A policy that is not, and so is not enforced.
    Invalid(ObjectKey, InvalidPolicy),
}

/// The policies of a cluster. Pods and namespaces are watched only once there is one: without policies nobody needs them.
pub struct PolicyObjects {
    view: ClusterView,
    node: String,
    policies: Reflector<NetworkPolicy>,
}

impl ClusterView {
    /// The policies, for the node called `node`.
    pub fn policy_objects(&self, node: &str) -> PolicyObjects {
        PolicyObjects { view: self.clone(), node: node.to_owned(), policies: self.network_policies() }
    }
}

impl PolicyObjects {
    /// Whether there are any policies, once that is known.
    pub async fn any(&self) -> bool {
        self.policies.listed().await;
        !self.policies.store().is_empty()
    }

    /// Waits until there are.
    pub async fn until_any(&self) {
        let mut touched = std::pin::pin!(self.policies.touched());
        while !self.any().await {
            touched.next().await;
        }
    }

    /// Everything, once all of it is known, and from then on what changes; several changes at once where they come so.
    pub async fn follow(&self) -> (Vec<PolicyChange>, BoxStream<'static, Vec<PolicyChange>>) {
        let (pods, namespaces) = (self.view.pods(), self.view.namespaces());
        let mut ranges = self.view.pod_cidrs(&self.node);
        let first = ranges.changed().await;
        let changes = stream::select_all([
            changes(&self.policies, policy),
            changes(&pods, pod),
            changes(&namespaces, namespace),
            stream::unfold(ranges, async |mut ranges| Some((range(ranges.changed().await), ranges))).boxed(),
        ]);
        tokio::join!(pods.listed(), namespaces.listed(), self.policies.listed());
        let mut all = vec![range(first)];
        all.extend(each(&namespaces, namespace));
        all.extend(each(&pods, pod));
        all.extend(each(&self.policies, policy));
        (all, changes.ready_chunks(AT_ONCE).boxed())
    }
}

type Read<K> = fn(&ObjectRef<K>, Option<&K>) -> PolicyChange;

fn each<K>(reflector: &Reflector<K>, read: Read<K>) -> Vec<PolicyChange>
where
    K: Object<DynamicType = ()>,
{
    reflector.store().state().iter().map(|object| read(&ObjectRef::from_obj(&**object), Some(object))).collect()
}

fn changes<K>(reflector: &Reflector<K>, read: Read<K>) -> BoxStream<'static, PolicyChange>
where
    K: Object<DynamicType = ()>,
{
    let store: Store<K> = reflector.store();
    reflector.touched().map(move |reference| read(&reference, store.get(&reference).as_deref())).boxed()
}

fn policy(reference: &ObjectRef<NetworkPolicy>, object: Option<&NetworkPolicy>) -> PolicyChange {
    let key = key(reference);
    match object.map(|object| Policy::of(&key.namespace, object)).transpose() {
        Ok(policy) => PolicyChange::Event(Event::Policy(key, policy)),
        Err(error) => PolicyChange::Invalid(key, error),
    }
}

fn pod(reference: &ObjectRef<PodObject>, object: Option<&PodObject>) -> PolicyChange {
    PolicyChange::Event(Event::Pod(key(reference), object.and_then(Pod::of)))
}

fn namespace(reference: &ObjectRef<Namespace>, object: Option<&Namespace>) -> PolicyChange {
    PolicyChange::Event(Event::Namespace(reference.name.clone(), object.map(|object| object.labels().clone())))
}

fn range(ranges: Vec<IpNet>) -> PolicyChange {
    PolicyChange::Event(Event::Ranges(ranges))
}

fn key<K: Resource<DynamicType = ()>>(reference: &ObjectRef<K>) -> ObjectKey {
    ObjectKey::new(reference.namespace.clone().unwrap_or_default(), reference.name.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake_api::FakeApi;

    fn names(changes: &[PolicyChange]) -> Vec<String> {
        let mut names: Vec<_> = changes
            .iter()
            .map(|change| match change {
                PolicyChange::Event(Event::Policy(key, policy)) => format!("policy {key} {}", policy.is_some()),
                PolicyChange::Event(Event::Pod(key, pod)) => format!("pod {key} {}", pod.is_some()),
                PolicyChange::Event(Event::Namespace(name, labels)) => format!("namespace {name} {}", labels.is_some()),
                PolicyChange::Event(Event::Ranges(ranges)) => format!("ranges {ranges:?}"),
                PolicyChange::Event(Event::Attached(key, _)) => format!("attached {key}"),
                PolicyChange::Invalid(key, error) => format!("invalid {key}: {error}"),
            })
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn pods_are_watched_once_there_is_a_policy() {
        let api = FakeApi::new();
        let node = json!({"metadata": {"name": "edge-1"}, "spec": {"podCIDR": "10.42.0.0/24"}});
        api.put("/api/v1/nodes", node);
        api.put("/api/v1/namespaces", json!({"metadata": {"name": "default"}}));
        let pod = |name: &str| {
            let spec = json!({"nodeName": "edge-1", "containers": []});
            json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})
        };
        api.put("/api/v1/namespaces/default/pods", pod("a"));
        let view = ClusterView::of_server(api.client());
        view.begin();
        let objects = view.policy_objects("edge-1");
        assert!(!objects.any().await);
        assert_eq!((api.watches("pods"), api.watches("namespaces")), (0, 0));

        let policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
        let policy = |name: &str, spec| json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        api.put(policies, policy("p", json!({})));
        objects.until_any().await;
        let (all, mut changes) = objects.follow().await;
        assert_eq!(
            names(&all),
            ["namespace default true", "pod default/a true", "policy default/p true", "ranges [10.42.0.0/24]"]
        );
        api.put("/api/v1/namespaces/default/pods", pod("b"));
        api.put(policies, policy("q", json!({"policyTypes": ["Sideways"]})));
        api.delete(&format!("{policies}/p"));
        let mut seen = Vec::new();
        let expected = [
            "invalid default/q: the policy type `Sideways` is not known",
            "pod default/b true",
            "policy default/p false",
        ];
        while !expected.iter().all(|name| seen.iter().any(|seen| seen == name)) {
            seen.extend(names(&changes.next().await.unwrap()));
        }
        assert_eq!((api.watches("pods"), api.watches("namespaces"), api.watches("networkpolicies")), (1, 1, 1));
        view.close().await;
    }
}
