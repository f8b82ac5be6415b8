//! What those who take and delete snapshots tell the controller that writes objects of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::record::SnapshotRecord;

/// More failures are not kept while the API does not answer: the newest count.
const KEPT: usize = 32;

/// That something has changed, and what no file tells of.
#[derive(Debug, Default)]
pub(crate) struct SnapshotNotices {
    failures: Mutex<Vec<SnapshotRecord>>,
    changed: Notify,
}

impl SnapshotNotices {
    /// Files have come or gone, and these have not.
    pub(crate) fn tell(&self, failures: impl IntoIterator<Item = SnapshotRecord>) {
        let mut kept = self.failures();
        kept.extend(failures);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        drop(kept);
        self.changed.notify_one();
    }

    /// Waits until something has changed since it was waited for last.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The oldest failure that no object tells of yet.
    pub(super) fn failure(&self) -> Option<SnapshotRecord> {
        self.failures().first().cloned()
    }

    /// An object tells of it.
    pub(super) fn told(&self, failure: &SnapshotRecord) {
        self.failures().retain(|kept| kept != failure);
    }

    fn failures(&self) -> MutexGuard<'_, Vec<SnapshotRecord>> {
        // What is in it is whole whatever happened to whoever held it.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::on_disk, *};

    #[tokio::test]
    async fn the_newest_failures_are_kept_until_they_are_told() {
        let notices = SnapshotNotices::default();
        notices.tell((0..=KEPT).map(|time| on_disk(&format!("a-{time}"), "one")));
        notices.changed().await;
        let first = notices.failure().unwrap();
        assert_eq!(first.name, "a-1");
        notices.told(&first);
        assert_eq!(notices.failure().unwrap().name, "a-2");
    }
}
