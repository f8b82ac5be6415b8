//! When something in a folder changes.

use std::{io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::time::{sleep, timeout};
use tracing::debug;

/// Whatever inotify does not tell, as of a link whose target is replaced, is seen after so long.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);

/// Follows folders, by inotify where there is any.
pub(crate) struct Changes {
    following: Option<(Watches, EventStream<[u8; 4096]>)>,
    settle: Duration,
}

impl Changes {
    /// Of no folder yet. What comes within `settle` of a change is told together with it.
    pub(crate) fn new(settle: Duration) -> Self {
        let open = || {
            let inotify = Inotify::init()?;
            Ok((inotify.watches(), inotify.into_event_stream([0; 4096])?))
        };
        let told = |error: &io::Error| debug!(%error, "Folders are looked at now and then only.");
        Self { following: open().inspect_err(told).ok(), settle }
    }

    /// Follows these folders too. One that goes is followed no more by itself.
    pub(crate) fn follow<'a>(&mut self, folders: impl IntoIterator<Item = &'a Path>) {
        let Some((watches, _)) = &mut self.following else { return };
        let mask = WatchMask::CREATE | WatchMask::CLOSE_WRITE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::ATTRIB;
        for folder in folders {
            if let Err(error) = watches.add(folder, mask) {
                debug!(folder = %folder.display(), %error, "A folder is looked at now and then only.");
            }
        }
    }

    /// Comes back when something has changed, or when it is time to look in any case.
    pub(crate) async fn next(&mut self) {
        let Some((_, events)) = &mut self.following else { return sleep(INTERVAL).await };
        if timeout(INTERVAL, events.next()).await.is_ok() {
            sleep(self.settle).await;
            while events.next().now_or_never().flatten().is_some() {}
        }
    }
}

/// By what a file is known to be another: device, number, length, and when it was changed in seconds and nanoseconds.
pub(crate) type Fingerprint = (u64, u64, u64, i64, i64);

/// That of the file at `path`, through links; `None` if there is none.
pub(crate) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}
