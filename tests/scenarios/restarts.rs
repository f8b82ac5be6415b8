//! One cluster, and everything in it that can die: each child, `k3s` itself, the whole machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    thread,
};

use anyhow::Result;
use cluster_tests::{Network, Node, PATIENCE, step};
use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::api::{Api, Credentials, config_map, on_node, on_wire};

/// Clients that write at once, and how many of their writes are acknowledged before the power is cut.
const WRITERS: usize = 8;
const WRITES: usize = 2000;

const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sleepers}
spec:
  replicas: 2
  selector: {matchLabels: {app: sleepers}}
  template:
    metadata: {labels: {app: sleepers}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: sleep, image: "docker.io/k3s-rs/demo:0.1.0", command: [sleep, "100000"]}
"#;

/// Programs that may live on when `k3s` has been killed: shims, what runs in pods, process 1, and those that make the list.
const SURVIVORS: [&str; 9] =
    ["containerd-shim", "pause", "sleep", "coredns", "node-init", "timeout", "sh", "ps", "sort"];

#[test]
fn one_failure_is_one_restart() {
    let network = Network::new();
    let mut server = Node::boot(&network, "server");
    server.give_demo_image();
    step("a cluster with pods", || {
        server.start_k3s("");
        server.wait_until_ready();
        server.apply(PODS);
        server.wait_for_deployment("default", "sleepers");
        server.wait_for_deployment("kube-system", "coredns");
    });
    each_child_alone(&server);
    the_supervisor(&server);
    everything_at_once(&mut server);
}

fn each_child_alone(server: &Node) {
    let uid = server.kubectl("get node server -o jsonpath={.metadata.uid}");
    let children: Vec<String> = server.components().into_keys().collect();
    for expected in
        ["containerd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet"]
    {
        assert!(children.iter().any(|child| child == expected), "{expected} is not among {children:?}");
    }
    for child in &children {
        step(&format!("kill -9 of {child} restarts {child} alone"), || {
            let before = server.components();
            server.kill(before[child]);
            let after = server.wait_for_components(|after| {
                children.iter().all(|child| after.contains_key(child)) && after[child] != before[child]
            });
            for (other, process) in before.iter().filter(|(other, _)| *other != child) {
                assert_eq!(after[other], *process, "{other} was restarted with {child}");
            }
            server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        });
    }
    step("the node is the same one, and does its work", || {
        a_new_pod_runs(server);
        assert_eq!(server.kubectl("get node server -o jsonpath={.metadata.uid}"), uid);
    });
    step("all children are alive after half a minute of idling", || {
        let before = server.components();
        server.succeed("sleep 30");
        assert_eq!(server.components(), before);
        // Nor did one fall later for what was done to another.
        for component in server.status()["components"].as_array().into_iter().flatten() {
            assert_eq!(component["restarts"], 1, "{component}");
        }
    });
}

/// The whole chain works now, whatever the API remembers: a pod that is made now comes to run, and goes.
#[track_caller]
fn a_new_pod_runs(server: &Node) {
    server.wait_until_succeeds(
        "k3s kubectl run probe --image=docker.io/k3s-rs/demo:0.1.0 --restart=Never -- sleep 100000",
        PATIENCE,
    );
    server.wait_until_succeeds("k3s kubectl exec probe -- true", PATIENCE);
    server.kubectl("delete pod probe --now --wait");
}

fn the_supervisor(server: &Node) {
    let objects = "get deployments,pods,services -A -o custom-columns=U:.metadata.uid --no-headers";
    let containers = || -> BTreeSet<String> {
        server.succeed("k3s ctr task list | tail -n +2 | awk '{print $1, $2}'").lines().map(str::to_owned).collect()
    };
    let (objects_before, containers_before) = (server.kubectl(objects), containers());
    assert!(containers_before.len() >= 6, "{containers_before:?}");
    step("kill -9 of k3s leaves nothing but shims and pods", || {
        let children = server.components();
        server.succeed("pkill -KILL -x k3s");
        for (name, child) in children {
            server.wait_until_succeeds(&format!("! test -e /proc/{}", child.pid), PATIENCE);
            assert_eq!(server.process(child.pid), None, "{name} outlived k3s");
        }
        let left = server.succeed("ps -A -o comm= | sort -u");
        let survives = |left: &&str| SURVIVORS.iter().any(|survivor| left.starts_with(survivor));
        assert_eq!(left.lines().filter(|left| !survives(left)).collect::<Vec<_>>(), Vec::<&str>::new());
    });
    step("started again, it finds the same containers and objects", || {
        server.start_k3s("");
        a_new_pod_runs(server);
        assert_eq!(containers(), containers_before);
        assert_eq!(server.kubectl(objects), objects_before);
    });
}

fn everything_at_once(server: &mut Node) {
    let acknowledged = step("kill -9 of everything under a load of writes", || {
        server.kubectl("create namespace load");
        crash_under_load(server)
    });
    println!("  {} objects had acknowledged writes", acknowledged.len());
    step("every acknowledged write is there", || {
        server.start();
        server.start_k3s("");
        server.wait_until_ready();
        let stored = stored(server);
        assert_eq!(lost(&acknowledged, &stored), Vec::<&str>::new());
        // The check itself: it misses a write that was never made, and one that was made before the last acknowledged one.
        let seeded = BTreeMap::from([("never-written".to_owned(), 0), ("counter-0".to_owned(), u64::MAX)]);
        assert_eq!(lost(&seeded, &stored).len(), 2);
    });
    step("pods run again after the crash", || {
        server.wait_until_succeeds("k3s kubectl exec deployment/sleepers -- true", PATIENCE);
        a_new_pod_runs(server);
    });
}

/// What was acknowledged to writers: each object's name and the last number written to it.
type Written = BTreeMap<String, u64>;

/// Writes from several clients at once until the node's power is cut under them.
fn crash_under_load(server: &mut Node) -> Written {
    let credentials = Credentials::admin(server).expect("the administrator has a certificate");
    let wire = server.wire();
    let (acknowledge, acknowledged) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            on_wire(&wire, async || {
                let mut writers = JoinSet::new();
                for writer in 0..WRITERS {
                    writers.spawn(write_until_it_fails(writer, credentials.clone(), acknowledge.clone()));
                }
                drop(acknowledge);
                // That each fails in the end is what is asked of them.
                writers.join_all().await;
                Ok(())
            });
        });
        let mut written: Written = acknowledged.iter().take(WRITES).collect();
        server.crash();
        written.extend(acknowledged.iter());
        written
    })
}

/// One client: a counter that it raises, and between two raises a new object.
async fn write_until_it_fails(
    writer: usize,
    credentials: Credentials,
    acknowledge: mpsc::Sender<(String, u64)>,
) -> Result<()> {
    let path = "/api/v1/namespaces/load/configmaps";
    let api = Api::connect(&credentials).await?;
    let counter = format!("counter-{writer}");
    api.call(Method::POST, path, Some(&config_map(&counter, "0"))).await?;
    for number in 1_u64.. {
        let raised = config_map(&counter, &number.to_string());
        api.call(Method::PUT, &format!("{path}/{counter}"), Some(&raised)).await?;
        acknowledge.send((counter.clone(), number))?;
        let new = format!("object-{writer}-{number}");
        api.call(Method::POST, path, Some(&config_map(&new, "0"))).await?;
        acknowledge.send((new, 0))?;
    }
    Ok(())
}

/// What the API has of it now.
fn stored(server: &Node) -> Written {
    let credentials = Credentials::admin(server).expect("the administrator has a certificate");
    let list = on_node(server, async || {
        Api::connect(&credentials).await?.call(Method::GET, "/api/v1/namespaces/load/configmaps", None).await
    });
    let number = |object: &Value| {
        Some((object["metadata"]["name"].as_str()?.to_owned(), object["data"]["value"].as_str()?.parse().ok()?))
    };
    list["items"].as_array().into_iter().flatten().filter_map(number).collect()
}

/// Objects that are not there, or whose number is older than the acknowledged one. A newer one was written, but its answer did not get out.
fn lost<'a>(acknowledged: &'a Written, stored: &Written) -> Vec<&'a str> {
    let lost = |(name, number): &(&String, &u64)| stored.get(*name).is_none_or(|stored| stored < *number);
    acknowledged.iter().filter(lost).map(|(name, _)| name.as_str()).collect()
}
