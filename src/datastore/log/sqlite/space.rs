//! The size of the files: moving the write-ahead log into the table, giving free pages back.

use super::open::{FULL, INCREMENTAL};
use super::{SqliteLog, at};
use crate::error::Error;

/// Size of the write-ahead log at which it is copied into the table, in bytes. The file grows to it once.
pub(super) const WAL_BYTES: i64 = 512 << 10;
/// Free pages are given back to the file system when they are more than this part of the file…
const FREE_PART: i64 = 4;
/// …and more than this, in bytes: smaller holes are soon filled again.
const FREE_BYTES: i64 = 4 << 20;
/// A step of that: it holds writers up.
const VACUUM_STEP: &str = "PRAGMA incremental_vacuum(512)";
/// SQLite looks for each page of a step through the whole list of free ones. From this many on that takes longer than moving what is in
/// use, all at once.
const LONG_LIST: i64 = 1 << 14;
/// What may be moved at once while writers wait, in bytes: about a second. A larger file is left to [`SqliteLog::defragment`].
const MOVED_AT_ONCE: i64 = 64 << 20;

impl SqliteLog {
    /// Copies the write-ahead log into the table once it is long enough; readers are not held up.
    pub(crate) fn checkpoint_if_due(&self) -> Result<(), Error> {
        let frames: i64 = self.query("PRAGMA wal_checkpoint(NOOP)", 1)?;
        if frames.saturating_mul(self.page_size) >= WAL_BYTES {
            self.query("PRAGMA wal_checkpoint(PASSIVE)", 1)?;
        }
        Ok(())
    }

    /// Gives free pages back to the file system, a bounded number at a time, if there are many. Returns whether there
    /// are more to give.
    pub(crate) fn shrink(&mut self) -> Result<bool, Error> {
        if !self.incremental {
            return Ok(false);
        }
        let free = self.free_pages()?;
        let all = self.query("PRAGMA page_count", 0)?;
        if free * FREE_PART < all || free * self.page_size < FREE_BYTES {
            return Ok(false);
        }
        if free < LONG_LIST {
            self.vacuum_step()?;
            return Ok(true);
        }
        if (all - free) * self.page_size <= MOVED_AT_ONCE {
            self.vacuum_at_once()?;
        }
        Ok(false)
    }

    /// Gives all free pages back. A file from kine is rewritten for that.
    pub(crate) fn defragment(&mut self) -> Result<(), Error> {
        self.check_foreign_writer()?;
        if self.incremental {
            self.vacuum_at_once()?;
        } else {
            self.connection.execute_batch("VACUUM").map_err(at("rewrite", &self.path))?;
        }
        self.query("PRAGMA wal_checkpoint(TRUNCATE)", 0)?;
        Ok(())
    }

    fn free_pages(&self) -> Result<i64, Error> {
        self.query("PRAGMA freelist_count", 0)
    }

    /// Moves what is in use to the front of the file and cuts the rest off: a file with full vacuum does so at each commit.
    fn vacuum_at_once(&self) -> Result<(), Error> {
        let full = self.connection.pragma_update(None, "auto_vacuum", FULL);
        // Also after a failure. A crash in between is put right by the next start.
        let incremental = self.connection.pragma_update(None, "auto_vacuum", INCREMENTAL);
        full.and(incremental).map_err(at("shrink", &self.path))
    }

    fn vacuum_step(&self) -> Result<(), Error> {
        let run = || {
            let mut statement = self.connection.prepare_cached(VACUUM_STEP)?;
            let mut rows = statement.query([])?;
            // One row is one page.
            while rows.next()?.is_some() {}
            Ok(())
        };
        run().map_err(at("shrink", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;

    use super::super::fixture::key;
    use super::*;
    use crate::index::Entry;
    use crate::revision::{LeaseId, Revision};
    use crate::txn::Row;

    #[test]
    fn a_file_that_is_nearly_all_free_shrinks_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let (mut log, _) = SqliteLog::open(&path).unwrap();
        let revisions: Vec<_> = (2..2000).map(Revision).collect();
        for &modified in &revisions {
            let entry = Entry { modified, created: modified, version: 1, lease: LeaseId::NONE };
            let value = Some(Bytes::from(vec![b'v'; 8000]));
            log.append(&Row { key: key(&format!("/{modified}")), entry, previous: Revision::ZERO, value }, 0).unwrap();
        }
        log.commit(Revision(1999)).unwrap();
        log.delete(&revisions[..1900], Revision(1990)).unwrap();
        log.commit(Revision::ZERO).unwrap();
        assert!(log.free_pages().unwrap() >= LONG_LIST);
        assert!(!log.shrink().unwrap(), "it is done");
        let size = log.reader().unwrap().size().unwrap();
        assert_eq!(size.total, size.in_use);
        log.checkpoint_if_due().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), u64::try_from(size.total).unwrap());
        assert_eq!(log.query("PRAGMA auto_vacuum", 0).unwrap(), INCREMENTAL);
        assert_eq!(log.value(&key("/1950"), Revision(1950)).unwrap().unwrap().len(), 8000);
        assert_eq!(log.query("SELECT count(*) FROM kine WHERE name LIKE '/%'", 0).unwrap(), 98);
        // It was left so by a crash.
        log.connection.pragma_update(None, "auto_vacuum", FULL).unwrap();
        drop(log);
        let (log, _) = SqliteLog::open(&path).unwrap();
        assert!(log.incremental);
    }

    #[test]
    fn a_file_shrinks_in_steps_once_much_of_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let (mut log, _) = SqliteLog::open(&path).unwrap();
        let revisions: Vec<_> = (2..1000).map(Revision).collect();
        for &modified in &revisions {
            let entry = Entry { modified, created: modified, version: 1, lease: LeaseId::NONE };
            let value = Some(Bytes::from(vec![b'v'; 8000]));
            log.append(&Row { key: key(&format!("/{modified}")), entry, previous: Revision::ZERO, value }, 0).unwrap();
        }
        log.commit(Revision(999)).unwrap();
        assert!(!log.shrink().unwrap(), "nothing is free yet");
        log.delete(&revisions[..900], Revision(990)).unwrap();
        log.commit(Revision::ZERO).unwrap();
        let reader = log.reader().unwrap();
        let before = reader.size().unwrap();
        let steps = std::iter::from_fn(|| log.shrink().unwrap().then_some(())).count();
        let after = reader.size().unwrap();
        assert!((5..50).contains(&steps), "{before:?} {after:?} in {steps} steps");
        assert!(after.total - after.in_use <= FREE_BYTES, "{before:?} {after:?}");
        log.defragment().unwrap();
        let done = reader.size().unwrap();
        assert!(done.total == done.in_use && done.total <= after.in_use, "{done:?}");
        assert_eq!(fs::metadata(&path).unwrap().len(), u64::try_from(done.total).unwrap());
    }
}
