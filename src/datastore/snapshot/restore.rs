//! Putting a snapshot in the database's place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use super::SnapshotError;
use super::label::{Snapshot, SnapshotStore};
use super::save::SPARE;
use crate::client::Stored;
use crate::error::Error;
use crate::key::KeyRange;
use crate::log::sqlite::{FORMAT, Recovered, SqliteLog, beside, copy, directory_of};
use crate::revision::Revision;

/// How far the revisions leap: above all that clients of the lost store may have seen, as etcd's guide to restores has it.
const LEAP: i64 = 1_000_000_000;

/// Behind the database's name: what is being unpacked.
const UNPACKING: &str = "-restoring";
/// …and what is complete and only has to be renamed.
const COMPLETE: &str = "-restored";

/// A snapshot, unpacked and checked beside the database, which is still as it was. Dropping it changes nothing.
pub struct Staged {
    log: SqliteLog,
    recovered: Recovered,
    database: PathBuf,
    _unpacked: Unpacked,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The revision that the store goes on from: watches from before are told to begin anew.
    pub revision: Revision,
    /// Where the database that was in place is now.
    pub kept: Option<PathBuf>,
}

impl Snapshot {
    /// Checks the snapshot and unpacks it beside `database`, which is left alone.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::Newer`], [`SnapshotError::File`].
    pub fn stage(&self, database: &Path) -> Result<Staged, SnapshotError> {
        self.check_store(SnapshotStore::Sqlite)?;
        if self.label.format > FORMAT {
            return Err(SnapshotError::Newer { path: self.path.clone(), version: self.label.version.clone() });
        }
        self.check()?;
        // Links followed, as SQLite does: the files beside the real one belong to it.
        let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
        let unpacked = Unpacked(beside(&database, UNPACKING));
        unpacked.clear();
        let directory = directory_of(&database);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(SnapshotError::file("create the directory", directory))?;
        self.check_room(directory)?;
        self.unpack(&unpacked.0)?;
        let damaged = |error| match error {
            Error::Damaged { finding, .. } => SnapshotError::Damaged { path: self.path.clone(), finding },
            Error::Newer { .. } => {
                SnapshotError::Newer { path: self.path.clone(), version: self.label.version.clone() }
            }
            error => error.into(),
        };
        copy::finish_copy(&unpacked.0).map_err(damaged)?;
        let (log, recovered) = SqliteLog::open(&unpacked.0).map_err(damaged)?;
        Ok(Staged { log, recovered, database, _unpacked: unpacked })
    }

    /// Checks the snapshot of an etcd and writes the file that etcd's own client had saved to `to`, which must not be there.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::OtherStore`], [`SnapshotError::File`].
    pub fn extract_etcd(&self, to: &Path) -> Result<(), SnapshotError> {
        self.check_store(SnapshotStore::Etcd)?;
        self.check()?;
        self.check_room(directory_of(to))?;
        self.unpack(to)
    }

    fn check_store(&self, store: SnapshotStore) -> Result<(), SnapshotError> {
        if self.label.store == store {
            return Ok(());
        }
        Err(SnapshotError::OtherStore { path: self.path.clone(), store: self.label.store })
    }

    fn unpack(&self, to: &Path) -> Result<(), SnapshotError> {
        let unreadable = SnapshotError::file("read", &self.path);
        let mut packed = File::open(&self.path).map_err(unreadable)?.take(self.payload);
        let mut unpack = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
            // One byte more tells that the label is wrong.
            let most = self.label.database_bytes.saturating_add(1);
            if self.label.compressed {
                io::copy(&mut zstd::Decoder::new(&mut packed)?.take(most), &mut file)
            } else {
                io::copy(&mut (&mut packed).take(most), &mut file)
            }
        };
        let unpacked = unpack().map_err(SnapshotError::file("unpack the snapshot into", to))?;
        if unpacked == self.label.database_bytes {
            return Ok(());
        }
        let finding = format!("it does not unpack to the {} bytes that its label says", self.label.database_bytes);
        Err(SnapshotError::Damaged { path: self.path.clone(), finding })
    }

    fn check_room(&self, directory: &Path) -> Result<(), SnapshotError> {
        let disk =
            statvfs(directory).map_err(|errno| SnapshotError::file("use the directory", directory)(errno.into()))?;
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        let needed = self.label.database_bytes.saturating_add(SPARE);
        if free < needed {
            let directory = directory.to_owned();
            return Err(SnapshotError::NoRoomToRestore { directory, free: free >> 20, needed: needed >> 20 });
        }
        Ok(())
    }
}

impl Staged {
    /// The keys in it that begin with `prefix`.
    ///
    /// # Errors
    /// [`SnapshotError::Store`] if it cannot be read.
    pub fn list(&self, prefix: &str) -> Result<Vec<Stored>, SnapshotError> {
        let Recovered { index, head, .. } = &self.recovered;
        let mut found = Vec::new();
        for (key, entry) in index.range(&KeyRange::prefixed(prefix.as_bytes()), *head) {
            let value = self.log.value(key, entry.modified)?.unwrap_or_default();
            found.push(Stored { key: key.clone(), value, modified: entry.modified });
        }
        Ok(found)
    }

    /// Takes the place of the database, whose process has to be stopped; it is kept beside.
    ///
    /// # Errors
    /// [`Error::InUse`] while a process has the database open. [`SnapshotError::File`], [`SnapshotError::Store`]; then the database is still the one before, or the next start
    /// goes on with the snapshot.
    pub fn put_in_place(self) -> Result<Restored, SnapshotError> {
        let Self { mut log, recovered, database, _unpacked: unpacked } = self;
        let seen = newest_of(&database)?;
        let revision = Revision(recovered.head.max(seen).0.saturating_add(LEAP));
        log.skip_to(revision)?;
        // Whoever watched the lost store must not go on from a revision that now means something else.
        log.set_compacted(revision)?;
        log.commit(revision)?;
        log.close()?;
        let complete = beside(&database, COMPLETE);
        let failed = || SnapshotError::file("put the snapshot in the place of", &database);
        let sync = File::open(&unpacked.0).and_then(|file| file.sync_all());
        sync.and_then(|()| fs::rename(&unpacked.0, &complete)).map_err(failed())?;
        let kept = swap(&database, &complete).map_err(failed())?;
        info!(path = %database.display(), %revision, "Restored the datastore from a snapshot.");
        Ok(Restored { revision, kept })
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("database", &self.database).finish_non_exhaustive()
    }
}

/// Goes on with a restore that a crash interrupted after the database had been moved aside and before the snapshot had
/// taken its place.
pub(crate) fn finish_interrupted(database: &Path) -> Result<(), Error> {
    let complete = beside(database, COMPLETE);
    if !complete.exists() || database.exists() {
        return Ok(());
    }
    info!(path = %database.display(), "Finishing a restore that was interrupted.");
    swap(database, &complete).map(drop).map_err(Error::file("put the snapshot in the place of", database))
}

/// Whether there is no database, or an empty file in its place, and no restore that the next start would finish.
///
/// # Errors
/// If the place cannot be looked at.
pub fn is_lost(database: &Path) -> io::Result<bool> {
    let is_empty = match fs::metadata(database) {
        Ok(found) => found.is_file() && found.len() == 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    };
    Ok(is_empty && !beside(database, COMPLETE).exists())
}

/// Files of a database under way, gone when this is dropped unless they were renamed.
struct Unpacked(PathBuf);

impl Unpacked {
    fn clear(&self) {
        for suffix in ["", "-wal", "-shm", "-lock"] {
            // What is not there need not go.
            let _ = fs::remove_file(beside(&self.0, suffix));
        }
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The newest revision of the database in place, which is closed properly by that; zero if there is none, or if it is too
/// damaged to tell.
fn newest_of(database: &Path) -> Result<Revision, SnapshotError> {
    if !database.exists() {
        return Ok(Revision::ZERO);
    }
    match SqliteLog::open(database) {
        Ok((log, recovered)) => {
            if let Err(error) = log.close() {
                warn!(%error, "The database that the snapshot replaces has a fault.");
            }
            Ok(recovered.head)
        }
        Err(error @ Error::InUse { .. }) => Err(error.into()),
        Err(error) => {
            warn!(%error, "The database that the snapshot replaces cannot be read.");
            Ok(Revision::ZERO)
        }
    }
}

/// Moves the database aside and the complete snapshot into its place. Each step leaves what [`finish_interrupted`] can go
/// on from: without a database, the snapshot is the one.
fn swap(database: &Path, complete: &Path) -> io::Result<Option<PathBuf>> {
    // The same name again after an interruption, so that database and write-ahead log stay together.
    let since = fs::metadata(complete)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let kept = beside(database, &format!("-old-{}", since.as_secs()));
    let directory = directory_of(database);
    let sync = || File::open(directory)?.sync_all();
    sync()?;
    rename_if_there(database, &kept)?;
    sync()?;
    rename_if_there(&beside(database, "-wal"), &beside(&kept, "-wal"))?;
    rename_if_there(&beside(database, "-shm"), &beside(&kept, "-shm"))?;
    fs::rename(complete, database)?;
    sync()?;
    Ok(kept.exists().then_some(kept))
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tempfile::TempDir;
    use tokio::task::JoinSet;

    use super::super::{Label, Save, SnapshotFolder};
    use super::*;
    use crate::datastore::{Datastore, Options};
    use crate::error::RequestError;
    use crate::key::Key;
    use crate::range::Range;

    struct Server {
        directory: TempDir,
        database: PathBuf,
    }

    impl Server {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("snapshots")).unwrap();
            Self { database: directory.path().join("state.db"), directory }
        }

        async fn start(&self) -> Datastore {
            Datastore::open(Options::new(&self.database)).await.unwrap()
        }

        fn save(&self, compress: bool) -> Save {
            Save {
                folder: self.directory.path().join("snapshots"),
                name: "on-demand".to_owned(),
                node: "edge-7".to_owned(),
                compress,
                version: "v1.36.3+k3s1".to_owned(),
                token_hash: "1ec1c26b50d5".to_owned(),
                metadata: BTreeMap::new(),
            }
        }

        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(self.directory.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        /// A database with one key, and a snapshot of it.
        async fn with_snapshot(&self) -> Snapshot {
            let store = self.start().await;
            store.client().create("/a", "one").await.unwrap();
            let snapshot = store.save_snapshot(self.save(false)).await.unwrap();
            store.close().await.unwrap();
            snapshot
        }
    }

    async fn value(store: &Datastore, key: &str) -> Option<String> {
        let stored = store.client().get(key).await.unwrap();
        stored.map(|stored| String::from_utf8(stored.value.to_vec()).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_saved_under_load_is_one_moment_and_comes_back() {
        for compress in [false, true] {
            let server = Server::new();
            let store = server.start().await;
            store.client().create("/kept", "as it was").await.unwrap();
            let mut writers = JoinSet::new();
            for writer in 0..4 {
                let client = store.client();
                writers.spawn(async move {
                    for number in 0..200 {
                        client.create(&format!("/load/{writer}/{number:03}"), vec![b'v'; 1500]).await.unwrap();
                    }
                });
            }
            let snapshot = store.save_snapshot(server.save(compress)).await.unwrap();
            writers.join_all().await;
            let kept = store.client().get("/kept").await.unwrap().unwrap();
            store.client().update("/kept", "changed", kept.modified).await.unwrap();
            let lost = store.status().revision;
            store.close().await.unwrap();
            assert_eq!(snapshot.path.extension().is_some(), compress);

            let restored =
                Snapshot::open(&snapshot.path).unwrap().stage(&server.database).unwrap().put_in_place().unwrap();
            assert!(restored.revision.0 >= lost.0 + LEAP);
            let store = server.start().await;
            assert_eq!(value(&store, "/kept").await.unwrap(), "as it was");
            // Each writer's rows up to some moment: none without the one before it.
            for writer in 0..4 {
                let rows = store.client().list(&format!("/load/{writer}/")).await.unwrap();
                let last = rows.last().map_or(0, |row| {
                    row.key[row.key.len() - 3..].iter().fold(0, |n, d| n * 10 + usize::from(d - b'0')) + 1
                });
                assert_eq!(rows.len(), last);
            }
            assert_eq!(store.status().revision, restored.revision);
            store.client().create("/new", "after").await.unwrap();
            assert_eq!(store.status().revision, restored.revision.next());
            let mut old = Range::newest(KeyRange::One(Key::from_static(b"/kept")));
            old.revision = lost;
            assert_eq!(store.store().range(&old).await.unwrap_err(), RequestError::Compacted);
            store.close().await.unwrap();

            // The database of before opens as it was.
            let before = Datastore::open(Options::new(restored.kept.unwrap())).await.unwrap();
            assert_eq!(value(&before, "/kept").await.unwrap(), "changed");
            before.close().await.unwrap();
            assert_eq!(server.start().await.status().revision, restored.revision.next());
        }
    }

    #[tokio::test]
    async fn a_snapshot_is_a_database_that_needs_no_other_file() {
        let server = Server::new();
        let snapshot = server.with_snapshot().await;
        let connection = rusqlite::Connection::open(&snapshot.path).unwrap();
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(count("PRAGMA integrity_check"), "ok");
        assert_eq!(count("SELECT CAST(value AS TEXT) FROM kine WHERE name = '/a'"), "one");
        drop(connection);
        snapshot.check().unwrap();
        assert_eq!(SnapshotFolder::new(server.directory.path().join("snapshots")).list().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_restore_needs_a_stopped_store_and_a_whole_snapshot() {
        let server = Server::new();
        let snapshot = server.with_snapshot().await;
        let running = server.start().await;
        let in_use = snapshot.stage(&server.database).unwrap().put_in_place();
        assert!(matches!(in_use, Err(SnapshotError::Store(Error::InUse { .. }))), "{in_use:?}");
        running.close().await.unwrap();

        let files = server.files();
        let newer = Snapshot { label: Label { format: FORMAT + 1, ..snapshot.label.clone() }, ..snapshot.clone() };
        assert!(matches!(newer.stage(&server.database), Err(SnapshotError::Newer { .. })));
        drop(snapshot.stage(&server.database).unwrap());
        let mut bytes = fs::read(&snapshot.path).unwrap();
        bytes[1000] ^= 1;
        fs::write(&snapshot.path, bytes).unwrap();
        assert!(matches!(snapshot.stage(&server.database), Err(SnapshotError::Damaged { .. })));
        assert_eq!(server.files(), files);
        assert_eq!(value(&server.start().await, "/a").await.unwrap(), "one");
    }

    /// Its checksum is right: whoever wrote the file wrote that too.
    #[tokio::test]
    async fn a_snapshot_that_unpacks_to_more_than_it_says_stops_there() {
        let server = Server::new();
        let snapshot = server.with_snapshot().await;
        let files = server.files();
        let packed = |bytes: u64, label: u64| {
            let path = server.directory.path().join("snapshots/bomb");
            let zeros = io::repeat(0).take(bytes);
            fs::write(&path, zstd::encode_all(zeros, 1).unwrap()).unwrap();
            super::super::label::close(
                &path,
                Label { database_bytes: label, compressed: true, ..snapshot.label.clone() },
            )
            .unwrap()
        };
        for (bytes, label) in [(64 << 20, 4096), (4096, 8192)] {
            let Err(SnapshotError::Damaged { finding, .. }) = packed(bytes, label).stage(&server.database) else {
                panic!("{bytes} bytes for {label}")
            };
            assert_eq!(finding, format!("it does not unpack to the {label} bytes that its label says"));
        }
        let refused = packed(4096, 1 << 60).stage(&server.database).unwrap_err().to_string();
        assert!(refused.contains("MiB free and the snapshot unpacks to 1099511627840 with"), "{refused}");
        assert_eq!(server.files(), files, "nothing is left of them");
    }

    #[tokio::test]
    async fn an_interrupted_restore_is_finished_by_the_next_start() {
        let server = Server::new();
        let snapshot = server.with_snapshot().await;
        snapshot.stage(&server.database).unwrap().put_in_place().unwrap();
        // As if the machine had stopped after the old database was moved, its write-ahead log still in place.
        fs::rename(&server.database, beside(&server.database, COMPLETE)).unwrap();
        fs::write(beside(&server.database, "-wal"), "of the lost database").unwrap();
        let store = server.start().await;
        assert_eq!(value(&store, "/a").await.unwrap(), "one");
        assert!(store.status().revision.0 > LEAP);
        store.close().await.unwrap();
        assert_eq!(server.files().iter().filter(|name| name.ends_with("-wal")).count(), 1);
    }

    #[tokio::test]
    async fn a_closing_store_waits_for_no_snapshot_and_leaves_none() {
        let server = Server::new();
        let store = server.start().await;
        store.client().create("/a", "one").await.unwrap();
        let saving = store.save_snapshot(server.save(false));
        tokio::pin!(saving);
        assert!(futures_util::poll!(&mut saving).is_pending());
        assert!(matches!(store.save_snapshot(server.save(false)).await, Err(SnapshotError::UnderWay)));
        let (saved, closed) = tokio::join!(saving, store.close());
        closed.unwrap();
        let folder = SnapshotFolder::new(server.directory.path().join("snapshots"));
        assert_eq!(folder.list().unwrap().len(), usize::from(saved.is_ok()));
        assert!(
            fs::read_dir(folder.path()).unwrap().all(|entry| !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with('.'))
        );
        assert!(matches!(
            tokio::time::timeout(Duration::from_secs(60), store.save_snapshot(server.save(false))).await,
            Ok(Err(_))
        ));
    }
}
