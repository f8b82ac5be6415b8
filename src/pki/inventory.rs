//! The certificates on the disk, as `k3s certificate check` lists them.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    certificate::{Unreadable, bundle, last_common_name},
    files::{self, FileError},
    front::FrontCertificate,
    renewal::RENEW_BEFORE,
    service::Service,
};

/// One certificate of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The file.
    pub path: PathBuf,
    /// The subject's common name.
    pub subject: String,
    /// The issuer's.
    pub issuer: String,
    /// `CertSign`, `ServerAuth`, `ClientAuth`, or else `Unknown`, as k3s calls them.
    pub usages: Vec<&'static str>,
    /// The first moment it is valid.
    pub not_before: SystemTime,
    /// The last.
    pub not_after: SystemTime,
}

/// How a certificate stands at a time, in k3s' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// `OK`
    Good,
    /// `WARNING`: a start issues it again, if it is no authority.
    EndsSoon,
    /// `EXPIRED`
    Ended,
    /// `NOT YET VALID`
    NotYetValid,
}

/// Why a file is not listed.
#[derive(Debug, thiserror::Error)]
pub enum NotListed {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no certificate.
    #[error("{} cannot be used: {why}; remove it, and the next start makes it anew", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Unreadable,
    },
}

impl Listed {
    /// Those of a service's files below the data directory that are there, each with its chain.
    pub fn of(service: Service, data: &Path) -> Vec<Result<Self, NotListed>> {
        if service == Service::K3sServer {
            let server = data.join("server");
            let path = server.join("tls/dynamic-cert.json");
            let front = FrontCertificate::last(&server);
            return front.iter().flat_map(|front| all(&path, front.chain())).collect();
        }
        service.files(data).flat_map(|files| of_file(&files.certificate)).collect()
    }

    /// How it stands.
    pub fn validity(&self, now: SystemTime) -> Validity {
        if now < self.not_before {
            Validity::NotYetValid
        } else if now > self.not_after {
            Validity::Ended
        } else if OffsetDateTime::from(now) + RENEW_BEFORE > OffsetDateTime::from(self.not_after) {
            Validity::EndsSoon
        } else {
            Validity::Good
        }
    }

    fn read(path: &Path, der: &CertificateDer<'_>) -> Result<Self, NotListed> {
        let unreadable = |why: String| NotListed::Unreadable { path: path.to_owned(), why: Unreadable::X509(why) };
        let (_, x509) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        let signs = x509.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
        let extended = x509.extended_key_usage().ok().flatten();
        let serves = extended.as_ref().is_some_and(|usage| usage.value.server_auth);
        let asks = extended.as_ref().is_some_and(|usage| usage.value.client_auth);
        let named = [(signs, "CertSign"), (serves, "ServerAuth"), (asks, "ClientAuth")];
        let mut usages: Vec<_> = named.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        if usages.is_empty() {
            usages.push("Unknown");
        }
        Ok(Self {
            path: path.to_owned(),
            subject: last_common_name(x509.subject()).unwrap_or_default(),
            issuer: last_common_name(x509.issuer()).unwrap_or_default(),
            usages,
            not_before: x509.validity().not_before.to_datetime().into(),
            not_after: x509.validity().not_after.to_datetime().into(),
        })
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "OK",
            Self::EndsSoon => "WARNING",
            Self::Ended => "EXPIRED",
            Self::NotYetValid => "NOT YET VALID",
        })
    }
}

fn of_file(path: &Path) -> Vec<Result<Listed, NotListed>> {
    match files::read(path) {
        Ok(None) => Vec::new(),
        Ok(Some(pem)) => match bundle(&pem) {
            Ok(chain) => all(path, &chain).collect(),
            Err(why) => vec![Err(NotListed::Unreadable { path: path.to_owned(), why })],
        },
        Err(error) => vec![Err(error.into())],
    }
}

fn all(path: &Path, chain: &[CertificateDer<'_>]) -> impl Iterator<Item = Result<Listed, NotListed>> {
    chain.iter().map(move |der| Listed::read(path, der))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::server::{ServerPki, tests::request};

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_file_is_listed_with_its_chain() {
        let dir = tempfile::tempdir().unwrap();
        let pki = ServerPki::ensure(&dir.path().join("server"), &request()).unwrap();
        let listed = |service| -> Vec<_> { Listed::of(service, dir.path()).into_iter().map(Result::unwrap).collect() };
        let facts = |listed: &Listed| (listed.subject.clone(), listed.issuer.clone(), listed.usages.join(","));
        let (client_ca, etcd_ca) = ("k3s-client-ca@1800000000".to_owned(), "etcd-peer-ca@1800000000");
        let admin = listed(Service::Admin);
        assert_eq!(facts(&admin[0]), ("system:admin".into(), client_ca.clone(), "ClientAuth".into()));
        assert_eq!(facts(&admin[1]), (client_ca.clone(), client_ca, "CertSign".into()));
        assert_eq!(admin[0].path, dir.path().join("server/tls/client-admin.crt"));
        let etcd = listed(Service::Etcd);
        assert_eq!(facts(&etcd[4]), ("etcd-peer".into(), etcd_ca.into(), "ServerAuth,ClientAuth".into()));
        assert!(listed(Service::K3sServer).is_empty());
        pki.front_certificate(&[], request().now).unwrap();
        assert_eq!(listed(Service::K3sServer)[0].subject, "k3s");
        assert_eq!(listed(Service::Kubelet), []);
    }

    #[test]
    fn every_standing() {
        let dir = tempfile::tempdir().unwrap();
        ServerPki::ensure(&dir.path().join("server"), &request()).unwrap();
        let admin = Listed::of(Service::Admin, dir.path()).remove(0).unwrap();
        let begin = request().now;
        for (at, expected) in [
            (begin - DAY, "NOT YET VALID"),
            (begin, "OK"),
            (begin + 245 * DAY, "OK"),
            (begin + 246 * DAY, "WARNING"),
            (begin + 366 * DAY, "EXPIRED"),
        ] {
            assert_eq!(admin.validity(at).to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("server/tls")).unwrap();
        fs::write(dir.path().join("server/tls/client-admin.crt"), "my shopping list").unwrap();
        let error = Listed::of(Service::Admin, dir.path()).remove(0).unwrap_err().to_string();
        assert!(error.contains("client-admin.crt cannot be used: it holds no certificate"), "{error}");
    }
}
