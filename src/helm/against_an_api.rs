//! The controller against a real API server, by the real Helm: `KUBECONFIG=… HELM=… cargo test -p k3s-helm -- --ignored`. The cluster
//! should be a fresh one to throw away; it needs no node.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use k3s_controllers::{ClusterView, Context, Controller as _};
use k3s_supervise::{Options, Supervisor, cgroup::CgroupPlace, log::Target};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::ConfigMap},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::events::{Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Helm, HelmController,
    chart::HelmChart,
    release::{Records, Status},
    wanted::Target as Release,
};

/// That of the cluster scenarios: a ConfigMap, and on demand an object that is refused and a hook that never ends.
const TEMPLATE: &str = include_str!("../../tests/manifests/chart-template.yaml");

/// The archive of a chart in base64.
fn archive(dir: &Path) -> String {
    let write = |name: &str, content: &str| {
        let path = dir.join("app").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n");
    write("values.yaml", "greeting: default\n");
    write("templates/all.yaml", TEMPLATE);
    let archive = dir.join("app.tgz");
    let packed = std::process::Command::new("tar").arg("-C").arg(dir).arg("-czf").arg(&archive).arg("app").status();
    assert!(packed.unwrap().success());
    data_encoding::BASE64.encode(&std::fs::read(archive).unwrap())
}

/// Asks until the answer is there.
async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    for _ in 0..600 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} did not come about");
}

struct Cluster {
    client: Client,
    charts: Api<DynamicObject>,
    configs: Api<DynamicObject>,
    content: String,
}

impl Cluster {
    async fn new(dir: &Path) -> Self {
        let client = Client::try_default().await.unwrap();
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for text in [
            include_str!("../../manifests/crds/helmcharts.yaml"),
            include_str!("../../manifests/crds/helmchartconfigs.yaml"),
        ] {
            let crd: Value = serde_saphyr::from_str(text).unwrap();
            let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
            crds.patch(&name, &PatchParams::apply("k3s").force(), &Patch::Apply(&crd)).await.unwrap();
            until("a definition", async || {
                let found = crds.get(&name).await.unwrap();
                let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
                conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
            })
            .await;
        }
        let api = |kind: &str| {
            let gvk = GroupVersionKind::gvk("helm.cattle.io", "v1", kind);
            Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&gvk))
        };
        Self { charts: api("HelmChart"), configs: api("HelmChartConfig"), content: archive(dir), client }
    }

    async fn chart(&self, name: &str, spec: Value) {
        let mut full = json!({"chartContent": self.content});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let object =
            json!({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": {"name": name}, "spec": full});
        self.charts.patch(name, &PatchParams::apply("user"), &Patch::Apply(object)).await.unwrap();
    }

    async fn config(&self, name: &str, values: &str) {
        let object = json!({
            "apiVersion": "helm.cattle.io/v1", "kind": "HelmChartConfig", "metadata": {"name": name},
            "spec": {"valuesContent": values},
        });
        self.configs.patch(name, &PatchParams::apply("user"), &Patch::Apply(object)).await.unwrap();
    }

    async fn until_greeting(&self, name: &str, greeting: &str) {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "default");
        until(&format!("{greeting} of {name}"), async || {
            let found = maps.get_opt(name).await.unwrap().and_then(|map| map.data?.get("greeting").cloned());
            found.as_deref() == Some(greeting)
        })
        .await;
    }

    async fn until_job(&self, name: &str, condition: &str) {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), "default");
        until(&format!("{condition} of {name}"), async || {
            let status = jobs.get_opt(name).await.unwrap().and_then(|job| job.status);
            status.and_then(|status| status.conditions).iter().flatten().any(|found| found.type_ == condition)
        })
        .await;
    }

    async fn status_of(&self, name: &str) -> Option<Status> {
        let release = Release::new(name, "default", &crate::chart::Spec::default());
        Records::of(&self.client, &release).last().await.unwrap().map(|release| release.status)
    }
}

#[tokio::test]
#[ignore = "needs an API server in KUBECONFIG and Helm in HELM"]
async fn charts_are_installed_upgraded_mended_and_uninstalled() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(dir.path()).await;
    let options = Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere };
    let supervisor = Supervisor::new(options).unwrap();
    let env = |name: &str| std::env::var_os(name).unwrap().into();
    let helm =
        Helm::new(env("HELM"), dir.path().join("homes"), env("KUBECONFIG"), dir.path().join("ca"), supervisor.clone());
    let controller = Arc::new(HelmController { helm: Arc::new(helm), api: "127.0.0.1:6443".parse().unwrap() });
    let run = |shutdown: &CancellationToken| {
        let (task, client, shutdown) =
            (supervisor.task("helm").stops_within(Duration::from_secs(30)), cluster.client.clone(), shutdown.clone());
        let controller = controller.clone();
        async move {
            let view = ClusterView::of_server(client.clone());
            view.begin();
            task.run(&shutdown, |status| {
                let reporter = Reporter { controller: "helm-controller".into(), instance: None };
                let (events, shutdown) = (Recorder::new(client.clone(), reporter), shutdown.clone());
                let context = Context { client: client.clone(), view: view.clone(), events, shutdown, status };
                let controller = controller.clone();
                async move { controller.run(context).await }
            })
            .await;
            view.close().await;
        }
    };
    let running = TaskTracker::new();
    let mut term = CancellationToken::new();
    running.spawn(run(&term));

    cluster.chart("app", json!({"set": {"greeting": "hello, world"}})).await;
    cluster.until_greeting("app", "hello, world").await;
    cluster.until_job("helm-install-app", "Complete").await;
    cluster.chart("app", json!({"failurePolicy": "abort"})).await;
    cluster.config("app", "greeting: config").await;
    cluster.until_greeting("app", "config").await;
    cluster.until_job("helm-install-app", "Complete").await;

    // A term ends while an upgrade hangs: the next one takes it back and makes it.
    cluster.config("app", "hangs: true").await;
    until("a hanging upgrade", async || cluster.status_of("app").await == Some(Status::Pending)).await;
    term.cancel();
    running.close();
    running.wait().await;
    assert_eq!(cluster.status_of("app").await, Some(Status::Pending), "it was interrupted");
    running.reopen();
    term = CancellationToken::new();
    running.spawn(run(&term));
    cluster.config("app", "greeting: healed").await;
    cluster.until_greeting("app", "healed").await;

    // A hanging upgrade gives way to what is wanted instead.
    cluster.config("app", "hangs: true").await;
    until("a hanging upgrade", async || cluster.status_of("app").await == Some(Status::Pending)).await;
    cluster.config("app", "greeting: meanwhile").await;
    cluster.until_greeting("app", "meanwhile").await;

    cluster.config("app", "refused: true").await;
    cluster.until_job("helm-install-app", "Failed").await;
    let charts: Api<HelmChart> = Api::namespaced(cluster.client.clone(), "default");
    until("the condition", async || {
        let status = charts.get("app").await.unwrap().status;
        status["conditions"][1]["status"] == "True" && status["conditions"][1]["message"].to_string().contains("99999")
    })
    .await;
    assert_eq!(cluster.status_of("app").await, Some(Status::Failed));

    cluster.charts.delete("app", &DeleteParams::default()).await.unwrap();
    until("the end", async || charts.get_opt("app").await.unwrap().is_none()).await;
    assert_eq!(cluster.status_of("app").await, None);
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    assert!(maps.list(&Default::default()).await.unwrap().items.iter().all(|map| map.name_any() != "app"));
    let warnings = supervisor.status().await.tasks.into_iter().flat_map(|task| task.problems).collect::<Vec<_>>();
    assert!(warnings.is_empty(), "{warnings:?}");
    term.cancel();
    running.close();
    running.wait().await;
}
