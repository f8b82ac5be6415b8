//! The controllers against a real API server, which needs nothing beside kube-apiserver and its store:
//! `KUBECONFIG=… cargo test -p k3s-controllers -- --ignored`. The cluster should be a fresh one to throw away.

use std::{future::Future, time::Duration};

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
    ClusterView, Context, Controller, Deploy, NodeAddresses, NodeController, NodeHosts, NodeMetadata, PROVIDER_TAINT,
    annotate, controller::recorder, fake_api,
};

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
    let supervisor = fake_api::supervisor();
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
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let kube_dns = async || services.get_opt("kube-dns").await.unwrap();
    let (enabled, disabled) = (Deploy::example(folder.path(), &[]), Deploy::example(folder.path(), &["coredns"]));
    tokio::select! {
        _ = enabled.run(context()) => unreachable!("it runs until it is dropped"),
        _ = until("coredns", async || {
            Api::<Deployment>::namespaced(client.clone(), "kube-system").get_opt("coredns").await.unwrap()
        }) => {}
    }
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let node_hosts = async || config_maps.get("coredns").await.unwrap().data.unwrap().get("NodeHosts").cloned();
    assert_eq!(until("NodeHosts", &node_hosts).await, "");
    assert_eq!(kube_dns().await.unwrap().spec.unwrap().cluster_ip.unwrap(), "10.43.0.10");

    // A node as kubelet registers it, and as its agent speaks of it.
    let nodes: Api<Node> = Api::all(client.clone());
    let metadata = NodeMetadata {
        labels: vec![("disk".into(), "ssd".into())],
        former_labels: Vec::new(),
        pod_egress: false,
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
    let for_a_while = Duration::from_secs(5);
    let _ = tokio::time::timeout(for_a_while, enabled.run(context())).await;
    assert_eq!(version().await, before);

    // A node that was deleted and registers anew is initialised anew.
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    register().await;
    until("an initialised node", &initialised).await;

    // A node that goes takes its name along; a disabled add-on takes its objects along.
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    until("an empty NodeHosts", async || node_hosts().await.filter(String::is_empty)).await;
    tokio::select! {
        _ = disabled.run(context()) => unreachable!("it runs until it is dropped"),
        _ = until("no coredns", async || kube_dns().await.is_none().then_some(())) => {}
    }

    shutdown.cancel();
    running.close();
    running.wait().await;
}

const APP: &str = include_str!("../../tests/manifests/app.yaml");

const WIDGETS: &str = concat!(
    "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: first, namespace: default}\n---\n",
    include_str!("../../tests/manifests/widget-crd.yaml"),
);

#[tokio::test]
#[ignore = "needs an API server in KUBECONFIG"]
async fn what_lies_in_the_folder_is_in_the_cluster() {
    let client = Client::try_default().await.unwrap();
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let supervisor = fake_api::supervisor();
    let view = ClusterView::of_server(client.clone());
    view.begin();
    let shared = crate::Shared {
        client: client.clone(),
        view,
        supervisor: supervisor.clone(),
        leads: tokio::sync::watch::channel(true).1,
    };
    let mut registry = crate::Registry::default();
    registry.add(Some(Deploy::example(folder.path(), &[])));
    let write = |name: &str, contents: &str| std::fs::write(folder.path().join(name), contents).unwrap();
    let config_maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    // A k3s was here before: it updates objects.
    let of_k3s = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "taken",
            "labels": {"objectset.rio.cattle.io/hash": crate::addons::hash_of("taken")},
            "annotations": {"objectset.rio.cattle.io/applied": "H4sI"},
        },
        "data": {"old": "1", "kept": "2"},
    });
    let as_k3s = PostParams { field_manager: Some("deploy@server".into()), ..PostParams::default() };
    config_maps.create(&as_k3s, &serde_json::from_value(of_k3s).unwrap()).await.unwrap();
    let problems = async |of: &str| {
        let tasks = supervisor.status().await.tasks;
        let problems = tasks.into_iter().flat_map(|task| task.problems);
        problems.filter(|problem| problem.object == of).map(|problem| problem.why).next()
    };
    write("app.yaml", APP);
    write("taken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: taken}\ndata: {kept: '2'}\n");
    let shutdown = CancellationToken::new();
    let story = async {
        let data = async |name: &str| {
            config_maps.get_opt(name).await.unwrap().map(|map| serde_json::to_value(map.data).unwrap())
        };
        until("the app", async || services.get_opt("app").await.unwrap()).await;
        until("what k3s wrote to go", async || data("taken").await.filter(|data| *data == json!({"kept": "2"}))).await;
        write("app.yaml", &APP.replace(", second: two", "").replace(", {name: metrics, port: 9090}", ""));
        until("a key to go", async || data("app").await.filter(|data| *data == json!({"first": "one"}))).await;
        until("an item to go", async || {
            services.get("app").await.unwrap().spec.unwrap().ports.filter(|ports| ports.len() == 1)
        })
        .await;
        write("crd.yaml", WIDGETS);
        until("the widget", async || {
            let path = "/apis/example.com/v1/namespaces/default/widgets/first";
            client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.ok()
        })
        .await;
        write("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mended}\n---\nkind: [\n");
        let why = until("what is broken", async || problems("broken.yaml").await).await;
        assert!(why.starts_with("document 2, line "), "{why}");
        write("refused.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: UPPER}\nspec: {ports: [{port: 80}]}\n");
        let why = until("what is refused", async || problems("refused.yaml").await).await;
        assert!(why.starts_with("document 1, line 1: Service UPPER: ") && why.contains("metadata.name"), "{why}");
        write("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mended}\n");
        until("what is mended", async || data("mended").await).await;
        let large = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: {{a: {}}}\n",
            "x".repeat(1_000_000)
        );
        write("large.yaml", &large);
        until("1 MB", async || data("large").await).await;
        write("large.yaml", "# nothing\n");
        until("1 MB to go", async || data("large").await.is_none().then_some(())).await;

        std::fs::write(store.path().join(".authoritative"), "").unwrap();
        std::fs::write(store.path().join("farm.yaml"), APP.replace("name: app", "name: farm")).unwrap();
        std::os::unix::fs::symlink(store.path(), folder.path().join("nixos")).unwrap();
        until("the farm", async || data("farm").await).await;
        std::fs::remove_file(store.path().join("farm.yaml")).unwrap();
        until("the farm to go", async || data("farm").await.is_none().then_some(())).await;
        until("its Service to go", async || services.get_opt("farm").await.unwrap().is_none().then_some(())).await;
        assert!(data("app").await.is_some());
        println!("{}", supervisor.status().await);
        shutdown.cancel();
    };
    let tell = async {
        while shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(8))).await.is_some() {
            println!("{}", supervisor.status().await);
        }
    };
    tokio::join!(registry.run(&shared, &shutdown), story, tell);
}
