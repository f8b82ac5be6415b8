//! `k3s os update`: a set into the slot that does not run.

use std::{path::PathBuf, process::ExitCode};

use k3s_components::Paths;
use k3s_config::Role;
use k3s_os::{Machine, Part, SetError, UpdateError};
use k3s_server::snapshots;
use tokio::task::spawn_blocking;

use super::{
    super::{
        Failure,
        environment::{environment, refused},
        failure::{DATA_ERROR, IO_ERROR, SOFTWARE, UNAVAILABLE},
        globals::Globals,
        location::NodeFlags,
        output::{line, tell},
        runtime,
    },
    failure,
    reboot::Reboot,
    source::Source,
};
use crate::version;

/// What the snapshot of before is called; the node's name and the time follow.
const SNAPSHOT: &str = "before-update";
/// Bytes between two lines of progress.
const PROGRESS: u64 = 100_000_000;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// A set, k3s_VERSION.update: a path, or an address that begins with https:// or http://
    #[arg(value_name = "FILE|URL")]
    source: Source,
    /// Take no snapshot of the datastore before
    #[arg(long)]
    no_snapshot: bool,
    #[command(flatten)]
    reboot: Reboot,
    #[command(flatten)]
    node: NodeFlags,
}

pub(super) fn run(options: Options, globals: Globals) -> Result<ExitCode, Failure> {
    let Options { source, no_snapshot, reboot, node } = options;
    runtime::log(globals.debug);
    let paths = Paths::new(node.locate(globals)?.data_dir, Paths::RUN);
    runtime::run(async {
        let machine = Machine::at("/");
        let reader = source.open().await?;
        let installed = spawn_blocking(|| Machine::at("/").install(reader, Progress::default().told()));
        let installed = installed.await.map_err(|error| Failure::new(SOFTWARE, error.to_string()))?;
        let installed = installed.map_err(|error| not_updated(&error))?;
        let is_server = machine.role() == Some(Role::Server);
        let snapshot = if no_snapshot || !is_server { None } else { snapshot_datastore().await? };
        if let Some(path) = &snapshot {
            line(format_args!("Saved {}.", path.display()))?;
        }
        machine.begin_update(installed.version(), snapshot).map_err(|error| failure(&error))?;
        let version = installed.commit().map_err(|error| not_updated(&error))?;
        line(format_args!("{version} is in the other slot, and the next start is of it."))?;
        reboot.run(&machine, &paths).await
    })
}

/// None where the cluster's data is not on this machine.
async fn snapshot_datastore() -> Result<Option<PathBuf>, Failure> {
    let (config, _) = k3s_config::parse_server([], &environment()?).map_err(|error| refused(&error))?;
    match snapshots::save(&config, SNAPSHOT, version::KUBERNETES).await {
        Ok(snapshot) => {
            // Of these a few are enough.
            if let Err(error) = snapshots::prune(&config, SNAPSHOT).await {
                tell(format_args!("Older snapshots are kept: {error}"));
            }
            Ok(Some(snapshot.path))
        }
        Err(k3s_server::Error::KeptElsewhere) => Ok(None),
        Err(error) => {
            let failure = Failure::from_error(error.exit_code(), &error);
            let sentence =
                format!("no snapshot could be taken, and nothing was updated: {failure}; --no-snapshot goes without");
            Err(Failure::new(error.exit_code(), sentence))
        }
    }
}

fn not_updated(error: &UpdateError) -> Failure {
    let code = match error {
        UpdateError::Machine(error) => return failure(error),
        UpdateError::Set(SetError::Read(_) | SetError::Write { .. }) | UpdateError::NotKept { .. } => IO_ERROR,
        UpdateError::Set(_) => DATA_ERROR,
        _ => UNAVAILABLE,
    };
    Failure::from_error(code, error)
}

/// A line for each part, and for each [`PROGRESS`] of it.
#[derive(Default)]
struct Progress(Option<(Part, u64)>);

impl Progress {
    fn told(mut self) -> impl FnMut(Part, u64) {
        move |part, bytes| {
            let step = (part, bytes / PROGRESS);
            if self.0 != Some(step) {
                self.0 = Some(step);
                tell(format_args!("{part}: {} MB", bytes / 1_000_000));
            }
        }
    }
}
