//! The controller: on the server that leads, each HelmChart in a queue, with what else is a reason to look at it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use k3s_controllers::{ClusterView, Context, Controller, Place, Reflector, reconcile_each};
use k3s_supervise::TaskError;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    core::{ObjectMeta, PartialObjectMeta},
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Config,
    },
};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    chart::{HelmChart, HelmChartConfig},
    helm::Helm,
    reconcile::{Reconciler, Tries},
};

/// How long Helm may go on after the end of the term. Most steps are over by then; what is not is left as interrupted, which the next
/// leader mends. Asked to end, Helm would call the release failed, and by k3s' default policy what has failed is removed.
const GRACE: Duration = Duration::from_secs(5);

/// Makes releases of HelmCharts.
#[derive(Debug)]
pub struct HelmController {
    /// The program.
    pub helm: Arc<Helm>,
    /// Where this server's front is reached, which serves charts at `/static/charts`.
    pub api: SocketAddr,
}

impl Controller for HelmController {
    const NAME: &'static str = "helm-controller";
    const PLACE: Place = Place::Leader;
    const STOPS_WITHIN: Duration = Duration::from_secs(8);

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let watched = Watched::new(&context);
        let (changed, changes) = watch::channel(());
        let end = CancellationToken::new();
        let _killed_with_this = end.clone().drop_guard();
        let runs = TaskTracker::new();
        let reconciler = Arc::new(Reconciler {
            client: context.client.clone(),
            events: context.events.clone(),
            status: context.status.clone(),
            helm: self.helm.clone(),
            api: self.api,
            runs: runs.clone(),
            end: end.clone(),
            changes,
            tries: Tries::default(),
        });
        let reconcile = move |chart: Arc<HelmChart>| {
            let reconciler = reconciler.clone();
            async move { reconciler.reconcile(&chart).await }
        };
        let work = reconcile_each(&watched.charts, Some(watched.also()), context.status, reconcile);
        let tell = watched.changes().for_each(|()| {
            changed.send_replace(());
            std::future::ready(())
        });
        context.shutdown.run_until_cancelled(async { tokio::join!(work, tell) }).await;
        runs.close();
        if timeout(GRACE, runs.wait()).await.is_err() {
            end.cancel();
            runs.wait().await;
        }
        Ok(())
    }
}

/// What is looked at.
struct Watched {
    charts: Reflector<HelmChart>,
    configs: Reflector<HelmChartConfig>,
    view: ClusterView,
    secrets: Api<PartialObjectMeta<Secret>>,
}

impl Watched {
    fn new(context: &Context) -> Self {
        let client = || context.client.clone();
        Self {
            charts: context.view.reflect("HelmCharts", Api::all(client()), Config::default(), |_| {}),
            configs: context.view.reflect("HelmChartConfigs", Api::all(client()), Config::default(), |_| {}),
            view: context.view.clone(),
            secrets: Api::all(client()),
        }
    }

    /// Whenever something becomes of a chart.
    fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        stream::select(self.charts.touched().map(drop), self.configs.touched().map(drop))
    }

    /// The charts whose HelmChartConfig or Secret of values changes.
    fn also(&self) -> impl Stream<Item = ObjectRef<HelmChart>> + Send + use<> {
        let of_configs = self.configs.touched().map(|config| chart_called(&config.name, config.namespace.as_deref()));
        stream::select(of_configs, self.of_secrets())
    }

    /// Secrets are watched from when one is named, and no more of them than that they have changed.
    fn of_secrets(&self) -> impl Stream<Item = ObjectRef<HelmChart>> + Send + use<> {
        let (charts, configs) = (self.charts.store(), self.configs.store());
        let mut in_charts = self.charts.derive(|chart| names_any(chart.watched_secrets()), |found| !found.is_empty());
        let mut in_configs =
            self.configs.derive(|config| names_any(config.watched_secrets()), |found| !found.is_empty());
        let (view, api) = (self.view.clone(), self.secrets.clone());
        let begun = async move {
            loop {
                let named = tokio::select! {
                    named = in_charts.changed() => named,
                    named = in_configs.changed() => named,
                };
                if named {
                    // Helm's own records change with each run.
                    let config = Config::default().fields("type!=helm.sh/release.v1");
                    return view.reflect("Secrets of Helm charts", api, config, only_version).touched();
                }
            }
        };
        stream::once(begun).flatten().flat_map(move |secret: ObjectRef<PartialObjectMeta<Secret>>| {
            stream::iter(charts_with(&charts, &configs, &secret.name, secret.namespace.as_deref()))
        })
    }
}

/// Whatever else there is of it.
fn only_version(secret: &mut PartialObjectMeta<Secret>) {
    let ObjectMeta { name, namespace, uid, resource_version, .. } = std::mem::take(&mut secret.metadata);
    secret.metadata = ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() };
}

fn names_any(secrets: Vec<String>) -> Option<()> {
    (!secrets.is_empty()).then_some(())
}

fn charts_with(
    charts: &Store<HelmChart>,
    configs: &Store<HelmChartConfig>,
    secret: &str,
    namespace: Option<&str>,
) -> Vec<ObjectRef<HelmChart>> {
    let names = |found: Option<String>, secrets: Vec<String>| {
        found.as_deref() == namespace && secrets.iter().any(|name| name == secret)
    };
    let of_charts = charts.state().into_iter().filter(|chart| names(chart.namespace(), chart.watched_secrets()));
    let of_charts: Vec<_> = of_charts.map(|chart| chart.name_any()).collect();
    let of_configs = configs.state().into_iter().filter(|config| names(config.namespace(), config.watched_secrets()));
    of_charts
        .into_iter()
        .chain(of_configs.map(|config| config.name_any()))
        .map(|name| chart_called(&name, namespace))
        .collect()
}

fn chart_called(name: &str, namespace: Option<&str>) -> ObjectRef<HelmChart> {
    let chart = ObjectRef::new(name);
    match namespace {
        Some(namespace) => chart.within(namespace),
        None => chart,
    }
}
