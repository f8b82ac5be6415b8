//! From SQLite to etcd: a server that kept its cluster alone becomes the first member of one that can have more.
//!
//! ```text
//! state.db ─► etcd of the moment, in the order of revisions ─► its snapshot ─► etcdutl, revisions raised ─► db/etcd ─► state.db.migrated
//! ```
//! k3s writes the keys into the etcd that stays, which counts revisions from one: whoever watched from a higher one waits for changes
//! that have happened. Here the next change has a higher revision than any before. Until `db/etcd` is there, in one step, the next start begins anew, and
//! a start without `--cluster-init` goes on with SQLite.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use k3s_components::{Components, EtcdMember, EtcdStart, Paths, etcd};
use k3s_config::embedded_etcd::EmbeddedEtcd;
use k3s_datastore::{Datastore, Options, Transferred};
use k3s_files::failed;
use k3s_supervise::{Gate, Supervisor};
use nix::unistd::syncfs;
use tokio::{fs::File, io::AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    error::EtcdError,
    folder::EtcdFolder,
    membership::{Membership, measure},
    restore::{LEAP, RESTORING, SNAPSHOT, clear as remove, restore},
};
use crate::{
    Error,
    certificates::Certificates,
    host::{self, Host},
};

/// The etcd of the moment.
const MOVING: &str = "etcd-moving";
/// Bytes that etcd takes beside the data, twice: it makes its logs larger before they are needed.
const LOGS: u64 = 256 << 20;
/// More than any move takes.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How many keys are written between two words about it.
const TOLD: usize = 500;

/// What a move is made with.
pub(super) struct Moving<'a> {
    pub(super) etcd: &'a EmbeddedEtcd,
    pub(super) paths: &'a Paths,
    pub(super) host: &'a Host,
    pub(super) certificates: &'a Certificates,
    pub(super) components: &'a Components,
    pub(super) supervisor: &'a Supervisor,
    /// Says how far it is.
    pub(super) gate: &'a Gate,
}

impl Moving<'_> {
    /// Makes this server's member of all that `sqlite` holds.
    ///
    /// # Errors
    /// [`EtcdError::NotMoved`], [`Error::NoRoom`] and any [`Error`] of SQLite's file and of certificates; the state is as it was then.
    pub(super) async fn run(&self, sqlite: &Path, folder: &EtcdFolder) -> Result<(), Error> {
        let bytes = fs::metadata(sqlite).map_err(Error::file(sqlite))?.len();
        host::check_room_for(self.paths, LOGS + 3 * bytes)?;
        info!(from = %sqlite.display(), to = %folder.path().display(), "Moving the cluster's state from SQLite to etcd.");
        // etcd wants them at once.
        self.certificates.ensure(SystemTime::now())?;
        let (moving, restoring) = (EtcdFolder::new(folder.beside(MOVING)), EtcdFolder::new(folder.beside(RESTORING)));
        let saved = folder.beside(SNAPSHOT);
        clear(folder)?;
        let moved = self.make(sqlite, &moving, &restoring, &saved).await;
        let moved = match moved {
            Ok(Transferred { keys, revision }) => {
                restoring.replace(folder).map_err(EtcdError::from)?;
                // All of it, with its name, before SQLite's file loses its own.
                fs::File::open(folder.path())
                    .and_then(|dir| syncfs(dir).map_err(io::Error::from))
                    .map_err(Error::file(folder.path()))?;
                info!(keys, %revision, "The cluster's state is in etcd.");
                Ok(())
            }
            Err(error) => Err(error),
        };
        clear(folder)?;
        moved
    }

    async fn make(
        &self,
        sqlite: &Path,
        moving: &EtcdFolder,
        restoring: &EtcdFolder,
        saved: &Path,
    ) -> Result<Transferred, Error> {
        let refused = |why: String| EtcdError::NotMoved { path: sqlite.to_owned(), why };
        moving.create().map_err(EtcdError::from)?;
        let disk = measure(moving).await?;
        let name = EtcdFolder::draw_name(&self.host.name).map_err(EtcdError::from)?;
        let member =
            EtcdMember { name, address: self.host.ips[0], start: EtcdStart::Scratch, timeouts: disk.timeouts() };
        let config = EmbeddedEtcd { dir: moving.path().to_owned(), ..self.etcd.clone() };
        let launch = etcd(&config, &member, self.paths, self.components);
        launch.install_files()?;
        let membership = Membership::new(member.clone(), moving.clone(), disk, self.paths.clone())?;
        let store = Datastore::open(Options::new(sqlite)).await?;
        let end = CancellationToken::new();
        let run = self.supervisor.run_once(launch.program, PATIENCE, &end);
        tokio::pin!(run);
        let filled = tokio::select! {
            exit = &mut run => {
                Err(exit.last_words.unwrap_or_else(|| "etcd ended and said nothing".to_owned()))
            }
            filled = self.fill(&store, &membership, saved) => {
                // All of it is in the file.
                end.cancel();
                run.await;
                filled
            }
        };
        store.close().await?;
        let moved = filled.map_err(refused)?;
        let leap = LEAP.saturating_add(moved.revision.0.unsigned_abs());
        let member = EtcdMember { start: EtcdStart::New, ..member };
        restore(saved, restoring, &member, leap, self.supervisor, self.components).await.map_err(refused)?;
        restoring.set_member_name(&member.name).map_err(EtcdError::from)?;
        Ok(moved)
    }

    /// Writes everything into the etcd of the moment, and saves that to a file.
    async fn fill(&self, store: &Datastore, membership: &Membership, saved: &Path) -> Result<Transferred, String> {
        membership.until_it_votes(self.gate).await.map_err(|error| error.to_string())?;
        let moved = store.transfer_to(&membership.own, |written, all| {
            if written % TOLD == 0 {
                self.gate.waiting(format!("moving the cluster's state from SQLite to etcd: {written} of {all} keys"));
            }
        });
        let moved = moved.await.map_err(|error| error.to_string())?;
        save(membership, saved).await.map_err(|error| format!("{} cannot be written: {error}", saved.display()))?;
        Ok(moved)
    }
}

async fn save(membership: &Membership, saved: &Path) -> io::Result<()> {
    let mut file = File::create(saved).await?;
    membership.own.snapshot(async |blob| file.write_all(&blob).await).await.map_err(io::Error::other)?;
    file.flush().await
}

/// Removes what a move into `folder` has left beside it, also one that was killed when all was in place.
///
/// # Errors
/// [`EtcdError::File`].
pub(super) fn clear(folder: &EtcdFolder) -> Result<(), EtcdError> {
    let saved = folder.beside(SNAPSHOT);
    [MOVING, RESTORING].into_iter().try_for_each(|place| remove(&folder.beside(place), &saved))
}

/// Puts SQLite's file out of the way of whoever looks for the cluster's state, under k3s' name for it. What a power cut left undone is
/// done here at the next start.
///
/// # Errors
/// [`EtcdError::File`].
pub(super) fn retire(sqlite: &Path) -> Result<(), EtcdError> {
    let beside = |suffix: &str| PathBuf::from([sqlite.as_os_str(), suffix.as_ref()].join("".as_ref()));
    let retired = beside(".migrated");
    fs::rename(sqlite, &retired).map_err(failed("rename", sqlite))?;
    for log in ["-wal", "-shm"] {
        k3s_files::remove(&beside(log))?;
    }
    info!(kept = %retired.display(), "The cluster's state is in etcd; the SQLite file of before is kept.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sqlites_is_kept_under_k3s_name() {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = dir.path().join("state.db");
        fs::write(&sqlite, "data").unwrap();
        fs::write(dir.path().join("state.db-shm"), "").unwrap();
        retire(&sqlite).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["state.db.migrated"]);
        assert_eq!(fs::read_to_string(dir.path().join("state.db.migrated")).unwrap(), "data");
    }
}
