//! The token of a running server: what seals the datastore's bootstrap data, and how it is exchanged for another one.
//!
//! A rotation is three steps, and a power cut after any of them leaves a server that starts:
//!
//! ```text
//!                    /bootstrap/<old>   /bootstrap/<new>   on disk    starts with
//!   before                 ●                                 old       old
//!   sealed                 ●                  ●              old       old, or new given as --token
//!   stored                 ●                  ●              new       new
//!   done                                      ●              new       new
//! ```
//! What a cut leaves behind of the old key is removed by the next start, or else by the next rotation.

use std::path::PathBuf;

use k3s_datastore::{Client, ClientError};
use k3s_identity::{Password, Rotation, Token};
use k3s_supervisor_api::BootstrapData;
use tokio::sync::{Mutex, watch};
use tracing::info;

use crate::{BootstrapError, Error, bootstrap_data};

/// The token of a running server.
#[derive(Debug)]
pub struct ServerToken {
    /// `<data>/server`.
    server: PathBuf,
    ca_bundle: Vec<u8>,
    /// Whether agents join with a token of their own (`--agent-token`).
    agents_have_their_own: bool,
    datastore: Client,
    password: watch::Sender<Password>,
    /// Held throughout whatever changes what is stored.
    rotating: Mutex<()>,
}

impl ServerToken {
    /// The token `password` of the server in `server` (`<data>/server`), whose authority is `ca_bundle` and whose bootstrap data lies
    /// in `datastore`.
    pub(crate) fn new(
        server: PathBuf,
        ca_bundle: Vec<u8>,
        agents_have_their_own: bool,
        datastore: Client,
        password: Password,
    ) -> Self {
        let (password, _) = watch::channel(password);
        Self { server, ca_bundle, agents_have_their_own, datastore, password, rotating: Mutex::default() }
    }

    /// The password in force.
    pub(crate) fn password(&self) -> watch::Receiver<Password> {
        self.password.subscribe()
    }

    /// Exchanges the token for `new`, a password or a whole K10 token, or for a random one. Returns the token in full.
    ///
    /// From then on only the new one opens `cred/passwd` and the datastore's bootstrap data; other servers of the cluster have to be
    /// started with it, and snapshots of before still need the old one. Rotations wait for each other.
    ///
    /// # Errors
    /// [`Error::Identity`] for a token that will not do; that and [`Error::Bootstrap`] if disk or datastore fail. The old token is in
    /// force then, unless the error is [`BootstrapError::OldTokenOpens`] or one of writing `token`, which the next start mends.
    pub async fn rotate(&self, new: Option<&str>) -> Result<Token, Error> {
        let _rotating = self.rotating.lock().await;
        let rotation = Rotation::prepare(&self.server, new, self.agents_have_their_own, &self.ca_bundle)?;
        self.seal(&rotation).await?;
        self.store(&rotation)?;
        self.forget_old(&rotation).await?;
        let token_hash = bootstrap_data::token_hash(rotation.new_password().expose());
        info!(token_hash, "The server token was exchanged for another one.");
        Ok(rotation.token().clone())
    }

    /// The bootstrap data as it is stored; `None` if there is none. Rotations are waited for.
    ///
    /// # Errors
    /// The datastore's, and [`BootstrapError::OtherToken`] if another server has exchanged the token.
    pub(crate) async fn stored(&self) -> Result<Option<BootstrapData>, BootstrapError> {
        let _rotating = self.rotating.lock().await;
        let password = self.password.borrow().clone();
        Ok(bootstrap_data::load(&self.datastore, Some(&password), None).await?.map(|found| found.data))
    }

    /// Stores what `change` makes of the bootstrap data and of what is on this server's disk; asked once more if another server has stored
    /// something meanwhile. Rotations are waited for.
    ///
    /// # Errors
    /// Those of `change`, and the datastore's. Nothing has changed then.
    pub(crate) async fn reencrypt<E: From<BootstrapError>>(
        &self,
        change: impl Fn(BootstrapData, &BootstrapData) -> Result<BootstrapData, E>,
    ) -> Result<(), E> {
        let _rotating = self.rotating.lock().await;
        let password = self.password.borrow().clone();
        loop {
            let found = bootstrap_data::load(&self.datastore, Some(&password), None).await?;
            let on_disk = bootstrap_data::from_disk(&self.server).map_err(BootstrapError::from)?;
            let data = change(bootstrap_data::stored_or(&on_disk, found.as_ref()), &on_disk)?;
            match bootstrap_data::save(&self.datastore, &password, data, found).await {
                Err(BootstrapError::Datastore(ClientError::Changed(_))) => {}
                saved => return Ok(saved?),
            }
        }
    }

    /// Stores the bootstrap data a second time, sealed by the new token, with the accounts that go with it.
    async fn seal(&self, rotation: &Rotation) -> Result<(), Error> {
        let found = bootstrap_data::load(&self.datastore, Some(rotation.old()), None).await?;
        let on_disk = bootstrap_data::from_disk(&self.server)?;
        // Not the other way round: authorities that were replaced since the start are not on the disk yet.
        let mut data = bootstrap_data::stored_or(&on_disk, found.as_ref());
        bootstrap_data::set_accounts(&mut data, &on_disk, rotation.accounts());
        Ok(bootstrap_data::save_beside(&self.datastore, rotation.new_password(), data, found).await?)
    }

    fn store(&self, rotation: &Rotation) -> Result<(), Error> {
        rotation.store_accounts()?;
        self.password.send_replace(rotation.new_password().clone());
        Ok(rotation.store_token()?)
    }

    async fn forget_old(&self, rotation: &Rotation) -> Result<(), Error> {
        let forgotten = bootstrap_data::keep_only(&self.datastore, rotation.new_password()).await;
        Ok(forgotten.map_err(BootstrapError::OldTokenOpens)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use k3s_datastore::{Datastore, Options};
    use k3s_identity::TokenFiles;
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;
    use crate::bootstrap_data::{Precedence, from_disk, load, reconcile, save};

    /// A server that was set up with the token `old`.
    struct Server {
        dir: TempDir,
        ca: Vec<u8>,
        datastore: Datastore,
    }

    impl Server {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let key = KeyPair::generate().unwrap();
            let ca = CertificateParams::default().self_signed(&key).unwrap().pem().into_bytes();
            for (path, content) in [("tls/etcd/peer-ca.crt", &ca), ("tls/server-ca.crt", &ca)] {
                fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
                fs::write(dir.path().join(path), content).unwrap();
            }
            let datastore = Datastore::open(Options::new(dir.path().join("state.db"))).await.unwrap();
            let server = Self { dir, ca, datastore };
            assert_eq!(server.start(Some("old")).await.unwrap(), "old");
            server
        }

        /// What a start does with tokens: returns the password in force.
        async fn start(&self, given: Option<&str>) -> Result<String, Error> {
            let (server, client) = (self.dir.path(), self.datastore.client());
            let password = match given {
                Some(given) => Some(Password::new(given)),
                None => TokenFiles::password(server)?,
            };
            let found = load(&client, password.as_ref(), None).await?;
            if let Some(found) = &found {
                reconcile(&found.data, server, Precedence::Undecided)?;
            }
            let tokens = TokenFiles::ensure(server, given, None, &self.ca)?;
            let password = tokens.server.password().unwrap().clone();
            save(&client, &password, from_disk(server)?, found).await?;
            Ok(password.expose().to_owned())
        }

        fn token(&self) -> ServerToken {
            let password = Password::new("old");
            ServerToken::new(self.dir.path().to_owned(), self.ca.clone(), false, self.datastore.client(), password)
        }

        async fn keys(&self) -> Vec<String> {
            let stored = self.datastore.client().list(bootstrap_data::PREFIX).await.unwrap();
            let mut keys: Vec<_> = stored.iter().map(|one| String::from_utf8(one.key.to_vec()).unwrap()).collect();
            keys.sort();
            keys
        }

        /// A power cut: what a rotation did up to `step` is there, and nothing more.
        async fn rotate_up_to(&self, step: usize) {
            let token = self.token();
            let rotation = Rotation::prepare(self.dir.path(), Some("new"), false, &self.ca).unwrap();
            if step >= 1 {
                token.seal(&rotation).await.unwrap();
            }
            if step >= 2 {
                rotation.store_accounts().unwrap();
            }
            if step >= 3 {
                rotation.store_token().unwrap();
            }
            if step >= 4 {
                token.forget_old(&rotation).await.unwrap();
            }
        }
    }

    fn key(password: &str) -> String {
        format!("/bootstrap/{}", bootstrap_data::token_hash(password))
    }

    #[tokio::test]
    async fn the_new_token_is_the_only_one() {
        let server = Server::new().await;
        let token = server.token();
        let new = token.rotate(Some("new")).await.unwrap();
        assert!(new.to_string().ends_with("::server:new"));
        assert_eq!((token.password().borrow().expose(), server.keys().await), ("new", vec![key("new")]));
        assert_eq!(server.start(None).await.unwrap(), "new");
        assert_eq!(server.start(Some("new")).await.unwrap(), "new");
        let refused = server.start(Some("old")).await.unwrap_err().to_string();
        assert!(refused.contains("encrypted with different token"), "{refused}");
        let drawn = token.rotate(None).await.unwrap();
        assert_eq!(server.keys().await, [key(drawn.password().unwrap().expose())]);
        server.datastore.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_power_cut_at_any_step_leaves_a_server_that_starts() {
        // Up to which step, which token is given at the next start, which is in force then.
        let table = [
            (0, None, Some("old")),
            (1, None, Some("old")),
            (1, Some("old"), Some("old")),
            (1, Some("new"), Some("new")),
            (2, None, Some("new")),
            (2, Some("new"), Some("new")),
            (3, None, Some("new")),
            (4, None, Some("new")),
        ];
        for (step, given, in_force) in table {
            let server = Server::new().await;
            server.rotate_up_to(step).await;
            let started = server.start(given).await.ok();
            assert_eq!(started.as_deref(), in_force, "after step {step}, started with {given:?}");
            if in_force == Some("new") {
                assert_eq!(server.keys().await, [key("new")], "the old key goes after step {step}");
            }
            // Whatever was left, another rotation leaves one key.
            if let Some(password) = in_force {
                server.token().rotate(Some("newest")).await.unwrap();
                assert_eq!(server.keys().await, [key("newest")], "after step {step}, from {password}");
            }
            server.datastore.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_will_not_do_changes_nothing() {
        let server = Server::new().await;
        let token = server.token();
        for bad in ["old", "", "two words", "abcdef.0123456789abcdef"] {
            assert!(matches!(token.rotate(Some(bad)).await, Err(Error::Identity(_))), "{bad}");
        }
        assert_eq!((server.start(None).await.unwrap(), server.keys().await), ("old".to_owned(), vec![key("old")]));
        server.datastore.close().await.unwrap();
        // The datastore is gone: nothing is written to the disk either.
        assert!(matches!(token.rotate(None).await, Err(Error::Bootstrap(_))));
        assert_eq!(TokenFiles::password(server.dir.path()).unwrap(), Some(Password::new("old")));
    }
}
