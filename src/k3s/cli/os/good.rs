//! `k3s os good`: whether the version that runs is good.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{ExitCode, Stdio},
    time::Duration,
};

use k3s_components::Paths;
use k3s_os::{Assessment, Machine, Trial, Verdict};
use k3s_supervise::status::{Health, fetch};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};
use tracing::info;

use super::{
    super::{Failure, duration, failure::UNAVAILABLE, globals::Globals, location::NodeFlags, output::line, runtime},
    failure,
    own_node::OwnNode,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// For the API's answer, and for the user's check.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a user may want of a version besides.
const CHECK: &str = "/etc/rancher/k3s/os-check";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    node: NodeFlags,
    /// How long all of it has to hold
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    hold: Duration,
    /// When this has to have begun, since this command started
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    within: Duration,
}

pub(super) fn run(options: Options, globals: Globals) -> Result<ExitCode, Failure> {
    runtime::log(globals.debug);
    let machine = Machine::at("/");
    let version = machine.version().map_err(|error| failure(&error))?;
    let assessment = machine.assessment().map_err(|error| failure(&error))?;
    let node = WatchedNode { paths: Paths::new(options.node.locate(globals)?.data_dir, Paths::RUN), machine };
    let judge = |trial, wanted| runtime::run(async { Ok(node.judge(trial, wanted).await) });
    let judged = match assessment {
        Assessment::Good => {
            if node.is_awaited().map_err(|error| failure(&error))? {
                // Nothing depends on it.
                let _ = judge(Trial::new(Duration::ZERO, Duration::MAX), Wanted::Node)?;
            }
            line(format_args!("{version} is good: its starts are not counted."))?;
            return Ok(ExitCode::SUCCESS);
        }
        Assessment::OnTrial { .. } => judge(Trial::new(options.hold, options.within), Wanted::Version)?,
        // There is nothing else to start.
        Assessment::Bad { .. } => judge(Trial::new(options.hold, Duration::MAX), Wanted::Version)?,
    };
    if let Err(reason) = judged {
        node.machine.give_up(&reason).map_err(|error| failure(&error))?;
        let sentence = format!("{version} is not good, and is given up: {reason}; the next start is of the other slot");
        return Err(Failure::new(UNAVAILABLE, sentence));
    }
    node.machine.accept().map_err(|error| failure(&error))?;
    line(format_args!("{version} is good."))?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// All that this machine can bring by itself: the first server of a cluster, with etcd alone, has no node before another server joins,
    /// which may be in a week.
    Version,
    /// The node too, for which something is left to do.
    Node,
}

/// The node whose being well decides.
struct WatchedNode {
    paths: Paths,
    machine: Machine,
}

impl WatchedNode {
    /// Looks until it is decided; what did not hold is the error.
    async fn judge(&self, mut trial: Trial, wanted: Wanted) -> Result<(), String> {
        let (began, mut said) = (Instant::now(), String::new());
        loop {
            let observed = self.look(wanted).await;
            let news = observed
                .as_ref()
                .err()
                .map_or_else(|| "Everything holds.".to_owned(), |why| format!("Not yet: {why}."));
            if news != said {
                info!("{news}");
                said = news;
            }
            match trial.observe(began.elapsed(), observed) {
                Verdict::Open => sleep(PAUSE).await,
                Verdict::Good => return Ok(()),
                Verdict::Failed(reason) => return Err(reason),
            }
        }
    }

    async fn look(&self, wanted: Wanted) -> Result<(), String> {
        let status = fetch(&self.paths.status_socket()).await.map_err(|error| format!("k3s does not run ({error})"))?;
        if wanted == Wanted::Version && status.waits_for_others() {
            return users_check(Path::new(CHECK)).await;
        }
        if status.health != Health::Ready {
            return Err(format!("k3s is not ready ({})", status.headline.trim_end_matches('.')));
        }
        match timeout(PATIENCE, self.look_at_node()).await {
            Ok(ready) => ready?,
            Err(_) => return Err("the API does not answer".to_owned()),
        }
        users_check(Path::new(CHECK)).await
    }

    /// Whether something is left to do once the node is Ready.
    fn is_awaited(&self) -> Result<bool, k3s_os::Error> {
        Ok(self.machine.is_cordoned() || !self.machine.news()?.is_empty())
    }

    /// Pods come back as soon as there is somewhere to come back to: they may be what the user's check looks at.
    async fn look_at_node(&self) -> Result<(), String> {
        let Some(node) = OwnNode::connect(&self.paths).await? else { return Ok(()) };
        node.require_ready().await?;
        if self.machine.is_cordoned() {
            node.cordon(false).await?;
            self.machine.set_cordoned(false).map_err(|error| error.to_string())?;
            info!("The node takes pods again.");
        }
        for news in self.machine.news().map_err(|error| error.to_string())? {
            node.tell(&news).await?;
        }
        self.machine.clear_news().map_err(|error| error.to_string())?;
        Ok(())
    }
}

async fn users_check(check: &Path) -> Result<(), String> {
    if !fs::metadata(check).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0) {
        return Ok(());
    }
    let mut command = Command::new(check);
    command.stdin(Stdio::null()).kill_on_drop(true);
    match timeout(PATIENCE, command.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{} says no ({status})", check.display())),
        Ok(Err(error)) => Err(format!("{} cannot be run ({error})", check.display())),
        Err(_) => Err(format!("{} did not end within {} s", check.display(), PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k3s_supervise::{Options, Supervisor, status};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_first_server_of_etcd_alone_is_good_before_another_server_joins() {
        let dir = tempfile::tempdir().unwrap();
        let node = WatchedNode { paths: Paths::new(dir.path(), dir.path()), machine: Machine::at(dir.path()) };
        assert!(node.look(Wanted::Version).await.unwrap_err().starts_with("k3s does not run ("));
        let supervisor = Supervisor::new(Options::default()).unwrap();
        let gate = supervisor.gate("kube-apiserver").unwrap();
        let socket = Arc::new(status::bind(&node.paths.status_socket()).unwrap());
        let end = CancellationToken::new();
        let served = tokio::spawn(status::serve(socket, supervisor, end.clone()));

        gate.waiting_for_others("no server with kube-apiserver has joined yet");
        assert_eq!(node.look(Wanted::Version).await, Ok(()));
        assert!(
            node.look(Wanted::Node).await.unwrap_err().contains("has joined yet"),
            "it has no node to tell things of"
        );
        gate.waiting("the API server does not answer");
        let missing = "k3s is not ready (Starting: waiting for kube-apiserver (the API server does not answer))";
        assert_eq!(node.look(Wanted::Version).await, Err(missing.to_owned()));
        end.cancel();
        served.await.unwrap();
    }
}
