//! A datastore that holds nothing although this server has run a cluster: its database was deleted or emptied, its disk is not mounted,
//! or it is another one. To go on from there would be a new cluster that looks like the old one.

use std::path::PathBuf;

use k3s_components::Paths;
use k3s_config::{
    datastore::{Datastore, OnDisk},
    embedded_etcd::EmbeddedEtcd,
};
use k3s_datastore::{Client, snapshot::is_lost};

use crate::{BootstrapError, Error, etcd::EtcdFolder};

/// What only a cluster that has been served has: Kubernetes makes the first namespaces before all else.
const NAMESPACES: &str = "/registry/namespaces/";

/// Refuses to make a database where there was one.
///
/// # Errors
/// [`Error::LostDatastore`]; [`Error::File`] if its place cannot be looked at.
pub(crate) fn check_file(config: &Datastore, paths: &Paths) -> Result<(), Error> {
    if !has_served(paths) {
        return Ok(());
    }
    let (place, is_lost) = match config.on_disk() {
        Some(OnDisk::Database(path)) => (path, is_lost(path).map_err(Error::file(path))?),
        // Who joins gets the cluster's state from its servers, and who was removed is told so. What SQLite holds is not lost: the member
        // says what to do with it.
        Some(OnDisk::Member(EmbeddedEtcd { dir, join, .. })) => {
            (&**dir, join.is_none() && EtcdFolder::new(dir).is_lost() && !paths.sqlite().exists())
        }
        None => return Ok(()),
    };
    if is_lost { Err(lost(place.display().to_string(), paths)) } else { Ok(()) }
}

/// Refuses a store without bootstrap data that has no objects either. Releases of k3s from before bootstrap data have those.
///
/// # Errors
/// [`Error::LostDatastore`]; [`Error::Bootstrap`] if the store cannot be read.
pub(crate) async fn check_content(config: &Datastore, client: &Client, paths: &Paths) -> Result<(), Error> {
    if !has_served(paths) || !client.list(NAMESPACES).await.map_err(BootstrapError::from)?.is_empty() {
        return Ok(());
    }
    let place = match config.on_disk() {
        Some(OnDisk::Database(path)) => path.display().to_string(),
        Some(OnDisk::Member(etcd)) => etcd.dir.display().to_string(),
        None if matches!(config, Datastore::OtherMembers(_)) => "of the servers with etcd".to_owned(),
        None => "--datastore-endpoint".to_owned(),
    };
    Err(lost(place, paths))
}

fn lost(place: String, paths: &Paths) -> Error {
    Error::LostDatastore { place, trace: trace(paths) }
}

/// The certificate of port 6443, which is made once the cluster's authorities are stored. Without it a server makes a new one.
fn trace(paths: &Paths) -> PathBuf {
    paths.tls("dynamic-cert.json")
}

fn has_served(paths: &Paths) -> bool {
    trace(paths).exists()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use k3s_datastore::{Datastore as Database, Options};

    use super::*;

    #[tokio::test]
    async fn a_cluster_does_not_begin_anew_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path().join("run"));
        let path = dir.path().join("state.db");
        let config = Datastore::Sqlite { path: path.clone() };
        fs::create_dir_all(paths.tls("")).unwrap();
        fs::write(paths.tls("server-ca.crt"), "brought by the user").unwrap();
        check_file(&config, &paths).unwrap();

        let store = Database::open(Options::new(&path)).await.unwrap();
        check_content(&config, &store.client(), &paths).await.unwrap();
        fs::write(trace(&paths), "{}").unwrap();
        check_file(&config, &paths).unwrap();
        let refused = check_content(&config, &store.client(), &paths).await.unwrap_err();
        assert_eq!(u8::from(refused.exit_code()), 65);
        let text = refused.to_string();
        assert!(
            text.contains("state.db") && text.contains("k3s snapshot restore") && text.contains("dynamic-cert.json")
        );
        store.client().create("/registry/namespaces/default", "").await.unwrap();
        check_content(&config, &store.client(), &paths).await.unwrap();
        store.close().await.unwrap();

        check_file(&config, &paths).unwrap();
        fs::write(&path, "").unwrap();
        assert!(check_file(&config, &paths).is_err(), "emptied");
        fs::remove_file(&path).unwrap();
        assert!(check_file(&config, &paths).is_err(), "gone");
        fs::remove_file(trace(&paths)).unwrap();
        check_file(&config, &paths).unwrap();
    }
}
