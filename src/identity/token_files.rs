//! A server's token files, below `<data>/server`:
//!
//! ```text
//! token                  K10<hash>::server:<password>
//! node-token -> token    its name in older releases, still what documentation tells users to copy
//! agent-token            K10<hash>::node:<password> with --agent-token, else -> token
//! cred/passwd            the accounts that the passwords belong to
//! ```

use std::path::{Path, PathBuf};

use k3s_files::{self as files, PRIVATE};

use crate::{
    error::Error,
    passwd::{Account, Passwd},
    token::{CaHash, Password, Token, TokenError},
};

/// The tokens that let servers and agents join, stored.
#[derive(Debug)]
pub struct TokenFiles {
    /// Lets servers join, and agents too unless they have their own.
    pub server: Token,
    /// Lets agents join.
    pub agent: Token,
    /// Checks them.
    pub passwd: Passwd,
    /// Where the server token lies.
    pub path: PathBuf,
}

impl TokenFiles {
    /// The password that the server in `dir` (`<data>/server`) was set up with; `None` before its first start.
    ///
    /// # Errors
    /// The files cannot be read, or hold no token.
    pub fn password(dir: &Path) -> Result<Option<Password>, Error> {
        stored(&dir.join("token"), &Passwd::load(&dir.join("cred/passwd"))?)
    }

    /// Stores the tokens of a server in `dir` (`<data>/server`) whose authority is `ca_bundle`.
    ///
    /// Without `given`, the stored password stays, or one is drawn at the first start. A `given` one must be the stored one: the
    /// cluster's data is encrypted by it. An `agent_token` may change at each start, and leaving it out withdraws it, as in k3s.
    ///
    /// # Errors
    /// The `given` one is not the stored one, or can be no token; the bundle is no authority; or a file cannot be read or written.
    pub fn ensure(dir: &Path, given: Option<&str>, agent_token: Option<&str>, ca_bundle: &[u8]) -> Result<Self, Error> {
        let path = dir.join("token");
        let passwd_path = dir.join("cred/passwd");
        let ca_hash = CaHash::of(ca_bundle)?;
        let mut passwd = Passwd::load(&passwd_path)?;

        let stored = stored(&path, &passwd)?;
        let server = match (given.map(|text| password_of(text, "--token")).transpose()?, stored) {
            (Some(given), Some(stored)) if given != stored => return Err(Error::OtherToken { path }),
            (Some(password), _) | (None, Some(password)) => password,
            (None, None) => Password::random()?,
        };
        let own_agent = agent_token.map(|text| password_of(text, "--agent-token")).transpose()?;
        let agent = own_agent.clone().unwrap_or_else(|| server.clone());

        files::create_directory(&dir.join("cred"), 0o700)?;
        passwd.set(Account::Node, &agent);
        passwd.set(Account::Server, &server);
        passwd.store(&passwd_path)?;

        let server = Token::basic(ca_hash.clone(), Account::Server.user(), server);
        let agent = Token::basic(ca_hash, Account::Node.user(), agent);
        files::write(&path, format!("{server}\n").as_bytes(), PRIVATE)?;
        files::symlink(&path, &dir.join("node-token"))?;
        match own_agent {
            Some(_) => files::write(&dir.join("agent-token"), format!("{agent}\n").as_bytes(), PRIVATE)?,
            None => files::symlink(&path, &dir.join("agent-token"))?,
        };
        Ok(Self { server, agent, passwd, path })
    }
}

fn stored(path: &Path, passwd: &Passwd) -> Result<Option<Password>, Error> {
    match passwd.password(Account::Server) {
        Some(password) => Ok(Some(password)),
        None => stored_password(path),
    }
}

/// The password of a token that a user gave, bare or in full, as `option`.
pub(crate) fn password_of(text: &str, option: &'static str) -> Result<Password, Error> {
    let token = if text.contains(char::is_whitespace) { Err(TokenError::WhiteSpace) } else { text.parse::<Token>() };
    token.and_then(|token| token.password().cloned()).map_err(|source| Error::Given { option, source })
}

/// The password of a token file, `None` if the file is missing or was torn by a power cut.
fn stored_password(path: &Path) -> Result<Option<Password>, Error> {
    let Some(text) = files::read(path)?.filter(|text| !files::is_torn(text)) else { return Ok(None) };
    let token: Result<Token, _> = String::from_utf8_lossy(&text).trim().parse();
    let password = token.and_then(|token| token.password().cloned());
    password.map(Some).map_err(|source| Error::Stored { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use k3s_pki::{CertificateAuthority, CertificateFiles};

    use super::*;

    struct Server {
        dir: tempfile::TempDir,
        bundle: Vec<u8>,
    }

    impl Server {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let files = CertificateFiles::at(dir.path(), "server-ca");
            let authority = CertificateAuthority::ensure(files, "k3s-server", SystemTime::now()).unwrap();
            Self { bundle: authority.bundle().to_vec(), dir }
        }

        fn start(&self, token: Option<&str>, agent_token: Option<&str>) -> Result<TokenFiles, Error> {
            TokenFiles::ensure(self.dir.path(), token, agent_token, &self.bundle)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join(name)).unwrap()
        }
    }

    #[test]
    fn the_first_start_draws_a_password_and_the_second_keeps_it() {
        let server = Server::new();
        let tokens = server.start(None, None).unwrap();
        let password = tokens.server.password().unwrap().expose().to_owned();
        assert_eq!(password.len(), 32);
        let hash = CaHash::of(&server.bundle).unwrap();
        assert_eq!(server.read("token"), format!("K10{}::server:{password}\n", hash.as_str()));
        assert_eq!(server.read("node-token"), server.read("token"));
        assert_eq!(server.read("agent-token"), server.read("token"));
        assert_eq!(
            server.read("cred/passwd"),
            format!("{password},node,node,k3s:agent\n{password},server,server,k3s:server\n")
        );
        assert_eq!(server.start(None, None).unwrap().server, tokens.server);
    }

    #[test]
    fn a_given_token_is_taken_in_both_forms_and_cannot_be_another_later() {
        let server = Server::new();
        server.start(Some("s3cret"), None).unwrap();
        server.start(Some("K10::server:s3cret"), None).unwrap();
        server.start(Some(server.read("token").trim()), None).unwrap();
        let before = server.read("cred/passwd");
        let error = server.start(Some("other"), None).unwrap_err().to_string();
        assert!(error.contains("--token is not the token that this server was set up with"), "{error}");
        assert_eq!(server.read("cred/passwd"), before);
    }

    #[test]
    fn agents_can_have_their_own_and_lose_it_again() {
        let server = Server::new();
        let tokens = server.start(Some("s3cret"), Some("agents")).unwrap();
        assert!(server.read("agent-token").ends_with("::node:agents\n"));
        assert_eq!(tokens.passwd.password(Account::Node), Some(Password::new("agents")));
        let tokens = server.start(None, None).unwrap();
        assert_eq!(tokens.passwd.password(Account::Node), Some(Password::new("s3cret")));
        assert_eq!(server.read("agent-token"), server.read("token"));
    }

    #[test]
    fn the_token_file_outlives_a_lost_passwd() {
        let server = Server::new();
        let first = server.start(None, None).unwrap();
        fs::remove_file(server.dir.path().join("cred/passwd")).unwrap();
        assert_eq!(server.start(None, None).unwrap().server, first.server);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let server = Server::new();
        for bad in ["", "K10", "K10x::server:a", "abcdef.0123456789abcdef"] {
            let error = server.start(Some(bad), None).unwrap_err();
            assert!(matches!(error, Error::Given { option: "--token", .. }), "{bad}: {error}");
        }
        assert!(!server.dir.path().join("token").exists());
        fs::write(server.dir.path().join("token"), "K10 shopping list").unwrap();
        assert!(matches!(server.start(None, None), Err(Error::Stored { .. })));
        assert_eq!(server.read("token"), "K10 shopping list");
    }
}
