//! The room on the file system below the database.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use crate::log::sqlite::directory_of;

/// Below the reserve only deletes are accepted, so that the file system never fills up.
#[derive(Debug)]
pub(crate) struct Space {
    directory: PathBuf,
    /// What is kept free, in bytes.
    reserve: u64,
    short: AtomicBool,
}

impl Space {
    pub(crate) fn new(database: &Path, reserve: u64) -> Self {
        Self { directory: directory_of(database).to_owned(), reserve, short: AtomicBool::new(false) }
    }

    /// Whether there is too little room, as far as is known.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Relaxed)
    }

    /// Whether there is too little room now.
    pub(crate) fn look(&self) -> bool {
        // A file system that cannot be asked is not known to be full: SQLite will tell.
        let short = self.free().is_some_and(|free| free <= self.reserve);
        if self.short.swap(short, Relaxed) != short {
            let path = self.directory.display();
            if short {
                warn!(%path, reserve = self.reserve, "The file system is nearly full; only deletes are accepted.");
            } else {
                info!(%path, "There is room on the file system again; writes are accepted.");
            }
        }
        short
    }

    /// Notes that SQLite found the file system full.
    pub(crate) fn ran_out(&self) {
        warn!(path = %self.directory.display(), "The file system is full; writes are refused.");
        self.short.store(true, Relaxed);
    }

    /// Bytes that the database may grow by.
    pub(crate) fn room(&self) -> u64 {
        self.free().unwrap_or(0).saturating_sub(self.reserve)
    }

    fn free(&self) -> Option<u64> {
        let fs = statvfs(&self.directory).ok()?;
        Some(fs.blocks_available().saturating_mul(fs.fragment_size()))
    }
}
