//! TLS over the network, with certificates on both sides: for clients that come, and for stores elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{info, warn};

use crate::error::Error;

/// What `https` endpoints are served with: TLS 1.2 or 1.3. Files that change are read again, as etcd does: the next connection goes by them.
#[derive(Clone)]
pub struct ServerTls {
    files: ServerFiles,
    current: Arc<Mutex<(Versions, Arc<ServerConfig>)>>,
}

#[derive(Clone)]
struct ServerFiles {
    certificate: PathBuf,
    key: PathBuf,
    trusted_ca: Option<PathBuf>,
}

/// What tells whether a file is the one that was read: when it was written, its length, and which one it is.
type Versions = [Option<(SystemTime, u64, u64)>; 3];

impl ServerTls {
    /// Reads PEM files: the server's certificate, followed by the intermediate ones if there are any, its key, and the
    /// authorities of clients' certificates. Without these, clients need no certificate.
    ///
    /// # Errors
    /// [`Error::Tls`] names the file that cannot be used.
    pub fn load(certificate: &Path, key: &Path, trusted_ca: Option<&Path>) -> Result<Self, Error> {
        let trusted_ca = trusted_ca.map(Path::to_owned);
        let files = ServerFiles { certificate: certificate.to_owned(), key: key.to_owned(), trusted_ca };
        let current = Arc::new(Mutex::new((files.versions(), files.read()?)));
        Ok(Self { files, current })
    }

    /// Whether only clients with a certificate of a trusted authority are served.
    pub fn verifies_clients(&self) -> bool {
        self.files.trusted_ca.is_some()
    }

    /// For the next connection. Files that cannot be used, since only one of them has been replaced yet or for good, are told of once and
    /// change nothing.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = self.files.versions();
        if current.0 != versions {
            current.0 = versions;
            let certificate = self.files.certificate.display();
            match self.files.read() {
                Ok(config) => {
                    current.1 = config;
                    info!(%certificate, "The datastore is served with a new certificate.");
                }
                Err(error) => {
                    warn!(%certificate, %error, "The datastore is served on with the certificate of before.");
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&current.1))
    }
}

impl ServerFiles {
    fn versions(&self) -> Versions {
        [Some(&self.certificate), Some(&self.key), self.trusted_ca.as_ref()].map(|path| {
            let found = fs::metadata(path?).ok()?;
            Some((found.modified().ok()?, found.len(), found.ino()))
        })
    }

    fn read(&self) -> Result<Arc<ServerConfig>, Error> {
        let Self { certificate, key, trusted_ca } = self;
        let chain = certificates(certificate)?;
        let private_key = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key, "private key"))?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::tls(certificate, &error))?;
        let builder = match trusted_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| Error::tls(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| Error::tls(path, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, private_key).map_err(|error| Error::tls(key, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("verifies_clients", &self.verifies_clients()).finish_non_exhaustive()
    }
}

/// What `https` servers of a store elsewhere are asked with: TLS 1.2 or 1.3, and the files as they are when it is loaded.
#[derive(Clone)]
pub(crate) struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// Reads PEM files: the authorities that the servers' certificates are checked by, the operating system's without them, and a
    /// certificate to show, with its key.
    pub(crate) fn load(ca: Option<&Path>, client: Option<(&Path, &Path)>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(path) => {
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| Error::tls(path, &error))?;
                }
            }
            // What cannot be read is not trusted: nothing else follows from it.
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let mut config = match client {
            Some((certificate, key)) => {
                let private_key = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key, "private key"))?;
                let config = builder.with_client_auth_cert(certificates(certificate)?, private_key);
                config.map_err(|error| Error::tls(key, &error))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::clone(&self.0))
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = unreadable(path, "certificate");
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(unreadable(pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(error)),
    }
}

fn unreadable(path: &Path, what: &'static str) -> impl FnOnce(pem::Error) -> Error {
    move |error| match error {
        pem::Error::Io(error) => Error::tls(path, &error),
        pem::Error::NoItemsFound => Error::tls(path, &format!("there is no {what} in PEM form in it")),
        other => Error::tls(path, &other),
    }
}

/// Certificates for tests.
#[cfg(test)]
pub(crate) mod testing {
    use std::fs;
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

    use super::*;

    /// A certificate authority that leaves what it signs as files in a folder.
    pub(crate) struct Authority {
        folder: PathBuf,
        issuer: Issuer<'static, KeyPair>,
        pub(crate) certificate: PathBuf,
    }

    /// A certificate for 127.0.0.1, fit for servers and clients, and its key.
    pub(crate) struct Issued {
        pub(crate) certificate: PathBuf,
        pub(crate) key: PathBuf,
    }

    impl Authority {
        pub(crate) fn new(folder: &Path, name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = folder.join(format!("{name}.pem"));
            fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
            Self { folder: folder.to_owned(), issuer: Issuer::new(params, key), certificate }
        }

        pub(crate) fn issue(&self, name: &str) -> Issued {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            let signed = params.signed_by(&key, &self.issuer).unwrap();
            let file = |suffix: &str, text: String| {
                let path = self.folder.join(format!("{name}-{suffix}.pem"));
                fs::write(&path, text).unwrap();
                path
            };
            Issued { certificate: file("cert", signed.pem()), key: file("key", key.serialize_pem()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::SocketAddr;

    use etcd_client::{Channel, Client};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_util::sync::CancellationToken;

    use super::testing::{Authority, Issued};
    use super::*;
    use crate::{Access, BoundEndpoint, Datastore, Endpoint, Listener as _, Options};

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::new(folder.path(), "ca");
        let Issued { certificate, key } = ca.issue("server");
        let other = ca.issue("other");
        let (empty, missing) = (folder.path().join("empty"), folder.path().join("missing"));
        fs::write(&empty, "").unwrap();
        let refused = |certificate: &Path, key: &Path, trusted_ca: &Path, named: &Path, reason: &str| {
            let error = ServerTls::load(certificate, key, Some(trusted_ca)).unwrap_err().to_string();
            assert!(error.contains(named.to_str().unwrap()) && error.contains(reason), "{error}");
        };
        refused(&missing, &key, &ca.certificate, &missing, "No such file");
        refused(&empty, &key, &ca.certificate, &empty, "no certificate");
        refused(&certificate, &certificate, &ca.certificate, &certificate, "no private key");
        refused(&certificate, &key, &key, &key, "no certificate");
        refused(&certificate, &other.key, &ca.certificate, &other.key, "");
    }

    /// Whether a store that trusts `ca` answers a client; the client trusts `trusted` and may show a certificate.
    async fn answers(address: SocketAddr, trusted: &Authority, shown: Option<&Issued>) -> bool {
        let shown = shown.map(|issued| (issued.certificate.as_path(), issued.key.as_path()));
        let connector = ClientTls::load(Some(&trusted.certificate), shown).unwrap().connector();
        let connect = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                std::io::Result::Ok(TokioIo::new(connector.connect(address.ip().into(), stream).await?))
            }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://datastore");
        let Ok(channel) = endpoint.connect_with_connector(connect).await else { return false };
        let mut client = Client::from_channel(Channel::Tonic(channel), None).await.unwrap();
        client.get("a", None).await.is_ok()
    }

    #[tokio::test]
    async fn only_clients_with_a_trusted_certificate_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, stranger) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "stranger"));
        let server = ca.issue("server");
        let tls = ServerTls::load(&server.certificate, &server.key, Some(&ca.certificate)).unwrap();
        let datastore = Datastore::open(Options::new(folder.path().join("state.db"))).await.unwrap();
        let endpoint: Endpoint = "https://127.0.0.1:0".parse().unwrap();
        let bound = endpoint.bind(&Access { tls: Some(tls), insecure: false }).await.unwrap();
        let BoundEndpoint::Https(listener) = &bound else { panic!("bound as {bound:?}") };
        let address: SocketAddr = listener.url().strip_prefix("https://").unwrap().parse().unwrap();
        let shutdown = CancellationToken::new();
        let clients = async {
            let (known, unknown) = (ca.issue("known"), stranger.issue("unknown"));
            // A client that says nothing holds up nobody.
            let _silent = TcpStream::connect(address).await.unwrap();
            assert!(answers(address, &ca, Some(&known)).await);
            assert!(!answers(address, &ca, None).await, "without a certificate");
            assert!(!answers(address, &ca, Some(&unknown)).await, "with a stranger's certificate");
            assert!(!answers(address, &stranger, Some(&known)).await, "a client that does not trust the server");
            assert_eq!(tls_1_1_hello(address).await, Some(FATAL_PROTOCOL_VERSION));
            // A certificate that is renewed in place; half-way, the one of before is shown.
            let renewed = stranger.issue("renewed");
            fs::rename(renewed.certificate, &server.certificate).unwrap();
            assert!(answers(address, &ca, Some(&known)).await, "the key is still the old one");
            fs::rename(renewed.key, &server.key).unwrap();
            assert!(answers(address, &stranger, Some(&known)).await && !answers(address, &ca, Some(&known)).await);
            // So are the authorities of clients.
            fs::copy(&stranger.certificate, &ca.certificate).unwrap();
            assert!(
                answers(address, &stranger, Some(&unknown)).await && !answers(address, &stranger, Some(&known)).await
            );
            shutdown.cancel();
        };
        tokio::join!(async { bound.serve(&datastore, shutdown.clone()).await.unwrap() }, clients);
        datastore.close().await.unwrap();
    }

    /// A fatal alert about the protocol's version: record type, then level and description.
    const FATAL_PROTOCOL_VERSION: (u8, [u8; 2]) = (21, [2, 70]);

    /// What a server answers to a client that knows TLS 1.1 and nothing newer.
    async fn tls_1_1_hello(address: SocketAddr) -> Option<(u8, [u8; 2])> {
        let mut hello = vec![3, 2];
        hello.extend([7; 32]);
        // No session, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, no compression, and the algorithm of signatures.
        hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
        let body = u8::try_from(hello.len()).unwrap();
        let mut record = vec![22, 3, 1, 0, body + 4, 1, 0, 0, body];
        record.extend(hello);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&record).await.unwrap();
        let mut alert = [0; 7];
        stream.read_exact(&mut alert).await.ok()?;
        Some((alert[0], [alert[5], alert[6]]))
    }
}
