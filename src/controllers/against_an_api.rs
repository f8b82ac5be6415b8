//! The controllers against a real API server, which needs nothing beside kube-apiserver and its store:
//! `KUBECONFIG=… cargo test -p k3s-controllers -- --ignored`. The cluster should be a fresh one to throw away.

use std::{collections::BTreeSet, future::Future, path::Path, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Node, Service},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Addons, ClusterView, Context, Controller, NodeAddresses, NodeController, NodeHosts, NodeMetadata, PROVIDER_TAINT,
    Variables, annotate, controller::recorder, fake_api,
};

fn addons(folder: &Path, disabled: &[&str]) -> Addons {
    Addons {
        folder: folder.into(),
        disabled: disabled.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(),
        variables: Variables {
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            system_default_registry: None,
            coredns_image: "docker.io/k3s-rs/coredns:test".into(),
        },
    }
}

/// Asks until the answer is there.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    for _ in 0..600 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test]
#[ignore = "needs an API server in KUBECONFIG"]
async fn a_node_is_initialised_and_coredns_deployed_and_removed() {
    let client = Client::try_default().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let running = TaskTracker::new();
    let (supervisor, _dir) = fake_api::supervisor();
    let view = ClusterView::of_server(client.clone());
    view.begin();
    let (contexts, lines) = tokio::sync::mpsc::unbounded_channel();
    running.spawn({
        let (task, shutdown) = (supervisor.task("test"), shutdown.clone());
        async move {
            task.run(&shutdown, |line| {
                let _ = contexts.send(line);
                std::future::pending()
            })
            .await;
        }
    });
    let mut lines = lines;
    let status = lines.recv().await.unwrap();
    let context = || Context {
        client: client.clone(),
        view: view.clone(),
        events: recorder(&client, "test"),
        shutdown: shutdown.clone(),
        status: status.clone(),
    };
    let run = |work: std::pin::Pin<Box<dyn Future<Output = Result<(), k3s_supervise::TaskError>> + Send>>| {
        let shutdown = shutdown.clone();
        running.spawn(async move { shutdown.run_until_cancelled(work).await });
    };
    let of_node = context();
    let controller = NodeController { initialises: true, own_node: Some("node-1".into()) };
    run(Box::pin(async move { controller.run(of_node).await }));
    let of_hosts = context();
    run(Box::pin(async move { NodeHosts.run(of_hosts).await }));

    // Packaged add-ons, and the key that coredns waits for.
    addons(folder.path(), &[]).run(context()).await.unwrap();
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let node_hosts = async || config_maps.get("coredns").await.unwrap().data.unwrap().get("NodeHosts").cloned();
    assert_eq!(until("NodeHosts", &node_hosts).await, "");
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let service = services.get("kube-dns").await.unwrap();
    assert_eq!(service.spec.unwrap().cluster_ip.unwrap(), "10.43.0.10");

    // A node as kubelet registers it, and as its agent speaks of it.
    let nodes: Api<Node> = Api::all(client.clone());
    let metadata = NodeMetadata {
        labels: vec![("disk".into(), "ssd".into())],
        leads_to_pods: false,
        addresses: Some(NodeAddresses {
            internal_ips: vec!["10.0.0.1".parse().unwrap()],
            hostname: "host-1".into(),
            ..NodeAddresses::default()
        }),
        arguments: None,
    };
    let register = async || {
        let node = json!({
            "metadata": {"name": "node-1"},
            "spec": {
                "podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"],
                "taints": [{"key": PROVIDER_TAINT, "value": "true", "effect": "NoSchedule"}],
            },
        });
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    };
    let (agent, seen) = (client.clone(), view.clone());
    run(Box::pin(async move {
        annotate(&seen, agent, "node-1", &metadata).await;
        Ok(())
    }));
    register().await;
    let mut members = view.members(|_| false);
    let members = loop {
        let members = members.changed().await;
        if !members.is_empty() {
            break members;
        }
    };
    assert_eq!(members[0].pod_cidrs, ["10.42.0.0/24".parse().unwrap()]);
    let initialised = async || {
        let node = nodes.get("node-1").await.unwrap();
        let tainted = node.spec.as_ref()?.taints.iter().flatten().any(|taint| taint.key == PROVIDER_TAINT);
        (!tainted).then_some(node)
    };
    let node = until("an initialised node", &initialised).await;
    assert_eq!(node.spec.as_ref().unwrap().provider_id.as_deref(), Some("k3s://node-1"));
    for (label, value) in [
        ("disk", "ssd"),
        ("node-role.kubernetes.io/control-plane", "true"),
        ("node.kubernetes.io/instance-type", "k3s"),
    ] {
        assert_eq!(node.labels().get(label).map(String::as_str), Some(value), "{label}");
    }
    until("the node's name in NodeHosts", async || {
        node_hosts().await.filter(|hosts| hosts == "10.0.0.1 node-1 host-1\n")
    })
    .await;

    // Starting again writes nothing.
    let version = async || {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
        let objects = (
            deployments.get("coredns").await.unwrap().resource_version(),
            config_maps.get("coredns").await.unwrap().resource_version(),
            services.get("kube-dns").await.unwrap().resource_version(),
            nodes.get("node-1").await.unwrap().resource_version(),
        );
        format!("{objects:?}")
    };
    let before = version().await;
    addons(folder.path(), &[]).run(context()).await.unwrap();
    assert_eq!(version().await, before);

    // A node that was deleted and registers anew is initialised anew.
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    register().await;
    until("an initialised node", &initialised).await;

    // A node that goes takes its name along; a disabled add-on takes its objects along.
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    until("an empty NodeHosts", async || node_hosts().await.filter(String::is_empty)).await;
    addons(folder.path(), &["coredns"]).run(context()).await.unwrap();
    assert!(services.get_opt("kube-dns").await.unwrap().is_none());
    assert!(!folder.path().join("coredns.yaml").exists());

    shutdown.cancel();
    running.close();
    running.wait().await;
}
