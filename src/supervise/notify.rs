//! What systemd is told about us (`sd_notify(3)`).

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Supervisor;

/// The service manager's notification socket. Without one, all of this does nothing.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    was_ready: AtomicBool,
}

/// A `NOTIFY_SOCKET` that cannot be spoken to.
#[derive(Debug, thiserror::Error)]
#[error("NOTIFY_SOCKET={address} cannot be used: {source}")]
pub struct NotifyError {
    address: String,
    source: io::Error,
}

impl Notifier {
    /// As `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say.
    ///
    /// # Errors
    /// A variable is not what systemd makes of it, or the socket cannot be used.
    pub fn from_env() -> Result<Self, NotifyError> {
        let address = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        let watchdog = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        Self::new(address.as_deref().map(OsStrExt::as_bytes), watchdog)
    }

    /// With a path, or a name after `@` in the abstract namespace; `watchdog` is how long silence is tolerated.
    ///
    /// # Errors
    /// The address is none, or no socket can be made.
    pub fn new(address: Option<&[u8]>, watchdog: Option<Duration>) -> Result<Self, NotifyError> {
        let open = |address: &[u8]| {
            let peer = match address {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                path => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(path)))?,
            };
            let socket = UnixDatagram::unbound()?;
            // systemd reads at once or not at all: waiting for it would stop us.
            socket.set_nonblocking(true)?;
            Ok((socket, peer))
        };
        let socket = address
            .map(|address| {
                open(address)
                    .map_err(|source| NotifyError { address: String::from_utf8_lossy(address).into_owned(), source })
            })
            .transpose()?;
        Ok(Self { socket, watchdog, was_ready: AtomicBool::new(false) })
    }

    /// Start-up is over.
    pub fn ready(&self) {
        self.was_ready.store(true, Ordering::Relaxed);
        self.send(&NotifyState::Ready);
    }

    /// The configuration is read again, with the time that `Type=notify-reload` compares with its signal's; [`Notifier::reloaded`] is
    /// next. While the service starts there is nothing to say: READY is yet to come.
    pub fn reloading(&self) {
        if self.was_ready.load(Ordering::Relaxed) {
            // One datagram: systemd reads the time with the word (sd_notify(3)).
            let words = [Some(NotifyState::Reloading), NotifyState::monotonic_usec_now().ok()];
            self.send_text(&words.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        }
    }

    /// The reload is over, whatever came of it: the service goes on.
    pub fn reloaded(&self) {
        if self.was_ready.load(Ordering::Relaxed) {
            self.send(&NotifyState::Ready);
        }
    }

    /// One line about what is going on.
    pub fn status(&self, line: &str) {
        self.send(&NotifyState::Status(&line.replace('\n', " ")));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send(&NotifyState::Stopping);
    }

    /// Start or stop takes longer than usual: so much more, from now on.
    pub fn extend_timeout(&self, more: Duration) {
        self.send(&NotifyState::ExtendTimeoutUsec(more.as_micros().try_into().unwrap_or(u32::MAX)));
    }

    /// Passes `lines` on as STATUS as they change.
    pub async fn follow(&self, mut lines: watch::Receiver<String>, shutdown: CancellationToken) {
        if self.socket.is_none() {
            return;
        }
        lines.mark_changed();
        while let Some(Ok(())) = shutdown.run_until_cancelled(lines.changed()).await {
            let line = lines.borrow_and_update().clone();
            self.status(&line);
        }
    }

    /// Attests, at a quarter of the interval that the unit's `WatchdogSec=` grants, that this runtime and every child's state machine
    /// advance; how well the children are is not asked. Comes back at once if there is no watchdog.
    pub async fn watchdog(&self, supervisor: &Supervisor, shutdown: CancellationToken) {
        let (Some(interval), Some(_)) = (self.watchdog, &self.socket) else { return };
        // What is left is for a machine so busy that this runs late: killing us would make it busier.
        let mut ticks = time::interval(interval / 4);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            match shutdown.run_until_cancelled(time::timeout(interval / 2, supervisor.pulse())).await {
                Some(Ok(None)) => self.send(&NotifyState::Watchdog),
                Some(Ok(Some(name))) => {
                    warn!(component = name, "The component's supervision has ended: the watchdog is not served.");
                }
                Some(Err(_)) => warn!("A component's supervision does not advance: the watchdog is not served."),
                None => break,
            }
        }
    }

    /// By a socket of our own: `sd_notify::notify` knows no abstract addresses, which containers have, and waits where nobody reads.
    fn send(&self, message: &NotifyState<'_>) {
        self.send_text(&message.to_string());
    }

    fn send_text(&self, message: &str) {
        let Some((socket, peer)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), peer) {
            warn!(%error, %message, "The service manager could not be told.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    fn text(socket: &UnixDatagram) -> String {
        let mut message = [0; 512];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    #[test]
    fn systemd_hears_at_a_path_or_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("k3s-test-{}", std::process::id());
        let at_path = (UnixDatagram::bind(&path).unwrap(), path.into_os_string().into_encoded_bytes());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstracted = (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into_bytes());
        for (socket, address) in [at_path, abstracted] {
            let notifier = Notifier::new(Some(&address), None).unwrap();
            notifier.ready();
            notifier.status("Starting: waiting for\nkubelet.");
            notifier.extend_timeout(Duration::from_secs(30));
            notifier.stopping();
            let heard: Vec<_> = (0..4).map(|_| text(&socket)).collect();
            assert_eq!(
                heard,
                ["READY=1", "STATUS=Starting: waiting for kubelet.", "EXTEND_TIMEOUT_USEC=30000000", "STOPPING=1"]
            );
        }
    }

    #[test]
    fn an_address_too_long_is_named() {
        let error = Notifier::new(Some(&[b'x'; 200]), None).unwrap_err().to_string();
        assert!(error.starts_with("NOTIFY_SOCKET=xxx"), "{error}");
    }

    #[tokio::test]
    async fn the_watchdog_is_served_while_a_child_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str().as_bytes()), Some(Duration::from_millis(2))).unwrap();
        let supervisor = Supervisor::example();
        supervisor.start([Program::example("fails", "exit 1")]).unwrap();
        let shutdown = CancellationToken::new();
        let told = async {
            let mut message = [0; 64];
            for _ in 0..5 {
                let length = socket.recv(&mut message).await.unwrap();
                assert_eq!(&message[..length], b"WATCHDOG=1");
            }
            shutdown.cancel();
        };
        tokio::join!(notifier.watchdog(&supervisor, shutdown.clone()), told);
        supervisor.stop().await;
    }
}
