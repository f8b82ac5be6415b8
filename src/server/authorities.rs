//! Other certificate authorities and service-account keys for the cluster (`k3s certificate rotate-ca`).
//!
//! ```text
//! in use ──replace──► stored ──a server starts──► in use there, its certificates issued anew
//!    │ refused          │ once more: the last one counts
//!    ▼                  ▼
//! in use              stored
//! ```
//! A server that runs goes by the ones that it started with, and so do its nodes and pods. As the new ones lead to the root of the old ones,
//! or the old ones are among them, servers and nodes may start again one after the other.

use std::time::SystemTime;

use k3s_supervisor_api::{BootstrapData, Replacement};

use crate::{
    BootstrapError,
    bootstrap_data::{self, NotReplaced},
    token::ServerToken,
};

/// Why the cluster's authorities stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    /// The others will not do.
    #[error(transparent)]
    Unfit(#[from] NotReplaced),
    /// They cannot be stored.
    #[error(transparent)]
    Store(#[from] BootstrapError),
}

/// Stores the authorities and keys of `offered`, sealed by `token`, from where every server takes them at its next start. What is not among
/// them stays. `replacement` says whether the ones in use have to vouch for them.
///
/// # Errors
/// Nothing has changed then.
pub(crate) async fn replace(
    token: &ServerToken,
    offered: &BootstrapData,
    replacement: Replacement,
) -> Result<(), ReplaceError> {
    let now = SystemTime::now();
    let change = |stored, on_disk: &_| bootstrap_data::with_authorities(stored, on_disk, offered, replacement, now);
    token.reencrypt(|stored, on_disk| change(stored, on_disk).map_err(ReplaceError::from)).await
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use k3s_components::Paths;
    use k3s_config::server::ServerConfig;
    use k3s_datastore::{Datastore, Options};
    use k3s_identity::TokenFiles;
    use k3s_pki::{Certificate, ClientCa, ServerPki};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };
    use tempfile::TempDir;

    use super::*;
    use crate::{
        bootstrap::{self, Adopted},
        certificates::Certificates,
        cluster_store::ClusterStore,
        host::Host,
        testing::config,
    };

    /// A server and what it starts from; several may share a datastore.
    struct Server {
        dir: TempDir,
        config: ServerConfig,
        paths: Paths,
    }

    impl Server {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let args = [format!("--data-dir={}", dir.path().display()), "--token=s3cret".to_owned()];
            let paths = Paths::new(dir.path(), dir.path().join("run"));
            Self { config: config("edge", args), paths, dir }
        }

        /// What a start does up to the first program.
        async fn start(&self, store: &ClusterStore) -> (ServerPki, ServerToken) {
            let Adopted { found, token } = bootstrap::adopt(&self.config, &self.paths, store, None).await.unwrap();
            let host = Host { name: "edge".into(), ips: vec![[192, 0, 2, 1].into()], hostname: "edge".into() };
            let certificates = Certificates::new(&self.config, &self.paths, &host).unwrap();
            let pki = certificates.ensure(SystemTime::now()).unwrap();
            certificates.front_tls(&pki, SystemTime::now()).unwrap();
            let (server, bundle) = (self.paths.server(), pki.server_ca.bundle());
            TokenFiles::ensure(&server, Some(token.expose()), None, bundle).unwrap();
            let data = bootstrap_data::from_disk(&server).unwrap();
            bootstrap_data::save(&store.client(), &token, data, found).await.unwrap();
            let token = ServerToken::new(server, bundle.to_vec(), false, store.client(), token);
            (pki, token)
        }

        fn read(&self, path: &str) -> Vec<u8> {
            fs::read(self.dir.path().join(path)).unwrap()
        }

        /// A folder with an authority below a new root, which the one in use has signed too: as k3s' script makes it.
        fn successors(&self, stems: &[&str]) -> TempDir {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("tls/etcd")).unwrap();
            for stem in stems {
                let read = |end| String::from_utf8(self.read(&format!("server/tls/{stem}.{end}"))).unwrap();
                let old = read("crt");
                let issuer = Issuer::from_ca_cert_pem(&old, KeyPair::from_pem(&read("key")).unwrap()).unwrap();
                let [root, new] = ["root", stem].map(authority);
                let cross_signed = root.0.signed_by(&root.1, &issuer).unwrap().pem();
                let chain = signed_by(&new, &root) + &root.0.self_signed(&root.1).unwrap().pem() + &cross_signed + &old;
                fs::write(folder.path().join(format!("tls/{stem}.crt")), chain).unwrap();
                fs::write(folder.path().join(format!("tls/{stem}.key")), new.1.serialize_pem()).unwrap();
            }
            folder
        }
    }

    fn authority(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        (params, KeyPair::generate().unwrap())
    }

    fn signed_by(child: &(CertificateParams, KeyPair), parent: &(CertificateParams, KeyPair)) -> String {
        child.0.signed_by(&child.1, &Issuer::from_params(&parent.0, &parent.1)).unwrap().pem()
    }

    /// The datastore of one server, or of two.
    async fn store(dir: &TempDir) -> ClusterStore {
        ClusterStore::Embedded(Datastore::open(Options::new(dir.path().join("state.db"))).await.unwrap())
    }

    fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap()
    }

    /// Clients that trust `authority` take the certificate from a server on loopback.
    fn believes(authority: &[u8], certificate: &[u8]) {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(authority));
        let provider = Arc::new(default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let (chain, name) = (certificates(certificate), ServerName::try_from("127.0.0.1").unwrap());
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).unwrap();
    }

    const STEMS: [&str; 5] = ["server-ca", "client-ca", "request-header-ca", "etcd/server-ca", "etcd/peer-ca"];

    #[tokio::test]
    async fn they_count_from_the_next_start_of_each_server() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let (one, two) = (Server::new(), Server::new());
        let (_, token) = one.start(&store).await;
        two.start(&store).await;
        let before = one.read("server/token");
        let folder = one.successors(&STEMS);
        let old_key = one.read("server/tls/service.key");
        let new_key = k3s_pki::PrivateKey::generate_rsa().unwrap().pem();
        let keys = [new_key.as_bytes(), &old_key].concat();
        fs::write(folder.path().join("tls/service.key"), &keys).unwrap();
        let offered = bootstrap_data::from_folder(folder.path()).unwrap();
        replace(&token, &offered, Replacement::Vouched).await.unwrap();
        assert_eq!(one.read("server/tls/service.key"), old_key, "nothing changes while it runs");

        let [trusted, shown] =
            ["tls/server-ca.crt", "tls/client-admin.crt"].map(|path| one.read(&format!("server/{path}")));
        for server in [&one, &two] {
            let (pki, _) = server.start(&store).await;
            believes(&trusted, &server.read("server/tls/serving-kube-apiserver.crt"));
            let client_ca = ClientCa::new(pki.client_ca.bundle()).unwrap();
            client_ca.verify(&certificates(&shown), SystemTime::now()).unwrap();
            for stem in STEMS {
                let new = fs::read(folder.path().join(format!("tls/{stem}.crt"))).unwrap();
                assert!(server.read(&format!("server/tls/{stem}.crt")) == new, "{stem}");
            }
            assert_eq!(server.read("server/tls/service.key"), keys);
            assert_eq!(server.read("server/tls/service.current.key"), new_key.as_bytes());
            for (authority, leaves) in [
                (&pki.server_ca, ["server/tls/serving-kube-apiserver.crt", "agent/serving-kubelet.crt"]),
                (&pki.client_ca, ["server/tls/client-admin.crt", "agent/client-kubelet.crt"]),
                (&pki.request_header_ca, ["server/tls/client-auth-proxy.crt"; 2]),
                (&pki.etcd_peer_ca, ["server/tls/etcd/peer-server-client.crt"; 2]),
            ] {
                for leaf in leaves {
                    let leaf_of = Certificate::first_of(&server.read(leaf)).unwrap();
                    assert_eq!(leaf_of.issuer, authority.certificate().subject, "{leaf}");
                }
            }
            assert_eq!(server.read("agent/server-ca.crt"), pki.server_ca.bundle());
            assert_ne!(server.read("server/token"), before, "the root is another one");
        }
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_token_that_is_exchanged_before_the_next_start_loses_none_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let server = Server::new();
        let (_, token) = server.start(&store).await;
        let folder = server.successors(&["server-ca"]);
        let offered = bootstrap_data::from_folder(folder.path()).unwrap();
        replace(&token, &offered, Replacement::Vouched).await.unwrap();
        let new = token.rotate(Some("new")).await.unwrap();
        let found = bootstrap_data::load(&store.client(), new.password().ok(), None).await.unwrap().unwrap();
        assert_eq!(found.data.files["ServerCA"].content, fs::read(folder.path().join("tls/server-ca.crt")).unwrap());
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_refused_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let server = Server::new();
        let (_, token) = server.start(&store).await;
        let stored =
            async || bootstrap_data::load(&store.client(), Some(&token.password().borrow().clone()), None).await;
        let before = stored().await.unwrap().unwrap().data;
        // One of two is a stranger.
        let folder = server.successors(&["server-ca", "client-ca"]);
        let stranger = authority("client-ca");
        fs::write(folder.path().join("tls/client-ca.crt"), stranger.0.self_signed(&stranger.1).unwrap().pem()).unwrap();
        fs::write(folder.path().join("tls/client-ca.key"), stranger.1.serialize_pem()).unwrap();
        let offered = bootstrap_data::from_folder(folder.path()).unwrap();
        let refused = replace(&token, &offered, Replacement::Vouched).await.unwrap_err();
        assert!(refused.to_string().starts_with("tls/client-ca.crt: it holds a single certificate"), "{refused}");
        assert_eq!(stored().await.unwrap().unwrap().data, before);
        replace(&token, &offered, Replacement::Forced).await.unwrap();
        let after = stored().await.unwrap().unwrap().data;
        assert_eq!(after.files["ClientCA"].content, offered.files["ClientCA"].content);
        assert_eq!(after.files["PasswdFile"], before.files["PasswdFile"]);
        let offered = bootstrap_data::from_folder(server.successors(&["server-ca"]).path()).unwrap();
        store.close().await.unwrap();
        assert!(matches!(replace(&token, &offered, Replacement::Forced).await, Err(ReplaceError::Store(_))));
    }
}
