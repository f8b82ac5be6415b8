//! Helm as a child of the server: one run at a time a release, a few at a time in all, each in a home of its own.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k3s_files as files;
use k3s_supervise::{
    Supervisor,
    capability::Capabilities,
    program::{Limits, Program, Stop},
    status::{ExitKind, LastExit},
};
use tokio::{
    sync::{OwnedMutexGuard, Semaphore},
    task::spawn_blocking,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    command::{self, File},
    decision::Step,
    wanted::{Target, Wanted},
};

/// Runs at the same time: each takes 50 MB and more while it works.
const AT_ONCE: usize = 2;
/// What a run may take in memory. Indexes of repositories are the largest that it reads, of which those of 20 MB take half of it.
const MEMORY: u64 = 2 << 30;
/// What one file of a run may have, in bytes.
const FILE: u64 = 512 << 20;
/// How long a run may take beside the steps that have a timeout of their own: to fetch the chart, to ask for what the API serves.
const PATIENCE: Duration = Duration::from_secs(600);
/// No run takes longer, whatever its timeout.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Helm, and what it works with.
#[derive(Debug)]
pub struct Helm {
    executable: PathBuf,
    homes: PathBuf,
    kubeconfig: PathBuf,
    own_authority: PathBuf,
    supervisor: Supervisor,
    places: Semaphore,
    /// Held while Helm works on a release, by its name: two HelmCharts may name one.
    releases: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Why Helm did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelmError {
    #[error("helm {step} failed: {why}")]
    Failed { step: &'static str, why: String },
    #[error("its home cannot be made: {0}")]
    Home(#[from] io::Error),
    #[error(transparent)]
    File(#[from] files::FileError),
    /// The leader's term is over.
    #[error("this server leads no more")]
    Ended,
}

impl Helm {
    /// Helm as `executable`, with homes below the folder `homes`, which a boot may lose. It reaches the API by `kubeconfig`, and this
    /// server's own files with the authority `own_authority`.
    pub fn new(
        executable: PathBuf,
        homes: PathBuf,
        kubeconfig: PathBuf,
        own_authority: PathBuf,
        supervisor: Supervisor,
    ) -> Self {
        Self {
            executable,
            homes,
            kubeconfig,
            own_authority,
            supervisor,
            places: Semaphore::new(AT_ONCE),
            releases: Mutex::default(),
        }
    }

    /// Carries a step out, unless `end` comes: then Helm is killed, and its release is left as interrupted.
    pub(crate) async fn run(&self, step: Step, wanted: &Wanted, end: &CancellationToken) -> Result<(), HelmError> {
        let own_authority = files::read(&self.own_authority)?.unwrap_or_default();
        let files = if step == Step::Uninstall { Vec::new() } else { command::files(wanted, &own_authority) };
        self.run_in_home(step, &wanted.target, files, command::runs(step, wanted), end).await
    }

    /// As [`Self::run`], for a release of which only the name is known.
    pub(crate) async fn uninstall(&self, target: &Target, end: &CancellationToken) -> Result<(), HelmError> {
        self.run_in_home(Step::Uninstall, target, Vec::new(), vec![command::uninstall(target)], end).await
    }

    async fn run_in_home(
        &self,
        step: Step,
        target: &Target,
        files: Vec<File>,
        runs: Vec<Vec<String>>,
        end: &CancellationToken,
    ) -> Result<(), HelmError> {
        // No other release has this name: a namespace has no dot.
        let name = format!("helm-{}.{}", target.namespace, target.name);
        let Some(_turn) = end.run_until_cancelled(self.turn(&name)).await else {
            return Err(HelmError::Ended);
        };
        // Never closed.
        let Some(Ok(_place)) = end.run_until_cancelled(self.places.acquire()).await else {
            return Err(HelmError::Ended);
        };
        let home = self.homes.join(&name);
        let made = home.clone();
        on_a_thread(move || make_home(&made, &files)).await?;
        let mut result = Ok(());
        for args in runs {
            result = self.run_once(step, target, &name, &home, args, end).await;
            if result.is_err() {
                break;
            }
        }
        // What is left of it is removed before the next run.
        let _ = on_a_thread(move || fs::remove_dir_all(home)).await;
        result
    }

    /// The right to work on a release.
    async fn turn(&self, name: &str) -> OwnedMutexGuard<()> {
        let release = {
            let mut releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
            releases.retain(|_, release| Arc::strong_count(release) > 1);
            releases.entry(name.to_owned()).or_default().clone()
        };
        release.lock_owned().await
    }

    async fn run_once(
        &self,
        step: Step,
        target: &Target,
        name: &str,
        home: &Path,
        args: Vec<String>,
        end: &CancellationToken,
    ) -> Result<(), HelmError> {
        let environment = command::environment(home, &self.kubeconfig, target);
        let program = Program {
            args: args.into_iter().map(Into::into).collect(),
            env: environment.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            working_dir: Some(home.to_owned()),
            stop: Stop { timeout: Duration::from_secs(10), ..Stop::default() },
            cpu_weight: 50,
            // What a repository or registry sends is a stranger's, and Helm reads it whole.
            limits: Limits { memory: Some(MEMORY), file: Some(FILE) },
            // It is run again where it ends early, and no pod is.
            oom_score_adj: Some(300),
            capabilities: Capabilities::Only(Vec::new()),
            ..Program::new(name, &self.executable)
        };
        info!(release = target.name, namespace = target.namespace, step = step.as_str(), "Helm begins.");
        let patience = target.timeout.saturating_mul(2).saturating_add(PATIENCE).min(LONGEST);
        let begun = Instant::now();
        let exit = self.supervisor.run_once(program, patience, end).await;
        debug!(release = target.name, namespace = target.namespace, %exit, "Helm has ended.");
        match exit.how {
            ExitKind::Code(0) => Ok(()),
            _ if end.is_cancelled() => Err(HelmError::Ended),
            _ if begun.elapsed() >= patience => {
                let why = format!("it had not ended after {} minutes, which is all it gets", patience.as_secs() / 60);
                Err(HelmError::Failed { step: step.as_str(), why })
            }
            _ => Err(HelmError::Failed { step: step.as_str(), why: reason(&exit) }),
        }
    }
}

/// Helm's own words where it has some.
fn reason(exit: &LastExit) -> String {
    let words = exit.last_words.as_deref().map(|words| words.strip_prefix("Error: ").unwrap_or(words));
    match (&exit.how, words) {
        (ExitKind::Code(2), Some(words))
            if words.contains("out of memory") || words.contains("cannot allocate memory") =>
        {
            format!(
                "it needs more than {} GiB of memory for this chart or its repository's index, and gets no more",
                MEMORY >> 30
            )
        }
        // Helm itself does not say why.
        (ExitKind::Code(_), Some(words)) if words.ends_with("unable to load chart archive") => {
            format!("{words}: it is damaged, has files outside of its folder, or more than 100 MiB once it is unpacked")
        }
        (ExitKind::Code(_), Some(words)) => words.to_owned(),
        _ => exit.to_string(),
    }
}

/// A new and empty folder with these files, for its owner alone.
fn make_home(home: &Path, contents: &[File]) -> io::Result<()> {
    match fs::remove_dir_all(home) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    for (name, content) in contents {
        files::write(&home.join(name), content, files::PRIVATE).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(())
}

async fn on_a_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use k3s_supervise::{Options, cgroup::CgroupPlace, log::Target as LogTarget};
    use serde_json::json;

    use super::*;
    use crate::wanted::tests::wanted;

    /// A stand-in for Helm, which says what it was given.
    fn helm(dir: &Path, script: &str) -> Helm {
        let executable = dir.join("helm");
        fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
        let options = Options { log: LogTarget::Stderr, cgroups: CgroupPlace::Nowhere };
        let supervisor = Supervisor::new(options).unwrap();
        Helm::new(executable, dir.join("homes"), dir.join("kubeconfig"), dir.join("ca.crt"), supervisor)
    }

    #[tokio::test]
    async fn helm_finds_its_files_and_nothing_of_them_stays() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat values-*.yaml > {0}; echo \"$1 $HELM_DRIVER $PWD\" >> {0}", out.display());
        let helm = helm(dir.path(), &script);
        let wanted = wanted(json!({"chart": "oci://r.lan/app", "valuesContent": "a: 1\n"}));
        helm.run(Step::Install, &wanted, &CancellationToken::new()).await.unwrap();
        let home = dir.path().join("homes/helm-kube-system.app");
        assert_eq!(fs::read_to_string(out).unwrap(), format!("a: 1\ninstall secret {}\n", home.display()));
        assert!(!home.exists());
    }

    #[tokio::test]
    async fn a_failure_is_told_in_helms_words() {
        let dir = tempfile::tempdir().unwrap();
        let helm = helm(dir.path(), "echo some line; echo 'Error: UPGRADE FAILED: no such image' >&2; exit 1");
        let wanted = wanted(json!({"chart": "oci://r.lan/app"}));
        let error = helm.run(Step::Upgrade, &wanted, &CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "helm upgrade failed: UPGRADE FAILED: no such image");
    }

    #[tokio::test]
    async fn two_charts_of_one_release_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let busy = dir.path().join("busy");
        let helm =
            helm(dir.path(), &format!("mkdir {0} && sleep 0.3 && test -e values-* && rmdir {0}", busy.display()));
        let wanted = wanted(json!({"chart": "oci://r.lan/app", "valuesContent": "a: 1"}));
        let end = CancellationToken::new();
        let (one, other) = tokio::join!(helm.run(Step::Install, &wanted, &end), helm.run(Step::Upgrade, &wanted, &end));
        one.and(other).unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_term_ends_helm() {
        let dir = tempfile::tempdir().unwrap();
        let helm = helm(dir.path(), "exec sleep 1000");
        let end = CancellationToken::new();
        let wanted = wanted(json!({"chart": "oci://r.lan/app"}));
        let (ended, ()) = tokio::join!(helm.run(Step::Install, &wanted, &end), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            end.cancel();
        });
        assert!(matches!(ended, Err(HelmError::Ended)));
    }
}
