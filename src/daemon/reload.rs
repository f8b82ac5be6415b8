//! Reading the configuration again while a role runs, for `systemctl reload` and SIGHUP.
//!
//! ```text
//! SIGHUP ─► RELOADING=1 ─► read ─┬─ valid ─► the role takes it over ─┬─► READY=1
//!                                └─ not ──► refused by a sentence ───┘
//! ```
//! A configuration that is refused changes nothing. What became of the last one is in the status until the next.

use std::{error::Error, io, sync::Arc};

use k3s_config::reload::{Changes, Effect};
use k3s_supervise::{Supervisor, notify::Notifier};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
};
use tracing::{error, info, warn};

use crate::Daemon;

/// The key of its warnings.
const KEY: &str = "reload";

type Read<C> = dyn Fn() -> Result<C, String> + Send + Sync;

/// Where a configuration of kind `C` comes from each time that somebody asks for a reload.
pub struct ConfigSource<C> {
    hangups: Signal,
    read: Arc<Read<C>>,
}

impl<C> ConfigSource<C> {
    /// Takes SIGHUP, which from now on ends nothing; `read` reads every source of the configuration, or says in a sentence what is wrong.
    ///
    /// # Errors
    /// The signal cannot be received. Needs a runtime with I/O.
    pub fn on_hangup(read: impl Fn() -> Result<C, String> + Send + Sync + 'static) -> io::Result<Self> {
        Ok(Self { hangups: signal(SignalKind::hangup())?, read: Arc::new(read) })
    }
}

/// The reloads of a role that runs.
pub struct Reloads<C> {
    source: ConfigSource<C>,
    notifier: Arc<Notifier>,
    supervisor: Supervisor,
}

impl Daemon {
    /// What is asked for by `source`, told where this process tells all else.
    pub fn reloads<C>(&self, source: ConfigSource<C>) -> Reloads<C> {
        Reloads { source, notifier: self.notifier().clone(), supervisor: self.supervisor().clone() }
    }
}

impl<C: Send + 'static> Reloads<C> {
    /// Waits until a reload is asked for. Cancel-safe.
    pub async fn asked(&mut self) {
        if self.source.hangups.recv().await.is_none() {
            // The runtime ends.
            std::future::pending::<()>().await;
        }
    }

    /// Reads the configuration and has `apply` take it over, and tells what became of it.
    pub async fn reload<E: Error>(&self, apply: impl AsyncFnOnce(C) -> Result<Changes, E>) {
        self.notifier.reloading();
        let read = self.source.read.clone();
        let asked = spawn_blocking(move || read()).await.unwrap_or_else(|ended| Err(ended.to_string()));
        match asked {
            Ok(asked) => match apply(asked).await {
                Ok(changes) => self.tell(&changes),
                Err(error) => self.refuse(&sentence(&error)),
            },
            Err(why) => self.refuse(&why),
        }
        self.notifier.reloaded();
    }

    fn tell(&self, changes: &Changes) {
        let taken = changes.flags(|effect| effect != Effect::NextStart);
        info!(changed = taken.as_deref().unwrap_or("nothing"), "Reloaded the configuration.");
        let sentences: Vec<_> = [
            (Effect::NextStart, "counts only when k3s starts again: restart it."),
            (
                Effect::Registration,
                "counts when the node registers: set the taints of one that is there with `k3s kubectl taint node`.",
            ),
        ]
        .into_iter()
        .filter_map(|(effect, sentence)| {
            Some(format!("What has changed of {} {sentence}", changes.flags(|is| is == effect)?))
        })
        .collect();
        if sentences.is_empty() {
            self.supervisor.clear(KEY);
        } else {
            sentences.iter().for_each(|sentence| warn!("{sentence}"));
            self.supervisor.warn(KEY, sentences.join(" "));
        }
    }

    fn refuse(&self, why: &str) {
        error!(error = why, "The configuration is refused, and everything stays as it is.");
        self.supervisor.warn(KEY, format!("The last reload was refused, and everything stayed as it was: {why}"));
    }
}

/// An error with its causes, each once: some tell of theirs themselves.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{ffi::OsStrExt as _, net::UnixDatagram},
        sync::Mutex,
    };

    use k3s_supervise::{Options, cgroup::CgroupPlace, log::Target};
    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    /// A service manager, and what this process tells it and its users.
    struct Manager {
        dir: tempfile::TempDir,
        socket: UnixDatagram,
        supervisor: Supervisor,
    }

    impl Manager {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            let options = Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere };
            Self { socket, supervisor: Supervisor::new(options).unwrap(), dir }
        }

        fn reloads<C>(&self, source: ConfigSource<C>) -> Reloads<C> {
            let path = self.dir.path().join("notify");
            let notifier = Notifier::new(Some(path.as_os_str().as_bytes()), None).unwrap();
            Reloads { source, notifier: Arc::new(notifier), supervisor: self.supervisor.clone() }
        }

        fn heard(&self) -> Vec<String> {
            let mut message = [0; 512];
            let next =
                std::iter::from_fn(|| self.socket.recv(&mut message).ok().map(|length| message[..length].to_vec()));
            next.map(|message| String::from_utf8(message).unwrap()).collect()
        }

        async fn warnings(&self) -> Vec<String> {
            self.supervisor.status().await.warnings
        }
    }

    #[tokio::test]
    async fn a_reload_is_told_from_its_beginning_to_its_end_and_a_refusal_with_its_sentence() {
        let manager = Manager::new();
        let file = Arc::new(Mutex::new(Ok::<_, &str>("two")));
        let source = {
            let file = file.clone();
            ConfigSource::on_hangup(move || file.lock().unwrap().map_err(str::to_owned)).unwrap()
        };
        let mut reloads = manager.reloads(source);
        let taken = Mutex::new(Vec::new());
        let apply = async |config| {
            taken.lock().unwrap().push(config);
            Ok::<_, io::Error>(Changes::default())
        };

        raise(Number::SIGHUP).unwrap();
        reloads.asked().await;
        reloads.reload(apply).await;
        assert_eq!(manager.heard(), Vec::<String>::new(), "a service that starts is not ready yet");

        reloads.notifier.ready();
        reloads.reload(apply).await;
        let heard = manager.heard();
        assert_eq!(heard.len(), 3, "{heard:?}");
        assert!(heard[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        assert_eq!(heard[2], "READY=1");
        assert_eq!(*taken.lock().unwrap(), ["two", "two"]);

        *file.lock().unwrap() = Err("config.yaml: no such option");
        reloads.reload(apply).await;
        assert_eq!(taken.lock().unwrap().len(), 2);
        assert_eq!(manager.heard().last().unwrap(), "READY=1", "it goes on");
        assert_eq!(
            manager.warnings().await,
            ["The last reload was refused, and everything stayed as it was: config.yaml: no such option"]
        );
        *file.lock().unwrap() = Ok("three");
        reloads.reload(apply).await;
        assert_eq!(manager.warnings().await, Vec::<String>::new());
    }
}
