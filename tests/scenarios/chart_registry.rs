//! A folder of a node, served there over HTTPS to whoever has the name and the password: an OCI registry and a chart repository are files.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, thread};

use bytes::Bytes;
use cluster_tests::Node;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{net::TcpListener, runtime, sync::oneshot};
use tokio_rustls::TlsAcceptor;

/// Answers until it is dropped.
pub(crate) struct Registry {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Registry {
    /// Serves `/srv` of `node` at `address`, with the certificate `/tmp/registry.crt` and its key `/tmp/registry.key`, to whoever shows
    /// `login`, which is `name:password` in base64.
    pub(crate) fn serve(node: &Node, address: SocketAddr, login: &'static str) -> Self {
        let read = |name: &str| std::fs::read(node.path(format!("/tmp/registry.{name}"))).expect("openssl wrote it");
        let certificates =
            CertificateDer::pem_slice_iter(&read("crt")).collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_slice(&read("key")).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .expect("a key pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let folder = node.path("/srv");
        let wire = node.wire();
        let (end, ended) = oneshot::channel();
        let (listens, listening) = std::sync::mpsc::channel();
        let serve = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind(address).await.expect("the port is free");
                listens.send(()).expect("somebody waits for it");
                tokio::select! {
                    () = accept(&listener, &acceptor, folder, login) => {}
                    _ = ended => {}
                }
            });
        };
        let thread = thread::spawn(move || wire.run(serve));
        listening.recv().expect("the registry listens");
        Self { end: Some(end), thread: Some(thread) }
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

async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor, folder: PathBuf, login: &'static str) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, folder) = (acceptor.clone(), folder.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |request| {
                let response = answer(&request, &folder, login);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn answer(request: &Request<Incoming>, folder: &std::path::Path, login: &str) -> Response<Full<Bytes>> {
    let status = |status| Response::builder().status(status);
    if !is_admitted(request.headers(), login) {
        let challenge = status(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, "Basic realm=\"charts\"");
        return challenge.body(Full::default()).expect("a response");
    }
    let path = request.uri().path();
    let kind = if path.contains("/manifests/") {
        "application/vnd.oci.image.manifest.v1+json"
    } else {
        "application/octet-stream"
    };
    match std::fs::read(folder.join(path.trim_start_matches('/'))) {
        Ok(content) => {
            let found = status(StatusCode::OK).header(header::CONTENT_TYPE, kind);
            found.body(Full::new(content.into())).expect("a response")
        }
        Err(_) if path == "/v2/" => status(StatusCode::OK).body(Full::default()).expect("a response"),
        Err(_) => status(StatusCode::NOT_FOUND).body(Full::default()).expect("a response"),
    }
}

fn is_admitted(headers: &HeaderMap, login: &str) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|shown| shown == format!("Basic {login}").as_str())
}
