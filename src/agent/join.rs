//! Joining: an agent's configuration, authorities and certificates, from a server.
//!
//! ```text
//! /cacerts ─► trust ─► config ─► client-ca, server-ca ─► four certificates for keys that never leave the node ─► files
//! ```
//!
//! Nothing is written before everything has come, so that a join which breaks off changes nothing. The files are k3s' own, so that
//! either takes over the other's directory.

use std::{net::IpAddr, path::PathBuf, sync::Once};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use k3s_balancer::Balancer;
use k3s_config::agent::ServerUrl;
use k3s_files::{self as files, FileError, PRIVATE};
use k3s_identity::{Password, Token};
use k3s_pki::{AgentPki, Certificate, CertificateFiles, PrivateKey};
use k3s_supervisor_api::{CertificateKind, RequestError, paths};
use tokio::sync::watch;
use tracing::info;

use crate::{
    cache::ClusterCache,
    cluster_config::ClusterConfig,
    https::{Https, Patience},
    join_error::JoinError,
    server_api::{ServerApi, node_headers},
    trust::{self, Identity, Trust},
};

/// A node that wants in.
#[derive(Debug)]
pub(crate) struct NodeRegistration {
    /// Where it was told to register.
    pub(crate) server: ServerUrl,
    /// The way there.
    pub(crate) balancer: Balancer,
    /// How long a server may take.
    pub(crate) patience: Patience,
    /// What lets it in; `None` where certificates of an earlier join do.
    pub(crate) token: Option<Token>,
    /// Its whole name.
    pub(crate) name: String,
    /// What keeps others from taking its name.
    pub(crate) password: Password,
    /// Its own addresses, as they are at the time.
    pub(crate) ips: watch::Receiver<Vec<IpAddr>>,
    /// Where the outside reaches it.
    pub(crate) external_ips: Vec<IpAddr>,
    /// `<data>/agent`.
    pub(crate) dir: PathBuf,
    /// Where its components reach the API.
    pub(crate) apiserver: String,
    /// That its token pins no authority was told: it tries again every few seconds.
    pub(crate) trust_told: Once,
}

/// What a join brought.
pub(crate) struct Joined {
    pub(crate) config: ClusterConfig,
    /// With the certificate that the join brought.
    pub(crate) api: ServerApi,
}

/// A certificate that came, and the key that it is for.
struct Issued {
    files: CertificateFiles,
    certificate: Vec<u8>,
    /// Only from servers that make keys themselves, as k3s' oldest.
    key: Option<Vec<u8>>,
}

impl NodeRegistration {
    /// Asks a server for everything, once, and puts it in place.
    #[tracing::instrument(skip_all, fields(server = %self.server, node = self.name))]
    pub(crate) async fn join(&self) -> Result<Joined, JoinError> {
        let pki = AgentPki::at(&self.dir);
        let joined_before = match &self.token {
            None => match files::read(&pki.server_ca)? {
                Some(pem) if files::is_torn(&pem) => return Err(JoinError::LostAuthority { path: pki.server_ca }),
                found => found.map(Bytes::from),
            },
            Some(_) => None,
        };
        let pinned = self.token.as_ref().and_then(|token| token.ca_hash.as_ref());
        let shown = async |tls| {
            let request = Request::get(paths::CACERTS).body(Full::default()).expect("the path is one");
            Https::new(self.balancer.clone(), tls, self.patience.clone()).send(request).await
        };
        let trust = trust::establish(shown, pinned, joined_before, &self.trust_told).await?;
        let api = self.api(&trust, &pki)?;

        let answer = api.config().await.map_err(|error| self.refused(error))?;
        let config = ClusterConfig::parse(&answer)?;
        let (client_ca, server_ca) = (api.client_ca().await?, api.server_ca().await?);
        for (what, authority) in [("client-ca.crt", &client_ca), ("server-ca.crt", &server_ca)] {
            Certificate::first_of(authority).map_err(|why| JoinError::Answer { what, why: why.to_string() })?;
        }
        files::create_directory(&self.dir, 0o700)?;
        let issued = self.certificates(&api, &pki).await?;

        files::write(&pki.client_ca, &client_ca, PRIVATE)?;
        files::write(&pki.server_ca, &server_ca, PRIVATE)?;
        for Issued { files: place, certificate, key } in issued {
            if let Some(key) = key {
                files::write(&place.key, &key, PRIVATE)?;
            }
            files::write(&place.certificate, &certificate, PRIVATE)?;
        }
        pki.write_kubeconfigs(&self.apiserver)?;
        self.cache().store(&self.name, &answer)?;
        info!("Joined the cluster.");
        let api = self.api(&trust, &pki)?;
        Ok(Joined { config, api })
    }

    /// The configuration of an earlier join, if everything is there that the node needs to come up by itself.
    pub(crate) fn remembered(&self) -> Result<Option<ClusterConfig>, JoinError> {
        let pki = AgentPki::at(&self.dir);
        let own = files::read(&pki.client_kubelet.certificate)?;
        let own = own.and_then(|pem| Certificate::first_of(&pem).ok());
        let is_ours = own.is_some_and(|own| own.common_name.as_deref() == Some(&format!("system:node:{}", self.name)));
        let parts = [
            &pki.client_ca,
            &pki.server_ca,
            &pki.serving_kubelet.certificate,
            &pki.serving_kubelet.key,
            &pki.client_kubelet.key,
            &pki.client_kube_proxy.certificate,
            &pki.client_k3s_controller.certificate,
        ];
        // What a power cut emptied would keep kubelet from starting.
        let is_there = |path: &PathBuf| Ok(files::read(path)?.is_some_and(|content| !files::is_torn(&content)));
        let all_there = parts.into_iter().map(is_there).collect::<Result<Vec<_>, FileError>>()?;
        if !is_ours || all_there.contains(&false) {
            return Ok(None);
        }
        let Some(config) = self.cache().load(&self.name)? else { return Ok(None) };
        // Another load balancer port, perhaps.
        pki.write_kubeconfigs(&self.apiserver)?;
        Ok(Some(config))
    }

    /// With the certificate that is there at this moment.
    fn api(&self, trust: &Trust, pki: &AgentPki) -> Result<ServerApi, JoinError> {
        let identity = Identity::load(&pki.client_kubelet);
        ServerApi::new(&self.balancer, &self.patience, trust, identity, self.token.as_ref())
    }

    fn cache(&self) -> ClusterCache {
        ClusterCache::new(self.dir.join("cluster.json"))
    }

    async fn certificates(&self, api: &ServerApi, pki: &AgentPki) -> Result<Vec<Issued>, JoinError> {
        let ips = self.ips.borrow().clone();
        let all: Vec<IpAddr> = ips.iter().chain(&self.external_ips).copied().collect();
        let headers = |ips: &[IpAddr]| node_headers(&self.name, self.password.expose(), ips);
        let mut issued = Vec::new();
        for (kind, place, headers) in [
            (CertificateKind::ServingKubelet, &pki.serving_kubelet, headers(&all)?),
            (CertificateKind::ClientKubelet, &pki.client_kubelet, headers(&ips)?),
            (CertificateKind::ClientKubeProxy, &pki.client_kube_proxy, HeaderMap::new()),
            (CertificateKind::ClientK3sController, &pki.client_k3s_controller, HeaderMap::new()),
        ] {
            let key = PrivateKey::load_or_generate(&place.key)?;
            let answer = api.certificate(kind, &headers, key.request()?).await;
            let answer = answer.map_err(|error| match error.status() {
                Some(StatusCode::FORBIDDEN) if !headers.is_empty() => {
                    JoinError::NameTaken { server: self.server.clone(), name: self.name.clone() }
                }
                _ => self.refused(error),
            })?;
            issued.push(Issued::of(place, &answer, &key)?);
        }
        Ok(issued)
    }

    fn refused(&self, error: RequestError) -> JoinError {
        match error.status() {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                JoinError::Credentials { server: self.server.clone() }
            }
            _ => error.into(),
        }
    }
}

impl Issued {
    /// Takes a server's answer apart: certificates, and a private key where the server made one in place of ours.
    fn of(place: &CertificateFiles, answer: &[u8], own: &PrivateKey) -> Result<Self, JoinError> {
        const WHAT: &str = "certificate";
        let unusable = |why: String| JoinError::Answer { what: WHAT, why };
        let text = std::str::from_utf8(answer).map_err(|error| unusable(error.to_string()))?;
        // The server appends it.
        let at = text.find("PRIVATE KEY-----").and_then(|end| text[..end].rfind("-----BEGIN"));
        let (certificate, key) = at.map_or((text, None), |at| (&text[..at], Some(&text[at..])));
        let theirs =
            key.map(|key| PrivateKey::from_pem(key.as_bytes()).ok_or_else(|| unusable("its key is none".into())));
        let public = match theirs.transpose()? {
            Some(key) => key.public().clone(),
            None => own.public().clone(),
        };
        let found = Certificate::first_of(certificate.as_bytes()).map_err(|why| unusable(why.to_string()))?;
        if found.public_key != public {
            return Err(unusable("it is for another key".into()));
        }
        Ok(Self { files: place.clone(), certificate: certificate.into(), key: key.map(Into::into) })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tracing::{Event, Level, Metadata, Subscriber, span};

    use super::*;
    use crate::testing::TestServer;

    fn node_token(text: &str) -> Option<Token> {
        Some(text.parse().unwrap())
    }

    #[tokio::test]
    async fn a_node_asks_for_what_k3s_nodes_ask_for_and_has_what_they_have() {
        let server = TestServer::start().await;
        let registration = server.registration(Some(server.token()));
        assert!(registration.remembered().unwrap().is_none());
        let joined = registration.join().await.unwrap();
        assert_eq!(joined.config.network.cluster_domain, "cluster.local");

        let seen = server.seen();
        let lines: Vec<&str> = seen.iter().map(|seen| seen.line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "GET /cacerts",
                "GET /cacerts",
                "GET /v1-k3s/config",
                "GET /v1-k3s/client-ca.crt",
                "GET /v1-k3s/server-ca.crt",
                "POST /v1-k3s/serving-kubelet.crt",
                "POST /v1-k3s/client-kubelet.crt",
                "POST /v1-k3s/client-kube-proxy.crt",
                "POST /v1-k3s/client-k3s-controller.crt",
            ]
        );
        // node:joining
        assert!(seen[2..].iter().all(|seen| seen.authorization.as_deref() == Some("Basic bm9kZTpqb2luaW5n")));
        assert_eq!(seen[0].authorization, None, "who is not trusted yet learns nothing");
        assert_eq!(seen[5].node.as_deref(), Some("edge-1 s3cret 192.0.2.7,198.51.100.7"));
        assert_eq!(seen[6].node.as_deref(), Some("edge-1 s3cret 192.0.2.7"));
        assert_eq!(seen[7].node, None);

        let pki = AgentPki::at(&registration.dir);
        let own = Certificate::first_of(&fs::read(&pki.client_kubelet.certificate).unwrap()).unwrap();
        assert_eq!(own.common_name.as_deref(), Some("system:node:edge-1"));
        for file in fs::read_dir(&registration.dir).unwrap().map(Result::unwrap) {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
        let kubeconfig = fs::read_to_string(&pki.kubelet_kubeconfig).unwrap();
        assert!(kubeconfig.contains("server: https://127.0.0.1:6444"), "{kubeconfig}");
        assert_eq!(joined.api.servers().await.unwrap(), ["192.0.2.1:6443".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_node_that_has_joined_remembers_and_needs_no_token() {
        let server = TestServer::start().await;
        server.registration(Some(server.token())).join().await.unwrap();
        server.seen();
        let again = server.registration(None);
        assert_eq!(again.remembered().unwrap(), Some(again.join().await.unwrap().config));
        assert!(server.seen().iter().all(|seen| seen.authorization.is_none()));
        let renamed = NodeRegistration { name: "edge-2".into(), ..server.registration(None) };
        assert!(renamed.remembered().unwrap().is_none());
    }

    #[tokio::test]
    async fn what_a_power_cut_emptied_is_no_memory() {
        let server = TestServer::start().await;
        server.registration(Some(server.token())).join().await.unwrap();
        let pki = AgentPki::at(&server.registration(None).dir);
        for path in [&pki.serving_kubelet.key, &pki.client_kube_proxy.certificate, &pki.client_ca, &pki.server_ca] {
            fs::write(path, [0; 64]).unwrap();
            assert!(server.registration(None).remembered().unwrap().is_none(), "{}", path.display());
        }
        let error = server.registration(None).join().await.err().unwrap();
        assert!(matches!(error, JoinError::LostAuthority { .. }) && error.is_final(), "{error}");
        server.registration(Some(server.token())).join().await.unwrap();
        assert!(server.registration(None).remembered().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_node_follows_its_servers_to_another_authority() {
        let server = TestServer::start().await;
        let old = server.token();
        server.registration(Some(old.clone())).join().await.unwrap();
        let server = server.start_with_another_authority().await;
        // A whole token pins the root of before.
        let error = server.registration(Some(old)).join().await.err().unwrap();
        assert!(matches!(error, JoinError::OtherAuthority { .. }), "{error}");
        // What the node trusts has signed the new root.
        let registration = server.registration(None);
        registration.join().await.unwrap();
        let pki = AgentPki::at(&registration.dir);
        let in_place = |path| Certificate::first_of(&fs::read(path).unwrap()).unwrap();
        let authority = in_place(&pki.server_ca);
        assert_eq!(authority.common_name.as_deref(), Some("server-ca"));
        assert_eq!(in_place(&pki.serving_kubelet.certificate).issuer, authority.subject);
        server.registration(Some(server.token())).join().await.unwrap();
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_taken_gives_way_to_the_token() {
        let server = TestServer::start().await;
        server.registration(Some(server.token())).join().await.unwrap();
        server.seen();
        server.answer("/v1-k3s/client-kubelet.crt", StatusCode::UNAUTHORIZED);
        let error = server.registration(Some(server.token())).join().await.err().unwrap();
        assert!(matches!(error, JoinError::Credentials { .. }) && !error.is_final(), "{error}");
        let tried = server.seen().into_iter().filter(|seen| seen.line == "POST /v1-k3s/client-kubelet.crt");
        assert_eq!(tried.map(|seen| seen.with_certificate).collect::<Vec<_>>(), [true, false]);
    }

    #[tokio::test]
    async fn a_token_of_another_cluster_is_refused_with_both_hashes() {
        let server = TestServer::start().await;
        let other = "0".repeat(64);
        let error = server.registration(node_token(&format!("K10{other}::node:joining"))).join().await.err().unwrap();
        assert!(error.is_final());
        let hash = server.token().ca_hash.unwrap();
        assert!(error.to_string().contains(&other) && error.to_string().contains(hash.as_str()), "{error}");
        assert!(server.seen().iter().all(|seen| seen.authorization.is_none()), "the secret was not sent");
        assert!(!server.disk.path().join("agent").exists(), "nothing was written");
        server.registration(node_token("joining")).join().await.unwrap();
    }

    #[tokio::test]
    async fn refusals_say_what_to_do_and_change_nothing() {
        let server = TestServer::start().await;
        let registration = server.registration(Some(server.token()));
        for (path, status, told) in [
            ("/v1-k3s/config", StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable: not now"),
            (
                "/v1-k3s/config",
                StatusCode::UNAUTHORIZED,
                "does not accept the token: give this agent the one in server/agent-token",
            ),
            ("/v1-k3s/serving-kubelet.crt", StatusCode::FORBIDDEN, "run `k3s node forget edge-1` on a server"),
        ] {
            server.answer(path, status);
            let error = registration.join().await.err().unwrap();
            assert!(error.to_string().contains(told) && !error.is_final(), "{error}");
            server.answer(path, StatusCode::OK);
            assert!(registration.remembered().unwrap().is_none());
        }
        registration.join().await.unwrap();
        let before = fs::read(registration.dir.join("client-kubelet.crt")).unwrap();
        server.answer("/v1-k3s/client-k3s-controller.crt", StatusCode::SERVICE_UNAVAILABLE);
        registration.join().await.err().unwrap();
        assert_eq!(fs::read(registration.dir.join("client-kubelet.crt")).unwrap(), before);
    }

    /// Counts what is warned of in one thread.
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            if event.metadata().target().ends_with("trust") {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[tokio::test]
    async fn a_node_that_tries_again_says_once_that_its_token_pins_nothing() {
        let server = TestServer::start().await;
        let warned = Arc::new(AtomicUsize::new(0));
        let _counting = tracing::subscriber::set_default(Warnings(warned.clone()));
        for start in 1..=2 {
            let registration = server.registration(node_token("joining"));
            for _ in 0..3 {
                registration.join().await.unwrap();
            }
            assert_eq!(warned.load(Ordering::Relaxed), start);
        }
    }

    #[tokio::test]
    async fn a_key_that_the_server_made_replaces_the_nodes_own() {
        let own = PrivateKey::generate().unwrap();
        let theirs = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&theirs).unwrap().pem();
        let place = CertificateFiles::at("/".as_ref(), "client-kubelet");
        let error = Issued::of(&place, certificate.as_bytes(), &own).err().unwrap().to_string();
        assert!(error.ends_with("it is for another key"), "{error}");
        let both = certificate.clone() + &theirs.serialize_pem();
        let issued = Issued::of(&place, both.as_bytes(), &own).unwrap();
        assert_eq!((issued.certificate, issued.key), (certificate.into(), Some(theirs.serialize_pem().into())));
    }
}
