//! Exchanging a server's token for another one.

use std::path::{Path, PathBuf};

use k3s_files::{self as files, PRIVATE};

use crate::{
    error::Error,
    passwd::{Account, Passwd},
    token::{CaHash, Password, Token},
    token_files::password_of,
};

/// A server's files under its next token: worked out, and written when asked to.
#[derive(Debug)]
pub struct Rotation {
    server: PathBuf,
    token: Token,
    passwd: Passwd,
    old: Password,
    new: Password,
}

impl Rotation {
    /// Of the server in `server` (`<data>/server`), whose authority is `ca_bundle`, to the token `new`, bare or in full, or to a random
    /// one.
    ///
    /// Agents follow where they join with the server's token; not where they have their own, by file or by `--agent-token`
    /// (`agents_have_their_own`).
    ///
    /// # Errors
    /// [`Error::Given`] for a text that is no server's token; [`Error::NotSetUp`] where there is none yet; [`Error::SameToken`];
    /// files that cannot be read.
    pub fn prepare(
        server: &Path,
        new: Option<&str>,
        agents_have_their_own: bool,
        ca_bundle: &[u8],
    ) -> Result<Self, Error> {
        let new = new.map_or_else(Password::random, |text| password_of(text, "the new token"))?;
        let path = server.join("cred/passwd");
        let mut passwd = Passwd::load(&path)?;
        let old = passwd.password(Account::Server).ok_or(Error::NotSetUp { path })?;
        if old == new {
            return Err(Error::SameToken);
        }
        if !agents_have_their_own && passwd.password(Account::Node).is_none_or(|agents| agents == old) {
            passwd.set(Account::Node, &new);
        }
        passwd.set(Account::Server, &new);
        let token = Token::basic(CaHash::of(ca_bundle)?, Account::Server.user(), new.clone());
        Ok(Self { server: server.to_owned(), token, passwd, old, new })
    }

    /// The password of before.
    pub fn old(&self) -> &Password {
        &self.old
    }

    /// The token to be.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The password to be.
    pub fn new_password(&self) -> &Password {
        &self.new
    }

    /// What `cred/passwd` will hold.
    pub fn accounts(&self) -> Vec<u8> {
        self.passwd.to_csv().into_bytes()
    }

    /// Writes `cred/passwd`. It decides which token is in force, so it comes first.
    ///
    /// # Errors
    /// [`Error::File`]: the old token is in force as before.
    pub fn store_accounts(&self) -> Result<(), Error> {
        self.passwd.store(&self.server.join("cred/passwd"))
    }

    /// Writes the file that users copy the token from. A start writes it too.
    ///
    /// # Errors
    /// [`Error::File`]
    pub fn store_token(&self) -> Result<(), Error> {
        files::write(&self.server.join("token"), format!("{}\n", self.token).as_bytes(), PRIVATE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use k3s_pki::{CertificateAuthority, CertificateFiles};
    use tempfile::TempDir;

    use super::*;
    use crate::token_files::TokenFiles;

    /// A server with the token `old`, and its authority.
    fn server(agent_token: Option<&str>) -> (TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles::at(dir.path(), "server-ca");
        let authority = CertificateAuthority::ensure(files, "k3s-server", SystemTime::now()).unwrap();
        TokenFiles::ensure(dir.path(), Some("old"), agent_token, authority.bundle()).unwrap();
        (dir, authority.bundle().to_vec())
    }

    fn rotate(dir: &TempDir, new: Option<&str>, agents_have_their_own: bool, ca: &[u8]) -> Result<Token, Error> {
        let rotation = Rotation::prepare(dir.path(), new, agents_have_their_own, ca)?;
        rotation.store_accounts()?;
        rotation.store_token()?;
        Ok(rotation.token().clone())
    }

    #[test]
    fn servers_and_agents_get_the_new_password() {
        let (dir, ca) = server(None);
        let token = rotate(&dir, Some("new"), false, &ca).unwrap();
        let passwd = Passwd::load(&dir.path().join("cred/passwd")).unwrap();
        for account in [Account::Server, Account::Node] {
            assert_eq!(passwd.password(account), Some(Password::new("new")));
        }
        assert_eq!(fs::read_to_string(dir.path().join("node-token")).unwrap(), format!("{token}\n"));
        assert!(TokenFiles::ensure(dir.path(), Some("old"), None, &ca).is_err());
        assert_eq!(TokenFiles::ensure(dir.path(), Some("new"), None, &ca).unwrap().server, token);
    }

    #[test]
    fn agents_keep_a_token_of_their_own() {
        for (agent_token, known_as_theirs) in [("agents", false), ("old", true)] {
            let (dir, ca) = server(Some(agent_token));
            rotate(&dir, None, known_as_theirs, &ca).unwrap();
            let passwd = Passwd::load(&dir.path().join("cred/passwd")).unwrap();
            assert_eq!(passwd.password(Account::Node), Some(Password::new(agent_token)));
        }
    }

    #[test]
    fn a_new_token_is_drawn_or_given_bare_or_in_full() {
        let (dir, ca) = server(None);
        assert_eq!(rotate(&dir, None, false, &ca).unwrap().password().unwrap().expose().len(), 32);
        assert_eq!(rotate(&dir, Some("K10::server:mine"), false, &ca).unwrap().password().unwrap().expose(), "mine");
        assert!(matches!(rotate(&dir, Some("mine"), false, &ca), Err(Error::SameToken)));
        for bad in ["", "a b", "K10", "abcdef.0123456789abcdef"] {
            let error = rotate(&dir, Some(bad), false, &ca).unwrap_err().to_string();
            assert!(error.starts_with("the new token is not usable: "), "{error}");
        }
        let nothing = tempfile::tempdir().unwrap();
        assert!(matches!(rotate(&nothing, None, false, &ca), Err(Error::NotSetUp { .. })));
    }
}
