//! A registry of images and charts on a node's network, with as much of the protocol as those who pull need.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use cluster_tests::Node;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// Where its files are on the node.
const FOLDER: &str = "/var/registry";
/// By which clients believe a registry with TLS.
pub(crate) const CA: &str = "/var/registry/ca.pem";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TOKEN: &str = "a-token-of-the-registry";

/// Whom it lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody.
    Open,
    /// Those who say this name and password with each request.
    Basic(&'static str, &'static str),
    /// Those who have got a token for this name and password, as large registries want it.
    Token(&'static str, &'static str),
}

/// A registry that serves until it is dropped.
pub(crate) struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    access: Access,
    realm: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By digest, with the media type of what is a manifest.
    blobs: HashMap<String, (String, Bytes)>,
    /// Digests by `name:tag`.
    tags: HashMap<String, String>,
    /// `METHOD PATH STATUS`
    asked: Vec<String>,
}

impl Registry {
    /// Serves HTTPS on the node's own address, by a certificate that [`CA`] signs on that node.
    #[track_caller]
    pub(crate) fn with_tls(node: &Node, port: u16, access: Access) -> Self {
        let address = node.address();
        node.succeed(&format!(
            "mkdir -p {FOLDER} && cd {FOLDER} && test -e ca.pem || {{
                openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry-ca -keyout ca.key -out ca.pem
                openssl req -newkey rsa:2048 -nodes -subj /CN=registry -keyout tls.key -out tls.csr
                printf 'subjectAltName=IP:{address}' > san
                openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out tls.pem
             }}"
        ));
        let pem = |name: &str| node.path(FOLDER).join(name);
        let config = || -> Result<ServerConfig> {
            let chain = CertificateDer::pem_file_iter(pem("tls.pem"))?.collect::<Result<_, _>>()?;
            let key = PrivateKeyDer::from_pem_file(pem("tls.key"))?;
            Ok(ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(chain, key)?)
        };
        let config = config().unwrap_or_else(|error| panic!("no certificate for the registry: {error:#}"));
        Self::serve(node, port, access, Some(TlsAcceptor::from(Arc::new(config))))
    }

    /// Serves HTTP on the node's own address.
    #[track_caller]
    pub(crate) fn plain(node: &Node, port: u16, access: Access) -> Self {
        Self::serve(node, port, access, None)
    }

    fn serve(node: &Node, port: u16, access: Access, tls: Option<TlsAcceptor>) -> Self {
        let (ip, scheme): (Ipv4Addr, _) = (node.address(), if tls.is_some() { "https" } else { "http" });
        let address = SocketAddr::from((ip, port));
        let listener = node.wire().run(|| TcpListener::bind(address).expect("the registry's port is free"));
        let realm = format!("{scheme}://{address}/token");
        let shared = Arc::new(Shared { access, realm, state: Mutex::default() });
        let (end, ended) = oneshot::channel();
        let served = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    served = accept(listener, tls, served) => served.expect("the registry serves"),
                    _ = ended => {}
                }
            });
        });
        Self { address, shared, end: Some(end), thread: Some(thread) }
    }

    /// `IP:PORT`
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts the one image of an OCI archive there as `name:tag`.
    #[track_caller]
    pub(crate) fn push(&self, name: &str, tag: &str, archive: &Path) {
        let pushed = self.push_archive(name, tag, archive);
        pushed.unwrap_or_else(|error| panic!("cannot push {}: {error:#}", archive.display()));
    }

    /// Puts what is no image there, as `name:tag`: a configuration and layers, each with its media type.
    #[allow(dead_code, reason = "for charts")]
    pub(crate) fn push_artifact(&self, name: &str, tag: &str, config: (&str, &[u8]), layers: &[(&str, &[u8])]) {
        let mut state = self.state();
        let mut descriptor = |(media, content): (&str, &[u8])| {
            let digest = state.put(media, Bytes::copy_from_slice(content));
            json!({"mediaType": media, "digest": digest, "size": content.len()})
        };
        let config = descriptor(config);
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(*layer)).collect();
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": layers});
        let digest = state.put(media, manifest.to_string().into());
        state.tags.insert(format!("{name}:{tag}"), digest);
    }

    /// Each request so far, as `GET /v2/a/manifests/1 200`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    fn push_archive(&self, name: &str, tag: &str, archive: &Path) -> Result<()> {
        let mut index = None;
        let mut archive = tar::Archive::new(File::open(archive)?);
        let mut state = self.state();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            if path.ends_with("index.json") {
                index = Some(Bytes::from(content));
            } else if path.to_string_lossy().contains("blobs/sha256/") {
                let media = serde_json::from_slice::<Value>(&content).ok();
                let media = media.and_then(|value| Some(value["mediaType"].as_str()?.to_owned()));
                state.put(&media.unwrap_or_default(), content.into());
            }
        }
        let digest = state.put(INDEX, index.context("it has no index")?);
        state.tags.insert(format!("{name}:{tag}"), digest);
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = shared.answer(&request);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            // Clients tell what is wrong with a connection.
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    }
                }
                None => drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
            }
        });
    }
}

impl Shared {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let path = request.uri().path();
        let response = self.refuse(request).unwrap_or_else(|| state.find(path));
        state.asked.push(format!("{} {path} {}", request.method(), response.status().as_u16()));
        if request.method() == Method::HEAD { response.map(|_| Full::default()) } else { response }
    }

    fn refuse(&self, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let asks_for_token = request.uri().path() == "/token";
        let (wanted, challenge) = match self.access {
            Access::Open => return None,
            Access::Token(name, password) if asks_for_token => {
                (basic(name, password), "Basic realm=\"token\"".to_owned())
            }
            Access::Basic(name, password) => (basic(name, password), "Basic realm=\"registry\"".to_owned()),
            Access::Token(..) => (
                format!("Bearer {TOKEN}"),
                format!("Bearer realm=\"{}\",service=\"registry\",scope=\"repository:any:pull\"", self.realm),
            ),
        };
        if shown != Some(&wanted) {
            let mut refused = answer(StatusCode::UNAUTHORIZED, "application/json", "{}".into());
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().expect("a header"));
            return Some(refused);
        }
        let token = json!({"token": TOKEN, "access_token": TOKEN, "expires_in": 300}).to_string();
        asks_for_token.then(|| answer(StatusCode::OK, "application/json", token.into()))
    }
}

impl State {
    fn put(&mut self, media: &str, content: Bytes) -> String {
        let hash = Sha256::digest(&content);
        let digest = hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        self.blobs.insert(digest.clone(), (media.to_owned(), content));
        digest
    }

    fn find(&self, path: &str) -> Response<Full<Bytes>> {
        let path = path.strip_prefix("/v2/").unwrap_or_default();
        if path.is_empty() {
            return answer(StatusCode::OK, "application/json", "{}".into());
        }
        let digest = match (path.rsplit_once("/manifests/"), path.rsplit_once("/blobs/")) {
            (Some((_, digest)), _) | (_, Some((_, digest))) if digest.starts_with("sha256:") => Some(digest),
            (Some((name, tag)), _) => self.tags.get(&format!("{name}:{tag}")).map(String::as_str),
            _ => None,
        };
        match digest.and_then(|digest| Some((digest, self.blobs.get(digest)?))) {
            Some((digest, (media, content))) => {
                let mut found = answer(StatusCode::OK, media, content.clone());
                found.headers_mut().insert("docker-content-digest", digest.parse().expect("a header"));
                found
            }
            None => {
                answer(StatusCode::NOT_FOUND, "application/json", r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.into())
            }
        }
    }
}

fn answer(status: StatusCode, media: &str, content: Bytes) -> Response<Full<Bytes>> {
    let media = if media.is_empty() { "application/octet-stream" } else { media };
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, media);
    let response = response.header(header::CONTENT_LENGTH, content.len());
    response.body(Full::new(content)).expect("a response")
}

fn basic(name: &str, password: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}
