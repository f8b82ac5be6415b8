//! What counts of Services, nodes and endpoint slices.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    core::v1::{Node, Service, Taint as NodeTaint, Toleration as PodToleration},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt as _;

use super::plan::{Family, Key, LbNode, LbService, Port, Taint, Toleration};

const ENABLED: &str = "svccontroller.k3s.cattle.io/enablelb";
const POOL: &str = "svccontroller.k3s.cattle.io/lbpool";
const TOLERATIONS: &str = "svccontroller.k3s.cattle.io/tolerations";
const SERVICE_OF_SLICE: &str = "kubernetes.io/service-name";

/// Taints that k3s' load balancer tolerates: those of control planes, and what every DaemonSet does. Whether a node is ready says more.
const TOLERATED: [&str; 9] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
    "CriticalAddonsOnly",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
];

/// `None` for a Service that is not ours to serve, or no longer.
pub(super) fn service(object: &Service) -> Option<LbService> {
    if !is_ours(object) || object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = object.spec.as_ref()?;
    let family = |name: &String| match name.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    };
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some(Port { number: u16::try_from(port.port).ok()?, protocol })
    });
    Some(LbService {
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
        families: spec.ip_families.iter().flatten().filter_map(family).collect(),
        ports: ports.collect(),
        local: spec.external_traffic_policy.as_deref() == Some("Local"),
        pool: object.labels().get(POOL).filter(|pool| !pool.is_empty()).cloned(),
        tolerations: object.annotations().get(TOLERATIONS).map_or(Ok(Vec::new()), |text| tolerations(text)),
    })
}

/// Whether a Service wants the load balancer of the cluster: one with a class wants another.
pub(super) fn is_ours(object: &Service) -> bool {
    let is_balanced = |spec: &k8s_openapi::api::core::v1::ServiceSpec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    };
    object.spec.as_ref().is_some_and(is_balanced)
}

pub(super) fn node(object: &Node) -> LbNode {
    let status = object.status.as_ref();
    let ready = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let addresses = |kind: &str| {
        let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
        let of_kind = addresses.filter(|address| address.type_ == kind);
        of_kind.filter_map(|address| address.address.parse().ok()).collect()
    };
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    LbNode {
        ready: object.metadata.deletion_timestamp.is_none()
            && ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        taints: taints.filter_map(taint).collect(),
        enabled: object.labels().get(ENABLED).cloned(),
        pool: object.labels().get(POOL).cloned(),
        external: addresses("ExternalIP"),
        internal: addresses("InternalIP"),
    }
}

/// The Service of a slice, and the nodes of its ready pods.
pub(super) fn endpoints(object: &EndpointSlice) -> Option<(Key, BTreeSet<String>)> {
    let service = object.labels().get(SERVICE_OF_SLICE)?;
    let ready = object.endpoints.iter().flatten().filter(|endpoint| {
        let is_ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
        let is_pod = endpoint.target_ref.as_ref().and_then(|target| target.kind.as_deref()) == Some("Pod");
        is_ready && is_pod
    });
    let nodes: BTreeSet<_> = ready.filter_map(|endpoint| endpoint.node_name.clone()).collect();
    Some((format!("{}/{service}", object.namespace()?), nodes)).filter(|(_, nodes)| !nodes.is_empty())
}

/// Those of all slices of a Service together.
pub(super) fn by_service(slices: &BTreeMap<String, (Key, BTreeSet<String>)>) -> BTreeMap<Key, BTreeSet<String>> {
    slices.values().fold(BTreeMap::new(), |mut services, (service, nodes)| {
        services.entry(service.clone()).or_insert_with(BTreeSet::new).extend(nodes.iter().cloned());
        services
    })
}

fn taint(taint: &NodeTaint) -> Option<Taint> {
    let counts = taint.effect != "PreferNoSchedule" && !TOLERATED.contains(&taint.key.as_str());
    counts.then(|| Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    })
}

/// A list of tolerations as YAML or JSON.
fn tolerations(text: &str) -> Result<Vec<Toleration>, String> {
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|_| "write a list of tolerations".to_owned())?;
    let given: Vec<PodToleration> =
        serde_json::from_value(value).map_err(|_| "write a list of tolerations".to_owned())?;
    let toleration = |given: PodToleration| {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (key, value, effect) = (filled(given.key), given.value.unwrap_or_default(), filled(given.effect));
        match filled(given.operator).as_deref() {
            Some("Exists") => Ok(Toleration { key, value: None, effect }),
            None | Some("Equal") if key.is_some() => Ok(Toleration { key, value: Some(value), effect }),
            None | Some("Equal") => Err("one without a key needs the operator Exists".to_owned()),
            Some(other) => Err(format!("`{other}` is not an operator; use Exists or Equal")),
        }
    };
    given.into_iter().map(toleration).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(metadata: serde_json::Value, spec: serde_json::Value) -> Option<LbService> {
        service(&serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    #[test]
    fn a_service_is_read() {
        let spec = json!({
            "type": "LoadBalancer", "ipFamilies": ["IPv6", "IPv4"], "externalTrafficPolicy": "Local",
            "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
        });
        let metadata = json!({
            "namespace": "d", "name": "s", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {POOL: "edge"},
            "annotations": {TOLERATIONS: "- key: own\n  operator: Exists\n- {key: b, value: c, effect: NoExecute}\n"},
        });
        let found = read(metadata, spec.clone()).unwrap();
        assert_eq!(found.created, "2026-01-02T03:04:05Z");
        assert_eq!(found.families, [Family::V6, Family::V4]);
        assert_eq!(found.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["53/UDP", "80/TCP"]);
        assert_eq!((found.local, found.pool.as_deref()), (true, Some("edge")));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found.tolerations.unwrap(),
            [
                Toleration { key: some("own"), value: None, effect: None },
                Toleration { key: some("b"), value: some("c"), effect: some("NoExecute") },
            ]
        );
        for text in ["own", "- {operator: Equal}", "- {key: a, operator: Like}"] {
            let metadata = json!({"annotations": {TOLERATIONS: text}});
            assert!(read(metadata, spec.clone()).unwrap().tolerations.is_err(), "{text}");
        }
    }

    #[test]
    fn other_services_are_others() {
        for spec in [
            json!({"type": "ClusterIP"}),
            json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/lb"}),
            json!({}),
        ] {
            assert_eq!(read(json!({}), spec), None);
        }
        let deleted = json!({"deletionTimestamp": "2026-01-02T03:04:05Z"});
        assert_eq!(read(deleted, json!({"type": "LoadBalancer"})), None);
    }

    #[test]
    fn a_node_is_read() {
        let object = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {ENABLED: "true", POOL: "edge"}},
            "spec": {"taints": [
                {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
                {"key": "soft", "effect": "PreferNoSchedule"},
                {"key": "own", "value": "x", "effect": "NoExecute"},
            ]},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [
                    {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": "203.0.113.1"},
                    {"type": "Hostname", "address": "a"},
                ],
            },
        }))
        .unwrap();
        assert_eq!(
            node(&object),
            LbNode {
                ready: true,
                taints: vec![Taint { key: "own".into(), value: "x".into(), effect: "NoExecute".into() }],
                enabled: Some("true".into()),
                pool: Some("edge".into()),
                external: vec!["203.0.113.1".parse().unwrap()],
                internal: vec!["10.0.0.1".parse().unwrap()],
            }
        );
        assert!(!node(&Node::default()).ready);
    }

    #[test]
    fn slices_tell_where_ready_pods_are() {
        let slice = |name: &str, endpoints: serde_json::Value| -> EndpointSlice {
            serde_json::from_value(json!({
                "addressType": "IPv4", "endpoints": endpoints, "ports": [],
                "metadata": {"namespace": "d", "name": name, "labels": {SERVICE_OF_SLICE: "s"}},
            }))
            .unwrap()
        };
        let endpoint = |node: &str, ready: bool, kind: &str| json!({"addresses": ["10.42.0.7"], "nodeName": node, "conditions": {"ready": ready}, "targetRef": {"kind": kind}});
        let one =
            slice("s-1", json!([endpoint("a", true, "Pod"), endpoint("b", false, "Pod"), endpoint("c", true, "Node")]));
        let two = slice("s-2", json!([endpoint("d", true, "Pod")]));
        let none = slice("s-3", json!([endpoint("b", false, "Pod")]));
        assert_eq!(endpoints(&none), None);
        let slices = [one, two].into_iter().enumerate();
        let slices = slices.map(|(index, slice)| (index.to_string(), endpoints(&slice).unwrap())).collect();
        assert_eq!(by_service(&slices)["d/s"], BTreeSet::from(["a".to_owned(), "d".to_owned()]));
    }
}
