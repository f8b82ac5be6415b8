//! Logins by password, checked by `cred/passwd` as it is now.
//!
//! A password that is not known yet costs one scrypt on a thread of its own: so many at once, so many waiting, and no more, whoever
//! asks. One that was right is recognised from then on, until the file changes.

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use k3s_http::Status;
use k3s_identity::{Error as IdentityError, Logins, Passwd, Password};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::error;

use super::guesses::Guesses;
use crate::caller::Caller;

/// Passwords that are being checked at the same time: each takes a core and 32 MiB for a tenth of a second.
const AT_ONCE: usize = 1;
/// Requests that wait for that.
const WAITING: usize = 32;

/// The accounts of one file.
pub(super) struct Accounts {
    path: PathBuf,
    loaded: tokio::sync::Mutex<Option<Arc<Loaded>>>,
    turns: Arc<Semaphore>,
    waiting: Semaphore,
    guesses: Arc<Guesses>,
}

/// One version of the file.
struct Loaded {
    version: Version,
    logins: Logins,
    /// Draws a new one each time: what is recognised under it is worth nothing elsewhere.
    key: hmac::Key,
    recognised: Mutex<HashMap<[u8; 32], Caller>>,
}

/// Changes whenever the file is replaced or written. `None` if there is none.
type Version = Option<(u64, i64, i64, u64)>;

impl Accounts {
    /// Of the file at `path`, which is read when the first one logs in.
    pub(super) fn new(path: PathBuf, guesses: Arc<Guesses>) -> Self {
        Self {
            path,
            loaded: tokio::sync::Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Semaphore::new(WAITING),
            guesses,
        }
    }

    /// Who at `source` knows this password; `None` if it is wrong.
    pub(super) async fn log_in(
        &self,
        user: &str,
        password: &Password,
        source: IpAddr,
    ) -> Result<Option<Caller>, Status> {
        let version = version(&self.path).map_err(|source| {
            error!(path = %self.path.display(), error = %source, "Nobody can log in by password.");
            Status::internal("the server cannot check passwords; its log says why")
        })?;
        let current = self.loaded.lock().await.clone().filter(|loaded| loaded.version == version);
        if let Some(caller) = current.as_ref().and_then(|loaded| loaded.recognise(user, password)) {
            return Ok(Some(caller));
        }
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(Status::too_many_requests("Too many requests, please try again later."));
        };
        let guess = self.guesses.begin(source)?;
        let checked = self.check(current, user, password).await;
        if !matches!(checked, Ok(None)) {
            guess.not_wrong();
        }
        checked
    }

    /// Checks a password that is not recognised by `current`, in turn.
    async fn check(
        &self,
        current: Option<Arc<Loaded>>,
        user: &str,
        password: &Password,
    ) -> Result<Option<Caller>, Status> {
        let loaded = match current {
            Some(loaded) => loaded,
            None => self.load().await?.map_err(|error| unreadable(&error))?,
        };
        // It may be that it was checked while we waited.
        let turn = self.turn().await?;
        if let Some(caller) = loaded.recognise(user, password) {
            return Ok(Some(caller));
        }
        let (user, password) = (user.to_owned(), password.clone());
        let checked = spawn_blocking(move || {
            let caller = loaded.check(&user, &password);
            drop(turn);
            caller
        });
        checked.await.map_err(|_| stopping())
    }

    /// Reads the file and hashes its passwords, unless another request just has.
    async fn load(&self) -> Result<Result<Arc<Loaded>, IdentityError>, Status> {
        let mut slot = self.loaded.lock().await;
        let turn = self.turn().await?;
        let (path, old) = (self.path.clone(), slot.clone());
        let loading = spawn_blocking(move || {
            let loaded = Loaded::read(path, old);
            drop(turn);
            loaded
        });
        let loaded = loading.await.map_err(|_| stopping())?;
        if let Ok(loaded) = &loaded {
            *slot = Some(loaded.clone());
        }
        Ok(loaded)
    }

    async fn turn(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        self.turns.clone().acquire_owned().await.map_err(|_| stopping())
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Loaded {
    fn read(path: PathBuf, old: Option<Arc<Self>>) -> Result<Arc<Self>, IdentityError> {
        // Before the contents: if they change meanwhile, the next request reads them again.
        let version = version(&path).unwrap_or_default();
        if let Some(old) = old.filter(|old| old.version == version) {
            return Ok(old);
        }
        let logins = Logins::new(&Passwd::load(&path)?)?;
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| IdentityError::Random)?;
        Ok(Arc::new(Self { version, logins, key, recognised: Mutex::default() }))
    }

    fn recognise(&self, user: &str, password: &Password) -> Option<Caller> {
        let recognised = self.recognised.lock().unwrap_or_else(PoisonError::into_inner);
        recognised.get(&self.digest(user, password)).cloned()
    }

    fn check(&self, user: &str, password: &Password) -> Option<Caller> {
        let caller = Caller::new(user, self.logins.authenticate(user, password.expose())?);
        let mut recognised = self.recognised.lock().unwrap_or_else(PoisonError::into_inner);
        recognised.insert(self.digest(user, password), caller.clone());
        Some(caller)
    }

    /// Of both, told apart by the first one's length.
    fn digest(&self, user: &str, password: &Password) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(user.len() as u64).to_le_bytes());
        context.update(user.as_bytes());
        context.update(password.expose().as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }
}

fn version(path: &std::path::Path) -> io::Result<Version> {
    match fs::metadata(path) {
        Ok(file) => Ok(Some((file.ino(), file.ctime(), file.ctime_nsec(), file.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn unreadable(error: &IdentityError) -> Status {
    error!(%error, "Nobody can log in by password.");
    Status::internal("the server cannot check passwords; its log says why")
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
}

#[cfg(test)]
mod tests {
    use k3s_identity::Account;

    use super::*;
    use crate::caller::Group;

    fn store(path: &std::path::Path, password: &str) {
        let mut passwd = Passwd::default();
        passwd.set(Account::Node, &Password::new(password));
        passwd.store(path).unwrap();
    }

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn accounts(path: PathBuf) -> Accounts {
        Accounts::new(path, Arc::new(Guesses::new()))
    }

    async fn groups(accounts: &Accounts, password: &str) -> Option<Vec<Group>> {
        let caller = accounts.log_in("node", &Password::new(password), SOURCE).await.unwrap();
        caller.map(|caller| Vec::from_iter(caller.groups))
    }

    #[tokio::test]
    async fn a_changed_file_counts_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        let accounts = accounts(path.clone());
        assert_eq!(groups(&accounts, "old").await, None, "there is no file yet");
        store(&path, "old");
        for _ in 0..2 {
            assert_eq!(groups(&accounts, "old").await, Some(vec![Group::Agent]));
        }
        store(&path, "new");
        assert_eq!(groups(&accounts, "old").await, None);
        assert_eq!(groups(&accounts, "new").await, Some(vec![Group::Agent]));
    }

    #[tokio::test]
    async fn a_flood_of_guesses_is_held_back_and_does_not_hold_back_who_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        store(&path, "right");
        let accounts = accounts(path);
        assert!(groups(&accounts, "right").await.is_some());
        let _places = accounts.waiting.acquire_many(WAITING as u32).await.unwrap();
        let refused = accounts.log_in("node", &Password::new("wrong"), SOURCE).await.unwrap_err();
        assert_eq!(refused, Status::too_many_requests("Too many requests, please try again later."));
        assert!(groups(&accounts, "right").await.is_some());
    }

    #[tokio::test]
    async fn a_broken_file_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        fs::write(&path, "right,node\n").unwrap();
        let refused = accounts(path).log_in("node", &Password::new("right"), SOURCE).await.unwrap_err();
        assert_eq!(refused, Status::internal("the server cannot check passwords; its log says why"));
    }
}
