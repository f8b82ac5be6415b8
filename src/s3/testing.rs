//! A server that answers as a test has it, and what it was asked.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k3s_config::{
    s3::{BucketLookup, S3Credentials, S3Endpoint, S3Proxy, S3Security, S3Settings},
    secret::Secret,
};
use rustls::{ServerConfig, crypto::aws_lc_rs::default_provider};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::Bucket;

/// A request with its body.
pub(crate) type Asked = Request<Bytes>;

/// Answers on loopback until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    _serving: JoinSet<()>,
}

impl Server {
    pub(crate) async fn answering(
        answer: impl Fn(&Asked) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::start(None, answer).await
    }

    /// With a certificate that nobody knows, which comes along as PEM.
    pub(crate) async fn answering_over_tls(
        answer: impl Fn(&Asked) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    ) -> (Self, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], made.signing_key.into())
            .unwrap();
        let server = Self::start(Some(TlsAcceptor::from(Arc::new(config))), answer).await;
        (server, made.cert.pem().into_bytes())
    }

    async fn start(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Asked) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, tls, asked.clone(), answer));
        Self { address, asked, _serving: serving }
    }

    /// What it was asked until now.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The folder `edge` in its bucket `backups`.
    pub(crate) fn bucket(&self) -> Bucket {
        Bucket::new(&settings(self.address)).unwrap()
    }
}

async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: impl Fn(&Asked) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request: Request<Incoming>| async {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
            let request = Request::from_parts(head, body);
            let response = answer(&request);
            asked.lock().unwrap().push(request);
            Ok::<_, Infallible>(response)
        });
        // Who asks may break off.
        match &tls {
            None => drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                }
            }
        }
    }
}

pub(crate) fn settings(address: SocketAddr) -> S3Settings {
    S3Settings {
        endpoint: S3Endpoint { host: address.ip().to_string(), port: Some(address.port()) },
        security: S3Security::Plain,
        credentials: S3Credentials {
            access_key: Secret::new("id"),
            secret_key: Secret::new("key"),
            session_token: None,
        },
        bucket: "backups".to_owned(),
        lookup: BucketLookup::Auto,
        region: "us-east-1".to_owned(),
        folder: "edge".to_owned(),
        proxy: S3Proxy::None,
        timeout: Duration::from_secs(60),
    }
}

pub(crate) fn answer(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(body.into())).unwrap()
}
