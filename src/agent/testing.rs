//! A server that lets nodes in, for the tests of this room: k3s' routes with real certificates, in this process, and what of the API a node
//! asks.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, Once},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k3s_balancer::{Address, Balancer, Options};
use k3s_identity::{CaHash, Password, Token};
use k3s_pki::{
    AnyClientCertificate, CertificateFiles, ClientCa, Lifetime, NodeCertificate, PublicKey, ServerPki, ServerRequest,
};
use k3s_supervise::{Options as SupervisorOptions, Supervisor, cgroup::CgroupPlace, log::Target};
use k3s_tunnel::{Dialect, Tunnels};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs::default_provider, pki_types::CertificateDer, sign::SingleCertAndKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{cluster_config::tests::CONFIG, https::Patience, join::NodeRegistration};

/// The node that joins.
const NODE: &str = "edge-1";
/// Where its kubelet listens, by the API.
pub(crate) const KUBELET_PORT: u16 = 10_300;
/// A token of whoever may read metrics.
pub(crate) const METRICS_READER: &str = "metrics-reader-token";
/// And the user that it stands for.
const READER: &str = "system:serviceaccount:monitoring:prometheus";

/// One server and the disk of a node that may join it. Both go on drop.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) disk: tempfile::TempDir,
    shared: Arc<Shared>,
    _serving: DropGuard,
}

/// How long certificates of this server last.
pub(crate) const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

struct Shared {
    pki: ServerPki,
    client_ca: ClientCa,
    /// How old certificates are when they come.
    backdated: Mutex<Duration>,
    /// What is answered in place of the truth.
    refusals: Mutex<BTreeMap<&'static str, StatusCode>>,
    seen: Mutex<Vec<Seen>>,
    tunnels: Tunnels,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) authorization: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) with_certificate: bool,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_on(tempfile::tempdir().unwrap()).await
    }

    /// It starts again with another authority for servers, below a root that the one of before has signed.
    pub(crate) async fn start_with_another_authority(self) -> Self {
        let Self { disk, _serving: serving, .. } = self;
        drop(serving);
        let files = CertificateFiles::at(&disk.path().join("server/tls"), "server-ca");
        let old = fs::read_to_string(&files.certificate).unwrap();
        let old_key = KeyPair::from_pem(&fs::read_to_string(&files.key).unwrap()).unwrap();
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.use_authority_key_identifier_extension = true;
            (params, KeyPair::generate().unwrap())
        };
        let [(root, root_key), (new, new_key)] = ["root", "server-ca"].map(authority);
        let chain = new.signed_by(&new_key, &Issuer::from_params(&root, &root_key)).unwrap().pem()
            + &root.self_signed(&root_key).unwrap().pem()
            + &root.signed_by(&root_key, &Issuer::from_ca_cert_pem(&old, old_key).unwrap()).unwrap().pem()
            + &old;
        fs::write(files.certificate, chain).unwrap();
        fs::write(files.key, new_key.serialize_pem()).unwrap();
        Self::start_on(disk).await
    }

    async fn start_on(disk: tempfile::TempDir) -> Self {
        let now = SystemTime::now();
        let ensure = |now| {
            let request =
                ServerRequest { lifetime: Lifetime::of_days(1.try_into().unwrap()), ..ServerRequest::example(now) };
            ServerPki::ensure(&disk.path().join("server"), &request).unwrap()
        };
        // Authorities older than what they may have to sign.
        ensure(now - 2 * LIFETIME);
        let pki = ensure(now);
        let certificate = Arc::new(SingleCertAndKey::from(pki.front_certificate(&[], now).unwrap().certified_key()));
        let tls = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(AnyClientCertificate::verifier())
            .with_cert_resolver(certificate);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let client_ca = ClientCa::new(pki.client_ca.bundle()).unwrap();
        let shared = Arc::new(Shared {
            pki,
            client_ca,
            backdated: Mutex::default(),
            refusals: Mutex::default(),
            seen: Mutex::default(),
            tunnels: Tunnels::default(),
        });
        let end = CancellationToken::new();
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), shared.clone(), end.clone()));
        Self { address, disk, shared, _serving: end.drop_guard() }
    }

    /// A node with an empty disk, or with what its last join left there.
    pub(crate) fn registration(&self, token: Option<Token>) -> NodeRegistration {
        let host = self.address.ip().to_string();
        let balancer = Balancer::new(Options {
            name: "test".into(),
            url: format!("https://{}", self.address),
            default: Some(Address::from(self.address)),
            state_file: self.disk.path().join("balancer.json"),
        });
        NodeRegistration {
            server: format!("https://{host}:{}", self.address.port()).parse().unwrap(),
            balancer: balancer.unwrap(),
            patience: Patience::default(),
            token,
            name: NODE.into(),
            password: Password::new("s3cret"),
            ips: tokio::sync::watch::Sender::new(vec![[192, 0, 2, 7].into()]).subscribe(),
            external_ips: vec![[198, 51, 100, 7].into()],
            dir: self.disk.path().join("agent"),
            apiserver: "https://127.0.0.1:6444".into(),
            trust_told: Once::new(),
        }
    }

    /// The token that agents join with.
    pub(crate) fn token(&self) -> Token {
        let hash = CaHash::of(self.shared.pki.server_ca.bundle()).unwrap();
        Token::basic(hash, "node", Password::new("joining"))
    }

    /// The same with the right token; its kubeconfigs lead to the server itself.
    pub(crate) fn direct_applicant(&self) -> NodeRegistration {
        NodeRegistration { apiserver: format!("https://{}", self.address), ..self.registration(Some(self.token())) }
    }

    /// A client that may do everything.
    pub(crate) fn administrator(&self) -> &CertificateFiles {
        &self.shared.pki.client_admin
    }

    /// Answers a path so from now on; 200 is the truth again.
    pub(crate) fn answer(&self, path: &'static str, status: StatusCode) {
        let mut refusals = self.shared.refusals.lock().unwrap();
        if status == StatusCode::OK {
            refusals.remove(path)
        } else {
            refusals.insert(path, status)
        };
    }

    /// Certifies from now on as if that long ago.
    pub(crate) fn backdate(&self, age: Duration) {
        *self.shared.backdated.lock().unwrap() = age;
    }

    /// Whether the node holds a tunnel.
    pub(crate) fn reaches_node(&self) -> bool {
        self.shared.tunnels.reaches(NODE)
    }

    /// What came since the last look.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

/// What would run a node's programs. It leaves the machine's cgroups alone.
pub(crate) fn supervisor() -> Supervisor {
    Supervisor::new(SupervisorOptions { log: Target::Stderr, cgroups: CgroupPlace::Nowhere }).unwrap()
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>, end: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(Ok((stream, _))) = end.run_until_cancelled(listener.accept()).await {
        let (tls, shared, end) = (tls.clone(), shared.clone(), end.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            let upgraded = Mutex::new(None);
            let answer = service_fn(|mut request| {
                if request.uri().path() == k3s_tunnel::PATH {
                    *upgraded.lock().unwrap() = Some(hyper::upgrade::on(&mut request));
                }
                answer(request, &chain, &shared)
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades();
            let _ = end.run_until_cancelled(served).await;
            let upgraded = upgraded.into_inner().unwrap();
            if let Some(upgraded) = upgraded
                && let Ok(io) = upgraded.await
            {
                let _ = shared.tunnels.serve(NODE, Dialect::HalfClose, TokioIo::new(io), &end).await;
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn answer(
    request: Request<Incoming>,
    chain: &[CertificateDer<'_>],
    shared: &Shared,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    shared.seen.lock().unwrap().push(Seen {
        line: format!("{} {path}", request.method()),
        authorization: header("authorization"),
        node: header("k3s-node-name")
            .map(|name| format!("{name} {} {}", header("k3s-node-password").unwrap(), header("k3s-node-ip").unwrap())),
        with_certificate: !chain.is_empty(),
    });
    if path == k3s_tunnel::PATH {
        return Ok(k3s_tunnel::upgrade(&request, NODE).unwrap().map(|()| Full::default()));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    if query.contains("watch=true") {
        // Nothing changes any more.
        std::future::pending::<()>().await;
    }
    let ips = header("k3s-node-ip").unwrap_or_default();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let refusal = shared.refusals.lock().unwrap().get(path.as_str()).copied();
    if let Some(status) = refusal {
        let status_object = format!("{{\"kind\":\"Status\",\"code\":{},\"message\":\"not now\"}}", status.as_u16());
        return Ok(Response::builder().status(status).body(status_object.into()).unwrap());
    }
    let sign = |certificate: NodeCertificate| {
        let key = PublicKey::from_request(&body).unwrap();
        let now = SystemTime::now() - *shared.backdated.lock().unwrap();
        Bytes::from(shared.pki.sign(&certificate, &key, now).unwrap())
    };
    let node: k3s_pki::HostName = NODE.parse().unwrap();
    let content = match path.as_str() {
        "/cacerts" | "/v1-k3s/server-ca.crt" => Bytes::copy_from_slice(shared.pki.server_ca.bundle()),
        "/v1-k3s/client-ca.crt" => Bytes::copy_from_slice(shared.pki.client_ca.bundle()),
        "/v1-k3s/config" => CONFIG.into(),
        // As kube-apiserver answers: a certificate may end while its connection stands.
        "/version" if shared.client_ca.verify(chain, SystemTime::now()).is_err() => {
            let status = "{\"kind\":\"Status\",\"code\":401,\"reason\":\"Unauthorized\",\"message\":\"Unauthorized\"}";
            return Ok(Response::builder().status(StatusCode::UNAUTHORIZED).body(status.into()).unwrap());
        }
        "/version" => "{}".into(),
        "/v1-k3s/apiservers" => "[\"192.0.2.1:6443\"]".into(),
        "/v1-k3s/serving-kubelet.crt" => {
            sign(NodeCertificate::ServingKubelet { node, ips: ips.split(',').map(|ip| ip.parse().unwrap()).collect() })
        }
        "/v1-k3s/client-kubelet.crt" => sign(NodeCertificate::ClientKubelet { node }),
        "/v1-k3s/client-kube-proxy.crt" => sign(NodeCertificate::ClientKubeProxy),
        "/api/v1/nodes" if query.contains("fieldSelector=metadata.name%3Dedge-1") => nodes(),
        "/apis/authentication.k8s.io/v1/tokenreviews" => token_review(&body),
        "/apis/authorization.k8s.io/v1/subjectaccessreviews" => access_review(&body),
        "/v1-k3s/client-k3s-controller.crt" => sign(NodeCertificate::ClientK3sController),
        _ => return Ok(Response::builder().status(StatusCode::NOT_FOUND).body(Full::default()).unwrap()),
    };
    Ok(Response::new(content.into()))
}

fn nodes() -> Bytes {
    let node = json!({
        "metadata": {"name": NODE, "resourceVersion": "1"},
        "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}}},
    });
    let list = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": [node]});
    list.to_string().into()
}

fn token_review(body: &[u8]) -> Bytes {
    let mut review: Value = serde_json::from_slice(body).unwrap();
    review["status"] = if review["spec"]["token"] == METRICS_READER {
        json!({"authenticated": true, "user": {"username": READER, "uid": "7", "groups": ["system:serviceaccounts"]}})
    } else {
        json!({"error": "the token has expired"})
    };
    review.to_string().into()
}

fn access_review(body: &[u8]) -> Bytes {
    let mut review: Value = serde_json::from_slice(body).unwrap();
    let spec = &review["spec"];
    let groups = spec["groups"].as_array().unwrap();
    let is_named = groups.contains(&"system:authenticated".into());
    let asks = spec["nonResourceAttributes"] == json!({"path": "/metrics", "verb": "get"});
    let allowed = spec["user"] == READER && spec["uid"] == "7" && is_named && asks;
    review["status"] = json!({"allowed": allowed, "reason": "RBAC: by a test"});
    review.to_string().into()
}
