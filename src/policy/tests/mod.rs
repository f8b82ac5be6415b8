//! What is compiled, and whether it means what the policies say.

mod cases;
mod meaning;
mod scale;

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::{Compiler, Event, Family, ObjectKey, Options, Pod, Policy};

/// The node whose ruleset is looked at.
const NODE: &str = "edge-1";

fn compiler(families: &[Family]) -> Compiler {
    let options = Options { node: NODE.into(), families: families.to_vec(), bridge: "cni0".into() };
    Compiler::new(options)
}

fn namespace(name: &str, labels: Value) -> Event {
    Event::Namespace(name.into(), Some(serde_json::from_value(labels).unwrap()))
}

/// A pod with one port of each kind that has a name.
fn pod(node: &str, name: &str, labels: Value, addresses: &[&str]) -> Event {
    let (namespace, name) = name.split_once('/').unwrap();
    let ips: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let ports = json!([
        {"name": "http", "containerPort": 8080},
        {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
    ]);
    let object = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
        "status": {"podIPs": ips},
    });
    let pod = Pod::of(&serde_json::from_value(object).unwrap());
    Event::Pod(ObjectKey::new(namespace, name), Some(pod.unwrap()))
}

fn policy(name: &str, spec: Value) -> Event {
    let (namespace, name) = name.split_once('/').unwrap();
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    let policy = Policy::of(namespace, &serde_json::from_value(object).unwrap());
    Event::Policy(ObjectKey::new(namespace, name), Some(policy.unwrap()))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
