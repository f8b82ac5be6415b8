//! What a change costs in a large cluster: 500 policies and 2000 pods in 100 namespaces, on 20 nodes.

use std::time::Instant;

use serde_json::json;

use super::{NODE, compiler, namespace, pod, policy};
use crate::{Compiler, Event, Family, ObjectKey, ruleset::Counts};

const NAMESPACES: usize = 100;
const PODS: usize = 2000;
const NODES: usize = 20;

fn node(index: usize) -> String {
    match (index / NAMESPACES) % NODES {
        0 => NODE.to_owned(),
        other => format!("node-{other}"),
    }
}

fn a_pod(index: usize, app: usize) -> Event {
    let name = format!("ns-{}/pod-{index}", index % NAMESPACES);
    let address = format!("10.42.{}.{}", index / 250, 2 + index % 250);
    pod(&node(index), &name, json!({"app": format!("app-{app}"), "team": format!("team-{}", index % 7)}), &[&address])
}

fn cluster() -> Compiler {
    let mut compiler = compiler(&[Family::V4]);
    compiler.apply(Event::Ranges(vec!["10.42.0.0/24".parse().unwrap()]));
    for index in 0..NAMESPACES {
        compiler.apply(namespace(&format!("ns-{index}"), json!({"zone": format!("zone-{}", index % 10)})));
    }
    for index in 0..PODS {
        compiler.apply(a_pod(index, index % 5));
    }
    for index in 0..NAMESPACES {
        for app in 0..5 {
            compiler.apply(a_policy(index, app, 80));
        }
    }
    compiler
}

/// For one app of a namespace: lets in another app of the namespace, a team of a zone, and a range.
fn a_policy(index: usize, app: usize, port: u16) -> Event {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": format!("app-{app}")}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{
            "from": [
                {"podSelector": {"matchLabels": {"app": format!("app-{}", (app + 1) % 5)}}},
                {
                    "namespaceSelector": {"matchLabels": {"zone": format!("zone-{}", index % 10)}},
                    "podSelector": {"matchLabels": {"team": format!("team-{}", index % 7)}},
                },
                {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
            ],
            "ports": [{"port": port}, {"port": "http"}],
        }],
        "egress": [{"to": [{"namespaceSelector": {}}]}],
    });
    policy(&format!("ns-{index}/app-{app}"), spec)
}

#[test]
fn a_change_costs_what_it_changes() {
    let began = Instant::now();
    let mut compiler = cluster();
    let compiled = began.elapsed();
    let whole = compiler.whole();
    let began = Instant::now();
    let text = whole.to_string();
    println!(
        "500 policies, 2000 pods, 100 of them here: compiled in {compiled:?}, written in {:?}: {:?}, {} bytes",
        began.elapsed(),
        whole.counts(),
        text.len()
    );
    let (policies, active, isolated) = compiler.summary();
    assert_eq!((policies, active, isolated), (500, 100, 100), "of 500 policies those that are for pods of this node");

    let mut cost = |what: &str, events: Vec<Event>| {
        let began = Instant::now();
        events.into_iter().for_each(|event| compiler.apply(event));
        let changes = compiler.changes();
        let counts = changes.as_ref().map(crate::Changes::counts).unwrap_or_default();
        let bytes = changes.map_or(0, |changes| changes.to_string().len());
        println!("{what}: {:?}, {counts:?}, {bytes} bytes", began.elapsed());
        counts
    };
    let counts = |chains, sets, elements| Counts { chains, sets, elements };
    // On another node: as a peer of policies in use here. Its team, if some zone's policies ask for it; everybody's egress.
    let elsewhere = cost("a pod elsewhere comes", vec![a_pod(PODS + 150, 0)]);
    assert!(elsewhere.elements <= 4 && elsewhere.chains + elsewhere.sets == 0, "{elsewhere:?}");
    // Its address in both maps, with itself, by its name for a port, and as a peer.
    let here = cost("a pod here comes", vec![a_pod(PODS, 0)]);
    assert!(here.elements <= 8 && here.sets == 0 && here.chains == 0, "{here:?}");
    assert_eq!(cost("it goes", vec![Event::Pod(ObjectKey::new("ns-0", format!("pod-{PODS}")), None)]), here);
    assert_eq!(cost("a pod says the same again", vec![a_pod(7, 7 % 5)]), counts(0, 0, 0));
    assert_eq!(cost("a policy elsewhere changes", vec![a_policy(1, 4, 81)]), counts(0, 0, 0));
    assert_eq!(cost("a policy here changes its port", vec![a_policy(0, 0, 81)]), counts(1, 0, 0));
    let isolated = cost("a policy more for a namespace", vec![policy("ns-0/all", json!({"podSelector": {}}))]);
    assert!(isolated.elements <= 1 && isolated.chains <= 3 && isolated.sets == 0, "{isolated:?}");
    let relabelled = cost("a namespace changes zones", vec![namespace("ns-0", json!({"zone": "zone-1"}))]);
    assert!(relabelled.elements <= 20 * 2 && relabelled.chains + relabelled.sets == 0, "{relabelled:?}");
}
