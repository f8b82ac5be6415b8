//! `<data>/server/db/etcd`: a member's data, with what k3s keeps beside it.
//!
//! ```text
//! member/       etcd's own
//! name          <node>-<8 hex digits>
//! config        what etcd was started with last
//! tombstone     this member was removed, and its data is of no use
//! peers.json    where the others were last, to ask them when this one cannot
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rand;
use data_encoding::HEXLOWER;
use k3s_files::{self as files, FileError, PRIVATE, failed};

/// Folders of earlier members that are kept, as in k3s.
const KEPT: usize = 5;
/// What those are called, with the time after it.
const BACKUP: &str = "etcd-backup-";

/// A member's folder.
#[derive(Debug, Clone)]
pub(crate) struct EtcdFolder(PathBuf);

impl EtcdFolder {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it, for its owner alone: etcd wants no other.
    pub(super) fn create(&self) -> Result<(), FileError> {
        files::create_directory(&self.0, 0o700)
    }

    /// Whether there is a member's log.
    pub(crate) fn has_member(&self) -> bool {
        self.0.join("member/wal").is_dir()
    }

    /// Whether there is no member's log where there should be one.
    pub(crate) fn is_lost(&self) -> bool {
        !self.has_member() && !self.is_removed()
    }

    /// Whether the member was removed from its cluster.
    pub(crate) fn is_removed(&self) -> bool {
        self.tombstone().exists()
    }

    /// Remembers that it was.
    pub(super) fn set_removed(&self) -> Result<(), FileError> {
        files::write(&self.tombstone(), b"", PRIVATE).map(drop)
    }

    /// The member's name, drawn the first time.
    pub(super) fn member_name(&self, node: &str) -> Result<String, FileError> {
        let path = self.0.join("name");
        if let Some(name) = files::read(&path)?.filter(|name| !files::is_torn(name)) {
            return Ok(String::from_utf8_lossy(&name).trim().to_owned());
        }
        let name = Self::draw_name(node)?;
        self.set_member_name(&name)?;
        Ok(name)
    }

    /// A name for a new member.
    pub(super) fn draw_name(node: &str) -> Result<String, FileError> {
        let mut suffix = [0; 4];
        let failed = |_| failed("draw a name for", Path::new(node))(io::Error::other("no randomness"));
        rand::fill(&mut suffix).map_err(failed)?;
        Ok(format!("{node}-{}", HEXLOWER.encode(&suffix)))
    }

    pub(super) fn set_member_name(&self, name: &str) -> Result<(), FileError> {
        files::write(&self.0.join("name"), name.as_bytes(), PRIVATE).map(drop)
    }

    /// Takes the place of `other`, which is kept beside; returns where, if it was there.
    pub(super) fn replace(&self, other: &Self) -> Result<Option<PathBuf>, FileError> {
        let kept = match other.0.exists() {
            true => {
                let kept = other.beside(&format!("etcd-old-{}", unix_now()));
                fs::rename(&other.0, &kept).map_err(failed("move", &other.0))?;
                Some(kept)
            }
            false => None,
        };
        fs::rename(&self.0, &other.0).map_err(failed("move", &self.0))?;
        Ok(kept)
    }

    /// A file or folder in the same folder.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.0.parent().unwrap_or(&self.0).join(name)
    }

    /// The file that tells of a reset until the next start, k3s' own.
    pub(super) fn reset_flag(&self) -> PathBuf {
        self.beside("reset-flag")
    }

    pub(super) fn remember_reset(&self) -> Result<(), FileError> {
        files::write(&self.reset_flag(), b"", PRIVATE).map(drop)
    }

    pub(super) fn forget_reset(&self) -> Result<(), FileError> {
        files::remove(&self.reset_flag()).map(drop)
    }

    /// Moves everything out of the way of a new member; returns where it is. The oldest of more than five goes for good.
    pub(super) fn set_aside(&self) -> Result<PathBuf, FileError> {
        let db = self.0.parent().unwrap_or(&self.0);
        let kept = db.join(format!("{BACKUP}{}", unix_now()));
        fs::rename(&self.0, &kept).map_err(failed("move", &self.0))?;
        let mut earlier: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(db).map_err(failed("read", db))? {
            let entry = entry.map_err(failed("read", db))?;
            let name = entry.file_name();
            let time = name.to_str().and_then(|name| name.strip_prefix(BACKUP)).and_then(|time| time.parse().ok());
            earlier.extend(time.map(|time| (time, entry.path())));
        }
        earlier.sort();
        for (_, path) in earlier.iter().rev().skip(KEPT) {
            fs::remove_dir_all(path).map_err(failed("remove", path))?;
        }
        Ok(kept)
    }

    /// Where the other members' clients reached them when this one was last told.
    pub(super) fn peers(&self) -> Result<Vec<String>, FileError> {
        // What a power cut emptied names nobody.
        Ok(files::read(&self.peers_file())?.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default())
    }

    /// Remembers them; written when it changes.
    pub(super) fn set_peers(&self, urls: &[String]) -> Result<(), FileError> {
        let json = serde_json::to_vec(urls).expect("a list of texts is JSON");
        files::write(&self.peers_file(), &json, PRIVATE).map(drop)
    }

    fn peers_file(&self) -> PathBuf {
        self.0.join("peers.json")
    }

    fn tombstone(&self) -> PathBuf {
        self.0.join("tombstone")
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The node whose member is called `member`: all before the last dash.
pub(super) fn node_of(member: &str) -> &str {
    member.rsplit_once('-').map_or(member, |(node, _)| node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_keeps_its_name_until_it_was_removed() {
        let db = tempfile::tempdir().unwrap();
        let folder = EtcdFolder::new(db.path().join("etcd"));
        folder.create().unwrap();
        let name = folder.member_name("edge-1").unwrap();
        assert_eq!((node_of(&name), name.len(), &folder.member_name("edge-1").unwrap()), ("edge-1", 15, &name));
        assert!(!folder.has_member() && !folder.is_removed());
        fs::create_dir_all(folder.path().join("member/wal")).unwrap();
        folder.set_removed().unwrap();
        assert!(folder.has_member() && folder.is_removed());

        let kept = folder.set_aside().unwrap();
        assert!(kept.join("member/wal").is_dir() && !folder.path().exists());
        folder.create().unwrap();
        assert_ne!(folder.member_name("edge-1").unwrap(), name);
        assert!(!folder.is_removed());
    }

    #[test]
    fn five_earlier_members_are_kept() {
        let db = tempfile::tempdir().unwrap();
        let folder = EtcdFolder::new(db.path().join("etcd"));
        for time in 1..=7 {
            fs::create_dir(db.path().join(format!("etcd-backup-{time}"))).unwrap();
        }
        fs::create_dir(db.path().join("etcd-backup-mine")).unwrap();
        folder.create().unwrap();
        folder.set_aside().unwrap();
        let left = |time: &str| db.path().join(format!("etcd-backup-{time}")).exists();
        assert_eq!(["1", "2", "3", "4", "7", "mine"].map(left), [false, false, false, true, true, true]);
    }

    #[test]
    fn the_others_are_remembered() {
        let db = tempfile::tempdir().unwrap();
        let folder = EtcdFolder::new(db.path());
        assert!(folder.peers().unwrap().is_empty());
        folder.set_peers(&["https://10.0.0.2:2379".to_owned()]).unwrap();
        assert_eq!(folder.peers().unwrap(), ["https://10.0.0.2:2379"]);
        fs::write(db.path().join("peers.json"), "").unwrap();
        assert!(folder.peers().unwrap().is_empty());
    }
}
