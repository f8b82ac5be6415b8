//! Who sets a cluster up, when several servers find a shared datastore empty at the same time.
//!
//! ```text
//! no key ──create──► an empty key: locked ──write──► the bootstrap data
//!    ▲                     │ another server of the same token waits
//!    └──── its owner is gone, and the lock with it
//! ```
//! The lock is k3s' own: the key that the data will have, without a value.

use std::time::Duration;

use k3s_datastore::{Client, ClientError, Stored};
use k3s_identity::Password;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    BootstrapError,
    seal::{PREFIX, storage_key},
    store::{self, Found},
};

/// How often a lock of another server's is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// After so many polls at the same lock, its owner is taken for gone: keys and certificates are made in less.
const PATIENCE: u32 = 30;

/// What a server that finds no bootstrap data does next.
#[derive(Debug, PartialEq, Eq)]
enum LockState<'a> {
    /// Nobody was here: lock.
    Lock,
    /// Another server sets the cluster up.
    Wait,
    /// It has not come to an end in all this time.
    Break(&'a Stored),
    /// A server with another token does.
    OtherToken,
}

impl<'a> LockState<'a> {
    /// `stored` are the keys of bootstrap data, all empty; the one that is ours has been seen `polls` times.
    fn of(stored: &'a [Stored], own: &str, polls: u32) -> Self {
        match stored.iter().find(|stored| stored.key == own.as_bytes()) {
            Some(lock) if polls >= PATIENCE => Self::Break(lock),
            Some(_) => Self::Wait,
            None if stored.is_empty() => Self::Lock,
            None => Self::OtherToken,
        }
    }
}

/// Waits until the datastore holds bootstrap data, which it returns, or until it is for this server to make it: `None`.
pub(crate) async fn acquire_init_lock(client: &Client, password: &Password) -> Result<Option<Found>, BootstrapError> {
    let own = storage_key(password.expose());
    let mut polls = 0;
    loop {
        let stored = client.list(PREFIX).await?;
        if let Some(found) = store::find(&stored, Some(password), None)? {
            return Ok(Some(found));
        }
        match LockState::of(&stored, &own, polls) {
            LockState::Lock if lock(client, &own).await? => return Ok(None),
            LockState::Lock => {}
            LockState::Wait => {
                if polls == 0 {
                    info!("Another server sets the cluster up; waiting for it.");
                }
                polls += 1;
                sleep(INTERVAL).await;
            }
            LockState::Break(lock) => {
                warn!("The server that was to set the cluster up has not done so; this one does.");
                match client.delete(&own, lock.modified).await {
                    // It has come to life, or somebody else was as impatient.
                    Err(ClientError::Changed(_)) => {}
                    deleted => deleted?,
                }
                polls = 0;
            }
            LockState::OtherToken => return Err(BootstrapError::OtherToken { sealed_by: store::hashes(&stored) }),
        }
    }
}

/// Whether the lock is ours: nobody has one, and nobody with another token was first.
async fn lock(client: &Client, own: &str) -> Result<bool, BootstrapError> {
    let modified = match client.create(own, "").await {
        Ok(modified) => modified,
        Err(ClientError::Exists(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if client.list(PREFIX).await?.iter().any(|stored| stored.modified < modified) {
        client.delete(own, modified).await?;
        return Ok(false);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use k3s_datastore::{Datastore, Options, Revision};
    use k3s_supervisor_api::{BootstrapData, File};

    use super::{super::store::save, *};

    #[test]
    fn every_turn() {
        let at =
            |key: &str, revision| Stored { key: key.to_owned().into(), value: "".into(), modified: Revision(revision) };
        let (own, other) = (at("/bootstrap/own", 1), at("/bootstrap/other", 2));
        let table = [
            (vec![], 0, LockState::Lock),
            (vec![own.clone()], 0, LockState::Wait),
            (vec![own.clone(), other.clone()], PATIENCE - 1, LockState::Wait),
            (vec![own.clone()], PATIENCE, LockState::Break(&own)),
            (vec![other], 0, LockState::OtherToken),
        ];
        for (stored, polls, expected) in table {
            assert_eq!(LockState::of(&stored, "/bootstrap/own", polls), expected, "{stored:?} {polls}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_server_sets_up_and_the_other_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let (client, token) = (datastore.client(), Password::new("s3cret"));
        assert!(acquire_init_lock(&client, &token).await.unwrap().is_none());
        let other = acquire_init_lock(&client, &Password::new("other")).await.unwrap_err();
        assert!(matches!(other, BootstrapError::OtherToken { .. }), "{other}");

        let file = File { modified: "2026-01-02T03:04:05Z".parse().unwrap(), content: "ca".into() };
        let data = BootstrapData { files: [("ServerCA".to_owned(), file)].into() };
        let set_up = async {
            sleep(3 * INTERVAL).await;
            save(&client, &token, data.clone(), None).await.unwrap();
        };
        let (found, ()) = tokio::join!(acquire_init_lock(&client, &token), set_up);
        assert_eq!(found.unwrap().unwrap().data, data);
        datastore.close().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_gone_holds_up_nobody_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let datastore = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let (client, token) = (datastore.client(), Password::new("s3cret"));
        assert!(acquire_init_lock(&client, &token).await.unwrap().is_none());
        assert!(acquire_init_lock(&client, &token).await.unwrap().is_none(), "the lock is broken and taken");
        // The first one comes back and finds that the data is another's by now.
        save(&client, &token, BootstrapData::default(), None).await.unwrap();
        let late = save(&client, &token, BootstrapData::default(), None).await;
        assert!(matches!(late, Err(BootstrapError::SetUpElsewhere)), "{late:?}");
        datastore.close().await.unwrap();
    }
}
