//! Encryption of Secrets: which keys kube-apiserver writes and reads them with, and how keys are exchanged.
//!
//! ```text
//! route ──► SecretsEncryption ──change──► bootstrap data ──take──► cred/encryption-config.json ──► kube-apiserver
//!                                               │                                                       │ has loaded it
//!                                               └──► the same on every other server                     ▼
//! the leader ◄── every server tells the same ◄────────────────────────────────────── annotation of the server's Node
//!     └──► writes all Secrets again, forgets old keys
//! ```
//! Files, keys' names, stages, annotation and documents are k3s' (`pkg/secretsencrypt`, `pkg/server/handlers/secrets-encrypt.go`). What
//! differs: the datastore has a configuration before any disk, no Secret is written again before every server reads the new key, and a
//! rotation that was cut off goes on by itself (`docs/adr/0035`).

mod config;
mod controller;
mod error;
mod files;
mod requests;
mod secrets;
mod servers;
mod stage;

use std::{path::PathBuf, sync::Arc};

use k3s_components::Paths;
use k3s_config::server::{EncryptionProvider, ServerConfig};
use k3s_supervisor_api::BootstrapData;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::info;

use crate::{BootstrapError, bootstrap_data, host::Host, token::ServerToken};
use config::EncryptionConfig;
use files::Encryption;
use stage::Stage;

pub(crate) use controller::{KeptEncryption, Reencryption};
pub use error::EncryptionError;
pub(crate) use files::{Setup, ensure};

/// The encryption of one server's cluster.
#[derive(Debug)]
pub(crate) struct SecretsEncryption {
    settings: Settings,
    token: Arc<ServerToken>,
    known: watch::Sender<Option<Known>>,
    /// How often Secrets were to be written again with all keys kept.
    passes: watch::Sender<u64>,
}

/// What a server is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `<data>/server`
    pub(crate) server_dir: PathBuf,
    /// How new keys encrypt.
    pub(crate) provider: EncryptionProvider,
    /// Who reads the file on this server.
    pub(crate) reader: Reader,
    /// Whether other servers have the same Secrets.
    pub(crate) is_shared: bool,
    /// The node that this server also is.
    pub(crate) own_node: Option<String>,
}

/// Who goes by the file on a server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// kube-apiserver, which was started with it: it was there, and the user brings none.
    KubeApiserver,
    /// kube-apiserver, once it is started again.
    NextStart,
    /// Nobody: it is kept for servers that join by this one, which runs no kube-apiserver.
    Nobody,
}

impl Settings {
    /// Of a server that is about to start kube-apiserver, where it runs one.
    pub(crate) fn of(config: &ServerConfig, paths: &Paths, host: &Host) -> Self {
        let users = config.args.kube_apiserver.value_of("encryption-provider-config");
        Self {
            server_dir: paths.server(),
            provider: config.encryption_provider,
            reader: match users.is_none() && paths.encryption_config().exists() {
                _ if config.disabled.apiserver => Reader::Nobody,
                true => Reader::KubeApiserver,
                false => Reader::NextStart,
            },
            is_shared: config.datastore.is_shared(),
            own_node: config.node.is_some().then(|| host.name.clone()),
        }
    }
}

/// What this server has on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    encryption: Encryption,
    /// Whether its kube-apiserver goes by it.
    is_loaded: bool,
}

impl SecretsEncryption {
    pub(crate) fn new(settings: Settings, token: Arc<ServerToken>) -> Self {
        Self { settings, token, known: watch::Sender::new(None), passes: watch::Sender::new(0) }
    }

    /// Brings this disk to what is stored, and returns that.
    async fn take(&self) -> Result<Option<Encryption>, EncryptionError> {
        let Some(data) = self.token.stored().await? else { return Ok(None) };
        let Some(encryption) = Encryption::stored_in(&data)? else { return Ok(None) };
        let server_dir = self.settings.server_dir.clone();
        let written = spawn_blocking(move || bootstrap_data::write_encryption(&server_dir, &data)).await;
        written.map_err(|_| EncryptionError::Stopped)??;
        self.known.send_if_modified(|known| {
            let differs = known.as_ref().is_none_or(|known| known.encryption != encryption);
            if differs {
                *known = Some(Known { encryption: encryption.clone(), is_loaded: false });
            }
            differs
        });
        Ok(Some(encryption))
    }

    /// Stores what `change` makes of what is stored, for all servers, and then brings this disk to it.
    ///
    /// # Errors
    /// Those of `change`, the datastore's and the disk's. Nothing has changed then, or the next start has it.
    async fn change(
        &self,
        change: impl Fn(Option<&Encryption>) -> Result<(EncryptionConfig, Stage), EncryptionError>,
    ) -> Result<(), EncryptionError> {
        let changed = |mut data: BootstrapData, on_disk: &BootstrapData| {
            let (config, stage) = change(Encryption::stored_in(&data)?.as_ref())?;
            Encryption::new(config, stage)?.store_in(&mut data, on_disk);
            Ok::<_, EncryptionError>(data)
        };
        self.token.reencrypt(changed).await?;
        self.take().await.map(drop)
    }

    /// Stores this in the place of what was found, for all servers.
    ///
    /// # Errors
    /// [`EncryptionError::Changed`] if that is not what is stored any more.
    async fn replace(&self, found: &Encryption, config: EncryptionConfig, stage: Stage) -> Result<(), EncryptionError> {
        self.change(
            |stored| {
                if stored == Some(found) { Ok((config.clone(), stage)) } else { Err(EncryptionError::Changed) }
            },
        )
        .await?;
        info!(stage = stage.name(), "The encryption of Secrets goes on to its next stage.");
        Ok(())
    }

    fn is_noted_loaded(&self, encryption: &Encryption) -> bool {
        self.known.borrow().as_ref().is_some_and(|known| known.encryption == *encryption && known.is_loaded)
    }

    /// Notes that kube-apiserver goes by `encryption`, if that is still what counts.
    fn note_loaded(&self, encryption: &Encryption) {
        self.known.send_if_modified(|known| match known {
            Some(known) if known.encryption == *encryption && !known.is_loaded => {
                known.is_loaded = true;
                true
            }
            _ => false,
        });
    }
}

impl From<BootstrapError> for EncryptionError {
    fn from(error: BootstrapError) -> Self {
        Self::Bootstrap(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;
    use k3s_datastore::{Datastore, Options};
    use k3s_identity::Password;
    use tempfile::TempDir;

    use super::*;
    use crate::bootstrap_data::{Precedence, reconcile};

    /// A server, and its directory.
    struct Server {
        dir: TempDir,
        encryption: SecretsEncryption,
    }

    impl Server {
        fn on(datastore: &Datastore) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let token = Password::new("s3cret");
            let token = ServerToken::new(dir.path().to_owned(), Vec::new(), false, datastore.client(), token);
            let settings = Settings {
                server_dir: dir.path().to_owned(),
                provider: EncryptionProvider::AesCbc,
                reader: Reader::KubeApiserver,
                is_shared: true,
                own_node: None,
            };
            Self { encryption: SecretsEncryption::new(settings, Arc::new(token)), dir }
        }

        fn file(&self) -> Option<Vec<u8>> {
            fs::read(self.dir.path().join("cred/encryption-config.json")).ok()
        }
    }

    fn first(stored: Option<&Encryption>) -> Result<(EncryptionConfig, Stage), EncryptionError> {
        match stored {
            None => Ok((EncryptionConfig::new(EncryptionProvider::AesCbc)?, Stage::Start)),
            Some(_) => Err(EncryptionError::Changed),
        }
    }

    #[tokio::test]
    async fn what_one_server_stores_another_takes() {
        let dir = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(dir.path().join("state.db"))).await.unwrap();
        let [one, two] = [Server::on(&datastore), Server::on(&datastore)];
        assert_eq!(two.encryption.take().await.unwrap(), None);
        one.encryption.change(first).await.unwrap();
        let taken = two.encryption.take().await.unwrap().unwrap();
        assert!(two.file().is_some() && two.file() == one.file());
        two.encryption.note_loaded(&taken);
        assert!(two.encryption.is_noted_loaded(&taken));

        let next = taken.config.with_new_key(EncryptionProvider::AesCbc, Timestamp::now()).unwrap();
        one.encryption.replace(&taken, next.clone(), Stage::RotateKeys).await.unwrap();
        let refused = two.encryption.replace(&taken, next, Stage::RotateKeys).await;
        assert!(matches!(refused, Err(EncryptionError::Changed)), "it was changed by the other one");
        let taken = two.encryption.take().await.unwrap().unwrap();
        assert_eq!(taken.state.stage, Stage::RotateKeys);
        assert!(!two.encryption.is_noted_loaded(&taken), "another file has to be loaded anew");
        assert_eq!(two.file(), one.file());
        datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_dies_before_it_writes_its_files_starts_with_what_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(dir.path().join("state.db"))).await.unwrap();
        let server = Server::on(&datastore);
        server.encryption.change(first).await.unwrap();
        let before = ["config", "state"].map(|file| server.dir.path().join(format!("cred/encryption-{file}.json")));
        let contents = before.clone().map(|path| fs::read(path).unwrap());
        let found = server.encryption.take().await.unwrap().unwrap();
        let next = found.config.with_new_key(EncryptionProvider::AesCbc, Timestamp::now()).unwrap().with_newest_first();
        server.encryption.replace(&found, next, Stage::ReencryptActive).await.unwrap();
        let after = server.file();
        for (path, content) in before.iter().zip(&contents) {
            fs::write(path, content).unwrap();
        }
        // The next start, after which the stage is gone on with.
        let stored = server.encryption.token.stored().await.unwrap().unwrap();
        for folder in ["tls", "tls/etcd"] {
            fs::create_dir_all(server.dir.path().join(folder)).unwrap();
        }
        reconcile(&stored, server.dir.path(), Precedence::Undecided).unwrap();
        assert_eq!(server.file(), after);
        ensure(server.dir.path(), None, Setup::BesideOthers).unwrap();
        let state = fs::read_to_string(&before[1]).unwrap();
        assert!(state.starts_with("reencrypt_active-"), "{state}");
        datastore.close().await.unwrap();
    }
}
