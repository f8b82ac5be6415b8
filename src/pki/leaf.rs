//! Certificates that an authority issues, and the files they live in.

use std::{
    collections::BTreeSet,
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use time::{Duration, OffsetDateTime};
use tracing::{debug, info};

use crate::{
    authority::CertificateAuthority,
    certificate::{Certificate, bundle},
    error::Error,
    files::{self, PRIVATE},
    key::PrivateKey,
    renewal::{self, Decision, Reason},
    san::San,
};

/// How long issued certificates last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime(Duration);

impl Default for Lifetime {
    /// A year, as in k3s.
    fn default() -> Self {
        Self(Duration::days(365))
    }
}

impl Lifetime {
    /// So many days, at least one.
    pub fn of_days(days: NonZeroU16) -> Self {
        Self(Duration::days(days.get().into()))
    }

    pub(crate) fn duration(self) -> Duration {
        self.0
    }
}

/// What a certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The user or server it names.
    pub common_name: String,
    /// The group of a client.
    pub organization: Option<String>,
    /// Which side of a connection it is for.
    pub usage: Usage,
    /// What a server is reached by.
    pub sans: BTreeSet<San>,
}

/// The extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// `clientAuth`
    Client,
    /// `serverAuth`
    Server,
    /// Both: etcd members call each other.
    Peer,
}

/// A certificate (followed by its authority's chain) and its key, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// `<name>.crt`
    pub certificate: PathBuf,
    /// `<name>.key`
    pub key: PathBuf,
}

impl Profile {
    /// A client in at most one group.
    pub fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            usage: Usage::Client,
            sans: BTreeSet::new(),
        }
    }

    /// A server.
    pub fn server(name: &str, sans: BTreeSet<San>) -> Self {
        Self { common_name: name.to_owned(), organization: None, usage: Usage::Server, sans }
    }

    /// A server that is a client of its own kind.
    pub fn peer(name: &str, sans: BTreeSet<San>) -> Self {
        Self { usage: Usage::Peer, ..Self::server(name, sans) }
    }
}

impl Usage {
    /// Whether clients accept it from a server.
    pub fn is_server(self) -> bool {
        self != Self::Client
    }

    /// Whether servers accept it from a client.
    pub fn is_client(self) -> bool {
        self != Self::Server
    }
}

impl CertificateFiles {
    /// `<stem>.crt` and `<stem>.key`; the stem may hold dots.
    pub fn at(dir: &Path, stem: &str) -> Self {
        Self { certificate: dir.join(format!("{stem}.crt")), key: dir.join(format!("{stem}.key")) }
    }

    /// Makes the files hold a certificate of this profile that [`renewal`] would keep.
    ///
    /// A key that is there stays, and a new one is written before its certificate: a power cut between the two is found as
    /// a mismatch at the next start.
    ///
    /// # Errors
    /// The files cannot be read or written, or the authority cannot sign.
    pub fn ensure(
        &self,
        profile: &Profile,
        authority: &CertificateAuthority,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let key = PrivateKey::load_or_generate(&self.key)?;
        let found = |pem: Vec<u8>| {
            let chain = bundle(&pem)?;
            Ok((Certificate::parse(&chain[0])?, chain))
        };
        let reason = match files::read(&self.certificate)?.map(found) {
            None => Reason::Missing,
            Some(Err(unreadable)) => Reason::Unreadable(unreadable),
            Some(Ok((found, chain))) => {
                match renewal::decision(&found, &chain[1..], profile, authority, key.public(), now) {
                    Decision::Keep => return Ok(()),
                    Decision::Renew(reason) => reason,
                }
            }
        };
        let pem = authority.issue(profile, key.public(), now)?;
        files::write(&self.certificate, pem.as_bytes(), PRIVATE)?;
        let certificate = self.certificate.display();
        match reason {
            Reason::Missing => debug!(%certificate, "Issued a certificate."),
            reason => info!(%certificate, %reason, "Renewed a certificate."),
        }
        Ok(())
    }
}
