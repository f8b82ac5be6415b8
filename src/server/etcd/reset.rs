//! A cluster that begins anew with this server alone: from its own data when the other members are lost, or from a snapshot.
//!
//! ```text
//! own data ───────────────────────────► etcd, told to be the only member ─┐
//! snapshot ─► etcdutl ─► data beside ─► etcd ─────────────────────────────┴─► does the token open it? ─► in place, authorities with it
//! ```
//! What a snapshot replaces is kept, and nothing is replaced before the snapshot has been opened with the token.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use k3s_components::{EtcdMember, EtcdStart, Package, Paths, etcd};
use k3s_config::{Role, datastore::Datastore, embedded_etcd::EmbeddedEtcd, server::ServerConfig};
use k3s_datastore::snapshot::{Snapshot, SnapshotError, is_of_etcd};
use k3s_supervise::{Options, Supervisor};
use tokio::{task::spawn_blocking, time::timeout};
use tracing::info;

use super::{
    error::EtcdError,
    folder::EtcdFolder,
    membership::{Membership, measure},
    restore::{LEAP, RESTORING, SNAPSHOT, clear, restore},
};
use crate::{
    BootstrapError, Error, api_addresses,
    bootstrap_data::{self, Found},
    certificates::Certificates,
    host::{self, Host},
    other_api_servers,
    snapshots::{known_token, take_authorities},
};

/// More than any etcd takes to start, on a slow disk and with an election.
const START: Duration = Duration::from_secs(600);

/// What a reset did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// The only member now.
    pub member: String,
    /// Where the data that was in place is, if a snapshot has replaced it.
    pub kept: Option<PathBuf>,
}

/// Makes this server the only member of its etcd, with the data that it has or that of `snapshot`. The server has to be stopped.
///
/// # Errors
/// [`Error::Daemon`] while a server runs, [`Error::Bootstrap`] if the token does not open the data, [`Error::Snapshot`] and [`Error::Etcd`]
/// if there is none that can be used; what was in place is still there then.
pub async fn reset(mut config: ServerConfig, package: &Package, snapshot: Option<&Path>) -> Result<Reset, Error> {
    let paths = Paths::new(&config.data_dir, Paths::RUN);
    host::check_room(&paths)?;
    let _lock = k3s_daemon::lock(Role::Server, &paths)?;
    let Datastore::EmbeddedEtcd(etcd) = config.datastore.clone() else { return Err(Error::KeptElsewhere) };
    let folder = EtcdFolder::new(&etcd.dir);
    if snapshot.is_none() {
        if folder.reset_flag().exists() {
            return Err(EtcdError::ResetBefore { flag: folder.reset_flag() }.into());
        }
        if !folder.has_member() {
            return Err(EtcdError::NoMember { dir: folder.path().to_owned() }.into());
        }
    }
    let host = Host::of(&mut config).await?;
    let supervisor = Supervisor::new(Options::default()).map_err(k3s_daemon::Error::Thread)?;
    let resetting =
        Resetting { config: &config, etcd: &etcd, paths: &paths, host: &host, supervisor: &supervisor, package };
    let reset = match snapshot {
        None => resetting.alone(&folder).await,
        Some(snapshot) => resetting.restore(&folder, snapshot).await,
    };
    supervisor.stop().await;
    let (reset, found) = reset?;
    take_authorities(found.as_ref(), &paths.server())?;
    folder.remember_reset().map_err(EtcdError::from)?;
    Ok(reset)
}

struct Resetting<'a> {
    config: &'a ServerConfig,
    etcd: &'a EmbeddedEtcd,
    paths: &'a Paths,
    host: &'a Host,
    supervisor: &'a Supervisor,
    package: &'a Package,
}

impl Resetting<'_> {
    async fn alone(&self, folder: &EtcdFolder) -> Result<(Reset, Option<Found>), Error> {
        // The others are to be left alone, whatever they say.
        folder.set_peers(&[]).map_err(EtcdError::from)?;
        let member = folder.member_name(&self.host.name).map_err(EtcdError::from)?;
        let found = self.run_once(folder.clone(), &member, EtcdStart::Alone).await?;
        info!(member, "This server is the only member of etcd.");
        Ok((Reset { member, kept: None }, found))
    }

    async fn restore(&self, folder: &EtcdFolder, snapshot: &Path) -> Result<(Reset, Option<Found>), Error> {
        let restoring = EtcdFolder::new(folder.beside(RESTORING));
        let unpacked = folder.beside(SNAPSHOT);
        clear(restoring.path(), &unpacked)?;
        k3s_files::create_directory(&folder.beside(""), 0o700)?;
        let restored = self.restore_beside(&restoring, &unpacked, snapshot).await;
        let restored = match restored {
            Ok((member, found)) => {
                // etcd has let go of it.
                self.supervisor.stop().await;
                let kept = restoring.replace(folder).map_err(EtcdError::from)?;
                info!(member, snapshot = %snapshot.display(), "Restored etcd from a snapshot.");
                Ok((Reset { member, kept }, found))
            }
            Err(error) => {
                self.supervisor.stop().await;
                Err(error)
            }
        };
        clear(restoring.path(), &unpacked)?;
        restored
    }

    /// Makes data of the snapshot, and opens it.
    async fn restore_beside(
        &self,
        restoring: &EtcdFolder,
        unpacked: &Path,
        snapshot: &Path,
    ) -> Result<(String, Option<Found>), Error> {
        let file = match Snapshot::open(snapshot) {
            Ok(labelled) => {
                let to = unpacked.to_owned();
                // A panic of it is in the log.
                spawn_blocking(move || labelled.extract_etcd(&to))
                    .await
                    .map_err(|_| k3s_datastore::Error::Closed)??;
                unpacked
            }
            // k3s' own, or one of etcdctl.
            Err(SnapshotError::NotASnapshot(_)) if is_of_etcd(snapshot)? => snapshot,
            Err(error) => return Err(error.into()),
        };
        let name = EtcdFolder::draw_name(&self.host.name).map_err(EtcdError::from)?;
        let member = self.member(&name, EtcdStart::New, restoring).await?;
        let restored = restore(file, restoring, &member, LEAP, self.supervisor, &self.package.components).await;
        restored.map_err(|why| EtcdError::NotRestored { path: snapshot.to_owned(), why })?;
        restoring.set_member_name(&name).map_err(EtcdError::from)?;
        let found = self.run_once(restoring.clone(), &name, EtcdStart::New).await?;
        Ok((name, found))
    }

    /// Runs etcd on `folder` until it answers, and opens with the token what it holds of the cluster.
    async fn run_once(&self, folder: EtcdFolder, name: &str, start: EtcdStart) -> Result<Option<Found>, Error> {
        let token = known_token(self.config, self.paths)?;
        // On a machine that has none yet they are for this run alone: those of the cluster are in its data.
        Certificates::new(self.config, self.paths, self.host)?.ensure(SystemTime::now())?;
        let member = self.member(name, start, &folder).await?;
        let config = EmbeddedEtcd { dir: folder.path().to_owned(), ..self.etcd.clone() };
        let launch = etcd(&config, &member, self.paths, &self.package.components);
        launch.install_files()?;
        self.supervisor.start([launch.program])?;
        let disk = measure(&folder).await?;
        let dir = folder.path().to_owned();
        let membership = Membership::new(member, folder, disk, self.paths.clone())?;
        let gate = self.supervisor.gate("datastore")?;
        let up = timeout(START, membership.until_it_votes(&gate)).await;
        up.map_err(|_| EtcdError::NotUp { dir })??;
        let found = bootstrap_data::load(&membership.client(), token.as_ref(), None).await?;
        api_addresses::forget(&membership.client()).await.map_err(BootstrapError::from)?;
        other_api_servers::forget(self.paths)?;
        Ok(found)
    }

    async fn member(&self, name: &str, start: EtcdStart, folder: &EtcdFolder) -> Result<EtcdMember, Error> {
        let measured = if folder.path().is_dir() { folder.clone() } else { EtcdFolder::new(folder.beside("")) };
        let timeouts = measure(&measured).await?.timeouts();
        Ok(EtcdMember { name: name.to_owned(), address: self.host.ips[0], start, timeouts })
    }
}
