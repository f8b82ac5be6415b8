//! One HelmChart brought to where it should be.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k3s_supervise::{Backoff, StatusLine};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{controller::Action, events::Recorder},
};
use serde_json::json;
use tokio::{select, sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    chart::{FINALIZER, HelmChart, HelmChartConfig, MANAGED_BY, MANAGER, Ownership},
    decision::{Decision, Step, decide, decide_removal},
    helm::{Helm, HelmError},
    inputs::{Names, Objects},
    job::{self, Progress, Shown},
    release::Records,
    report::{Condition, Happening, Report},
    retired,
    wanted::{Target, Wanted},
};

/// Between tries of one chart at first, and at most: as kubelet restarts the container of a job.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How often a release is looked at that somebody has to mend.
const BLOCKED: Duration = Duration::from_secs(300);
/// How often a Job of k3s is looked at that has to go.
const RETIRING: Duration = Duration::from_secs(2);

/// What all charts share.
pub(crate) struct Reconciler {
    pub(crate) client: Client,
    pub(crate) events: Recorder,
    pub(crate) status: StatusLine,
    pub(crate) helm: Arc<Helm>,
    /// Where this server serves charts.
    pub(crate) api: SocketAddr,
    /// Runs of Helm, which outlive whoever waits for them.
    pub(crate) runs: TaskTracker,
    /// Kills them.
    pub(crate) end: CancellationToken,
    /// Told when some HelmChart or HelmChartConfig changes.
    pub(crate) changes: watch::Receiver<()>,
    pub(crate) tries: Tries,
}

/// What failed, by the chart's title.
#[derive(Default)]
pub(crate) struct Tries(Mutex<HashMap<String, Failures>>);

struct Failures {
    /// Of what was wanted.
    hash: String,
    count: u32,
    /// The last time.
    why: String,
    backoff: Backoff,
    /// When it is tried again.
    at: Instant,
}

/// Why a chart is not where it should be.
#[derive(Debug, thiserror::Error)]
enum ChartError {
    /// It is wrong, or something that it names is missing.
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Helm(#[from] HelmError),
}

impl Reconciler {
    /// Does what there is to do for `chart`.
    pub(crate) async fn reconcile(&self, chart: &HelmChart) -> kube::Result<Action> {
        let deleted = chart.metadata.deletion_timestamp.is_some();
        let is_kept = chart.finalizers().iter().any(|name| name == FINALIZER);
        match chart.ownership() {
            Ownership::Unmanaged if deleted && is_kept => {
                self.let_go(chart).await?;
                return Ok(Action::await_change());
            }
            Ownership::Ours if deleted && is_kept => {}
            Ownership::Ours if !deleted && is_kept && chart.names_a_chart() => {}
            Ownership::Free | Ownership::Ours if !deleted && chart.names_a_chart() => return self.claim(chart).await,
            _ => {
                self.settle(chart);
                return Ok(Action::await_change());
            }
        }
        if let Some(job) = retired::stop_job(chart, &self.client).await? {
            self.status
                .problem(&chart.title(), format!("the Job {job} of k3s still runs Helm; waiting until it is gone"));
            return Ok(Action::requeue(RETIRING));
        }
        let mut report = Report::of(chart, &self.client, &self.events);
        let result = if deleted { self.remove(chart, &report).await } else { self.apply(chart, &mut report).await };
        match result {
            Ok(action) => Ok(action),
            Err(ChartError::Api(error)) => Err(error),
            // It is wanted otherwise, or the next leader goes on.
            Err(ChartError::Helm(HelmError::Ended)) => Ok(Action::requeue(Duration::from_secs(1))),
            Err(error) => {
                let why = error.to_string();
                self.status.problem(&chart.title(), &*why);
                if let ChartError::Unusable(_) = &error {
                    report.tell(&Happening::Unusable { why: why.clone() }).await;
                    if !deleted {
                        report.set(&Condition::Unusable(why), &job::name(chart, Step::Install)).await?;
                    }
                }
                Ok(Action::requeue(self.tries.pause(&chart.title())))
            }
        }
    }

    /// Says whose it is, and keeps it until its release is gone.
    async fn claim(&self, chart: &HelmChart) -> kube::Result<Action> {
        let mut finalizers = chart.finalizers().to_vec();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        let patch = json!({"metadata": {
            "resourceVersion": chart.resource_version(),
            "annotations": {MANAGED_BY: MANAGER},
            "finalizers": finalizers,
        }});
        self.patch(chart, patch).await?;
        Ok(Action::await_change())
    }

    /// Keeps it no more.
    async fn let_go(&self, chart: &HelmChart) -> kube::Result<()> {
        let finalizers: Vec<_> = chart.finalizers().iter().filter(|name| *name != FINALIZER).collect();
        let patch = json!({"metadata": {"resourceVersion": chart.resource_version(), "finalizers": finalizers}});
        self.patch(chart, patch).await
    }

    async fn patch(&self, chart: &HelmChart, patch: serde_json::Value) -> kube::Result<()> {
        let charts: Api<HelmChart> = Api::namespaced(self.client.clone(), &chart.namespace().unwrap_or_default());
        let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
        charts.patch(&chart.name_any(), &params, &Patch::Merge(patch)).await.map(drop)
    }

    /// Makes the release be what the chart wants.
    async fn apply(&self, chart: &HelmChart, report: &mut Report<'_>) -> Result<Action, ChartError> {
        let wanted = self.wanted(chart).await?;
        let (hash, job) = (wanted.hash(), job::name(chart, Step::Install));
        let records = Records::of(&self.client, &wanted.target);
        loop {
            let release = records.last().await?;
            match decide(release.as_ref(), &hash, wanted.policy, Timestamp::now().as_second()) {
                Decision::Done => {
                    report.set(&Condition::Applied, &job).await?;
                    job::complete_interrupted(chart, &self.client).await;
                    self.settle(chart);
                    return Ok(Action::await_change());
                }
                Decision::Wait(left) => return Ok(Action::requeue(left)),
                Decision::Forget => {
                    let Some(interrupted) = &release else { continue };
                    report.tell(&Happening::Forgot { revision: interrupted.revision }).await;
                    info!(
                        chart = chart.title(),
                        revision = interrupted.revision,
                        "A revision was interrupted; taking it back."
                    );
                    records.forget(interrupted).await?;
                }
                Decision::Blocked => {
                    let failure = self.tries.why(&chart.title(), &hash);
                    let failure = failure.unwrap_or_else(|| format!("the release {} has failed", wanted.target.name));
                    let why =
                        format!("{failure}; failurePolicy is abort: mend it with helm rollback or helm uninstall");
                    return self.give_up(chart, report, why).await;
                }
                Decision::Act(steps) => {
                    let failed = self.tries.count(&chart.title(), &hash);
                    if failed > wanted.back_off_limit {
                        let failure = self.tries.why(&chart.title(), &hash).unwrap_or_default();
                        let why =
                            format!("{failure}; it was tried {failed} times, and spec.backOffLimit allows no more");
                        return self.give_up(chart, report, why).await;
                    }
                    if let Some(left) = self.tries.left(&chart.title(), &hash) {
                        return Ok(Action::requeue(left));
                    }
                    if failed == 0 {
                        report.set(&Condition::Applied, &job).await?;
                    }
                    let namespace = chart.namespace().unwrap_or_default();
                    report
                        .tell(&Happening::Applying {
                            source: wanted.source.describe(&wanted.version),
                            job: format!("{namespace}/{job}"),
                        })
                        .await;
                    if !wanted.ignored.is_empty() {
                        report.tell(&Happening::Ignored { fields: wanted.ignored.join("; ") }).await;
                    }
                    let shown = Shown::begin(chart, &self.client, Step::Install, &hash, failed).await;
                    match self.act(steps, &wanted, chart).await {
                        Ok(()) => {
                            report.set(&Condition::Applied, &job).await?;
                            shown.show(Progress::Complete { failed }).await;
                            if release.is_some_and(|release| release.hash.is_none()) {
                                retired::delete_rest(chart, &self.client).await?;
                            }
                            info!(chart = chart.title(), "A Helm chart is applied.");
                            self.settle(chart);
                            return Ok(Action::await_change());
                        }
                        Err(HelmError::Ended) => return Err(HelmError::Ended.into()),
                        Err(error) => {
                            let (count, pause) = self.tries.fail(&chart.title(), &hash, &error.to_string());
                            self.status.problem(&chart.title(), error.to_string());
                            let release = records.last().await?;
                            let next = decide(release.as_ref(), &hash, wanted.policy, Timestamp::now().as_second());
                            if next == Decision::Blocked || count > wanted.back_off_limit {
                                shown.show(Progress::Failed { failed: count }).await;
                                // The next round says why it is given up.
                                continue;
                            }
                            shown.show(Progress::Running { failed: count }).await;
                            report.tell(&Happening::Retrying { why: error.to_string() }).await;
                            report.set(&Condition::Retrying(format!("{error}; trying again")), &job).await?;
                            return Ok(Action::requeue(pause));
                        }
                    }
                }
            }
        }
    }

    /// Helm is asked no more, until the chart or its release changes.
    async fn give_up(&self, chart: &HelmChart, report: &mut Report<'_>, why: String) -> Result<Action, ChartError> {
        self.status.problem(&chart.title(), &*why);
        // What is known already is told once.
        if !report.has_failed() {
            report.tell(&Happening::Failed { why: why.clone() }).await;
            report.set(&Condition::Failed(why), &job::name(chart, Step::Install)).await?;
        }
        Ok(Action::requeue(BLOCKED))
    }

    /// Makes the release go, and then the chart.
    async fn remove(&self, chart: &HelmChart, report: &Report<'_>) -> Result<Action, ChartError> {
        // Where nobody understands the rest, its release may be there all the same; one in no namespace never was.
        let spec = chart.read_spec().unwrap_or_default();
        if !chart.has_target() {
            self.let_go(chart).await?;
            self.settle(chart);
            return Ok(Action::await_change());
        }
        let target =
            Target { driver: chart.driver(), ..Target::new(&chart.name_any(), &chart.target_namespace(), &spec) };
        let records = Records::of(&self.client, &target);
        let release = records.last().await?;
        match decide_removal(release.as_ref(), Timestamp::now().as_second()) {
            Decision::Wait(left) => return Ok(Action::requeue(left)),
            Decision::Act(_) => {
                let job = job::name(chart, Step::Uninstall);
                report
                    .tell(&Happening::Removing { job: format!("{}/{job}", chart.namespace().unwrap_or_default()) })
                    .await;
                let failed = self.tries.count(&chart.title(), FINALIZER);
                let shown = Shown::begin(chart, &self.client, Step::Uninstall, "", failed).await;
                if let Err(error) = self.uninstall(&target).await {
                    if matches!(error, HelmError::Ended) {
                        return Err(error.into());
                    }
                    // Its namespace may have taken it away meanwhile.
                    if records.last().await?.is_some() {
                        let (count, pause) = self.tries.fail(&chart.title(), FINALIZER, &error.to_string());
                        shown.show(Progress::Running { failed: count }).await;
                        report.tell(&Happening::Retrying { why: error.to_string() }).await;
                        self.status.problem(&chart.title(), error.to_string());
                        return Ok(Action::requeue(pause));
                    }
                }
                shown.show(Progress::Complete { failed }).await;
            }
            Decision::Done | Decision::Forget | Decision::Blocked => {}
        }
        report.tell(&Happening::Removed).await;
        retired::delete_rest(chart, &self.client).await?;
        self.let_go(chart).await?;
        info!(chart = chart.title(), "A Helm chart is uninstalled.");
        self.settle(chart);
        Ok(Action::await_change())
    }

    async fn wanted(&self, chart: &HelmChart) -> Result<Wanted, ChartError> {
        let namespace = chart.namespace().unwrap_or_default();
        let spec = chart.read_spec().map_err(ChartError::Unusable)?;
        let configs: Api<HelmChartConfig> = Api::namespaced(self.client.clone(), &namespace);
        let config = configs.get_opt(&chart.name_any()).await?.unwrap_or_default();
        let config = config.read_spec().map_err(ChartError::Unusable)?;
        let objects = Objects::read(&self.client, &namespace, Names::of(&spec, &config)).await?;
        let target = Target::new(&chart.name_any(), &chart.target_namespace(), &spec);
        Wanted::new(target, &spec, &config, &objects, self.api).map_err(ChartError::Unusable)
    }

    /// Carries the steps out, unless something else is wanted before they are done: a hook that hangs must not keep a user from mending it.
    async fn act(&self, steps: &'static [Step], wanted: &Wanted, chart: &HelmChart) -> Result<(), HelmError> {
        let (end, hash) = (self.end.child_token(), wanted.hash());
        let (helm, these, until) = (self.helm.clone(), wanted.clone(), end.clone());
        let run = async move {
            for step in steps {
                helm.run(*step, &these, &until).await?;
            }
            Ok(())
        };
        let mut run = self.runs.spawn(run);
        let ended = select! {
            ended = &mut run => ended,
            () = self.superseded(chart, &hash) => {
                end.cancel();
                run.await
            }
        };
        ended.unwrap_or(Err(HelmError::Ended))
    }

    /// Comes back once the chart wants something else than what has this hash.
    async fn superseded(&self, chart: &HelmChart, hash: &str) {
        let charts: Api<HelmChart> = Api::namespaced(self.client.clone(), &chart.namespace().unwrap_or_default());
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        while changes.changed().await.is_ok() {
            match charts.get_opt(&chart.name_any()).await {
                Ok(Some(now)) if now.metadata.deletion_timestamp.is_none() => {
                    if self.wanted(&now).await.is_ok_and(|wanted| wanted.hash() != hash) {
                        return;
                    }
                }
                Ok(_) => return,
                Err(_) => {}
            }
        }
        // Nobody tells any more.
        std::future::pending::<()>().await;
    }

    async fn uninstall(&self, target: &Target) -> Result<(), HelmError> {
        let (helm, target, end) = (self.helm.clone(), target.clone(), self.end.clone());
        self.runs.spawn(async move { helm.uninstall(&target, &end).await }).await.unwrap_or(Err(HelmError::Ended))
    }

    /// Nothing is wrong with it.
    fn settle(&self, chart: &HelmChart) {
        self.tries.forget(&chart.title());
        self.status.solved(&chart.title());
    }
}

impl Tries {
    /// How often what has this hash has failed.
    fn count(&self, title: &str, hash: &str) -> u32 {
        self.with(|all| all.get(title).filter(|failures| failures.hash == hash).map_or(0, |failures| failures.count))
    }

    /// It has failed: how often, and how long to wait.
    fn fail(&self, title: &str, hash: &str, why: &str) -> (u32, Duration) {
        self.with(|all| {
            let failures = all.entry(title.to_owned()).or_insert_with(|| Failures::of(hash));
            if failures.hash != hash {
                *failures = Failures::of(hash);
            }
            failures.count += 1;
            why.clone_into(&mut failures.why);
            let pause = failures.backoff.advance();
            failures.at = Instant::now() + pause;
            (failures.count, pause)
        })
    }

    /// Why what has this hash failed the last time.
    fn why(&self, title: &str, hash: &str) -> Option<String> {
        self.with(|all| {
            let failures = all.get(title).filter(|failures| failures.hash == hash && failures.count > 0)?;
            Some(failures.why.clone())
        })
    }

    /// How long what has this hash is not tried yet, whatever happens to its objects.
    fn left(&self, title: &str, hash: &str) -> Option<Duration> {
        self.with(|all| {
            let failures = all.get(title).filter(|failures| failures.hash == hash)?;
            failures.at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        })
    }

    /// Something that it needs is missing: how long to wait.
    fn pause(&self, title: &str) -> Duration {
        self.with(|all| all.entry(title.to_owned()).or_insert_with(|| Failures::of("")).backoff.advance())
    }

    fn forget(&self, title: &str) {
        self.with(|all| drop(all.remove(title)));
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<String, Failures>) -> T) -> T {
        // Nothing in here is left half done by a panic.
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Failures {
    fn of(hash: &str) -> Self {
        Self {
            hash: hash.to_owned(),
            count: 0,
            why: String::new(),
            backoff: Backoff::between(PAUSES.0, PAUSES.1),
            at: Instant::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_for_what_is_wanted() {
        let tries = Tries::default();
        assert_eq!(tries.count("a", "1"), 0);
        let (_, first) = tries.fail("a", "1", "no");
        let (count, second) = tries.fail("a", "1", "no");
        assert_eq!((count, tries.count("a", "1"), tries.count("a", "2"), tries.count("b", "1")), (2, 2, 0, 0));
        assert!(first <= 2 * PAUSES.0 && second >= 2 * PAUSES.0);
        assert!(tries.left("a", "1").unwrap() > PAUSES.0 && tries.left("a", "2").is_none());
        assert_eq!(tries.fail("a", "2", "no").0, 1, "what is wanted has changed");
        tries.forget("a");
        assert_eq!(tries.count("a", "2"), 0);
    }
}
