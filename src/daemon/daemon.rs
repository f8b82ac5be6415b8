//! From the lock to the end.

use std::{fs::File, sync::Arc, time::Duration};

use k3s_components::Paths;
use k3s_config::Role;
use k3s_supervise::{Options, Supervisor, notify::Notifier, status};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{Error, clock::LastKnownTime, lock::lock, report::report};

/// How long the service manager is asked to bear with a stop.
pub const STOP: Duration = Duration::from_secs(90);

/// What has to be ours before a role can begin.
pub struct Daemon {
    notifier: Arc<Notifier>,
    supervisor: Supervisor,
    status: UnixListener,
    clock: LastKnownTime,
    /// The kernel lets go of it with the process.
    _lock: File,
}

impl Daemon {
    /// Locks the role's directory, takes the status socket, and makes what runs children.
    ///
    /// # Errors
    /// Another k3s runs on this machine or directory, or the directory or the service manager's socket cannot be used.
    pub fn prepare(role: Role, paths: &Paths) -> Result<Self, Error> {
        let notifier = Arc::new(Notifier::from_env()?);
        let lock = lock(role, paths)?;
        let status = status::bind(&paths.status_socket()).map_err(Error::file(paths.status_socket()))?;
        let supervisor = Supervisor::new(Options::default()).map_err(Error::Thread)?;
        Ok(Self { notifier, supervisor, status, clock: LastKnownTime::new(paths.data()), _lock: lock })
    }

    /// What runs children and tasks.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// The service manager.
    pub fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    /// Waits for the clock and does `life`, and tells meanwhile how things are. Where `shutdown` comes before the clock is right, nothing
    /// has begun.
    ///
    /// # Errors
    /// Those of `life`.
    pub async fn run<E: From<Error>>(
        self,
        life: impl Future<Output = Result<(), E>>,
        shutdown: &CancellationToken,
    ) -> Result<(), E> {
        let Self { notifier, supervisor, status, clock, _lock } = self;
        // What is waited for is told from the first moment to the last.
        let reported = CancellationToken::new();
        let live = async {
            let ended = match clock.wait(&supervisor, shutdown).await {
                // Boxed: in a build that is not optimised a large future takes its whole size on the stack of every other one that holds it.
                Ok(true) => clock.keep_during(Box::pin(life)).await,
                Ok(false) => Ok(()),
                Err(error) => Err(Error::from(error).into()),
            };
            reported.cancel();
            ended
        };
        let (ended, ()) = tokio::join!(live, report(status, &notifier, &supervisor, &reported));
        info!("Stopped.");
        ended
    }
}
