//! What nodes write, and what is deployed on them.

use jiff::Timestamp;
use serde_json::{Value, json};

/// How many pods a Deployment has.
pub(crate) const GROUP: usize = 100;

pub(crate) fn name(node: usize) -> String {
    format!("fake-{node}")
}

/// As kubelet registers.
pub(crate) fn node(number: usize) -> Value {
    let name = name(number);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        }},
    })
}

/// What kubelet says of a machine in which all is well.
pub(crate) fn node_status(number: usize) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": format!("Kubelet{kind}"), "message": format!("kubelet has {kind} {status}"),
            "lastHeartbeatTime": now, "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let capacity = json!({"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    json!({"status": {
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [
            {"type": "InternalIP", "address": format!("172.16.{}.{}", number / 250, number % 250 + 1)},
            {"type": "Hostname", "address": name(number)},
        ],
        "conditions": [
            condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False"),
            condition("Ready", "True"),
        ],
        "nodeInfo": {
            "machineID": format!("{number:032x}"), "systemUUID": format!("{number:032x}"), "bootID": format!("{number:032x}"),
            "kernelVersion": "6.12.0", "osImage": "none", "containerRuntimeVersion": "containerd://2.4.2",
            "kubeletVersion": "v1.36.3", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
        },
    }})
}

/// A heartbeat, which takes the place of the one of this `version`.
pub(crate) fn lease(number: usize, version: Option<&str>) -> Value {
    let name = name(number);
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "resourceVersion": version},
        "spec": {
            "holderIdentity": name, "leaseDurationSeconds": 40,
            "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        },
    })
}

/// What kubelet says of a pod that runs: the `count`th on its node.
pub(crate) fn pod_status(node: usize, count: usize) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let address = format!("100.{}.{}.{}", 64 + node / 256, node % 256, count % 254 + 1);
    let conditions =
        ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({"status": {
        "phase": "Running",
        "startTime": now,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": conditions,
        "containerStatuses": [{
            "name": "pause", "ready": true, "started": true, "restartCount": 0, "image": "pause", "imageID": "sha256:0",
            "containerID": format!("containerd://{node:08x}{count:056x}"), "state": {"running": {"startedAt": now}},
        }],
    }})
}

/// So many pods, and the Service before them.
pub(crate) fn group(number: usize, pods: usize) -> [(&'static str, Value); 2] {
    let name = format!("load-{number}");
    let labels = json!({"app": name});
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "pause", "image": "pause", "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}}}],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": labels, "ports": [{"port": 80}]},
    });
    [("/apis/apps/v1/namespaces/default/deployments", deployment), ("/api/v1/namespaces/default/services", service)]
}
