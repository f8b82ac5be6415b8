//! When something in the folder of manifests changes.

use std::{path::PathBuf, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::time::{sleep, timeout};
use tracing::debug;

/// Whatever inotify does not tell (another machine's write on a shared file system, say) is seen after so long, as in k3s.
const INTERVAL: Duration = Duration::from_secs(15);
/// Tools write files one after the other: the first change is looked at after so long, together with the next.
const SETTLE: Duration = Duration::from_millis(200);

/// Follows folders.
pub(super) struct Changes(Option<Following>);

struct Following {
    watches: Watches,
    events: EventStream<[u8; 4096]>,
}

impl Changes {
    /// Without inotify (too many instances, say) changes are seen later.
    pub(super) fn new() -> Self {
        let open = || {
            let inotify = Inotify::init()?;
            Ok(Following { watches: inotify.watches(), events: inotify.into_event_stream([0; 4096])? })
        };
        let told = |error: &std::io::Error| debug!(%error, "Manifests are looked at now and then only.");
        Self(open().inspect_err(told).ok())
    }

    /// Follows these folders too. One that goes is followed no more by itself.
    pub(super) fn follow(&mut self, folders: &[PathBuf]) {
        let Some(Following { watches, .. }) = &mut self.0 else { return };
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ATTRIB;
        for folder in folders {
            if let Err(error) = watches.add(folder, mask) {
                debug!(folder = %folder.display(), %error, "A folder of manifests is looked at now and then only.");
            }
        }
    }

    /// Comes back when something has changed, or when it is time to look in any case.
    pub(super) async fn next(&mut self) {
        let Some(Following { events, .. }) = &mut self.0 else { return sleep(INTERVAL).await };
        if timeout(INTERVAL, events.next()).await.is_ok() {
            sleep(SETTLE).await;
            // What is read is told by looking at the folder.
            while events.next().now_or_never().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_change_is_told_soon() {
        let folder = tempfile::tempdir().unwrap();
        let mut changes = Changes::new();
        changes.follow(&[folder.path().to_owned()]);
        for number in 0..3 {
            fs::write(folder.path().join(format!("{number}.yaml")), "").unwrap();
            // Long before it would be looked at anyway, on a machine that has much else to do.
            timeout(INTERVAL - Duration::from_secs(1), changes.next()).await.expect("it is told");
        }
    }
}
