//! What became of each manifest, and when one that failed is tried again.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use k3s_supervise::Backoff;
use tokio::time::Instant;

use super::folder::ManifestFile;

/// Between attempts with one file at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Files that are to be tried again within so long are looked at together.
const TOGETHER: Duration = Duration::from_millis(200);

/// By path.
#[derive(Debug, Default)]
pub(super) struct Outcomes(HashMap<PathBuf, Known>);

/// What became of a file, as it was when it was last looked at.
#[derive(Debug)]
struct Known {
    file: ManifestFile,
    /// `None` if it is done.
    retry: Option<Box<Retry>>,
}

/// When a file that failed is tried again.
#[derive(Debug)]
struct Retry {
    backoff: Backoff,
    at: Instant,
    why: String,
}

impl Outcomes {
    /// Whether a file has changed, or failed and is to be tried again.
    pub(super) fn is_due(&self, file: &ManifestFile) -> bool {
        match self.0.get(&file.path) {
            Some(known) if known.file == *file => {
                known.retry.as_ref().is_some_and(|retry| retry.at <= Instant::now() + TOGETHER)
            }
            _ => true,
        }
    }

    /// Whether some state of the file was applied in this process' life, and nothing has failed since.
    pub(super) fn is_done(&self, file: &ManifestFile) -> bool {
        self.0.get(&file.path).is_some_and(|known| known.retry.is_none())
    }

    /// Why it failed, if it has.
    pub(super) fn why(&self, file: &ManifestFile) -> Option<&str> {
        self.0.get(&file.path)?.retry.as_ref().map(|retry| &*retry.why)
    }

    /// Remembers what became of a file, and says when it is tried again if it failed.
    pub(super) fn settle(&mut self, file: ManifestFile, result: Result<(), String>) -> Option<Instant> {
        let before = self.0.remove(&file.path).and_then(|known| known.retry);
        let retry = result.err().map(|why| {
            let mut backoff = before.map_or_else(|| Backoff::between(PAUSES.0, PAUSES.1), |retry| retry.backoff);
            Box::new(Retry { at: Instant::now() + backoff.advance(), backoff, why })
        });
        let at = retry.as_ref().map(|retry| retry.at);
        self.0.insert(file.path.clone(), Known { file, retry });
        at
    }

    /// Forgets files that are not there any more, and says which.
    pub(super) fn forget(&mut self, is_there: impl Fn(&Path) -> bool) -> Vec<ManifestFile> {
        let gone = self.0.extract_if(|path, _| !is_there(path));
        gone.map(|(_, known)| known.file).collect()
    }

    /// When one of these is to be tried again.
    pub(super) fn earliest_retry<'a>(&self, there: impl IntoIterator<Item = &'a ManifestFile>) -> Option<Instant> {
        let retries = there.into_iter().filter_map(|file| Some(self.0.get(&file.path)?.retry.as_ref()?.at));
        retries.min()
    }
}
