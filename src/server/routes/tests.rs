//! The supervisor API as nodes and servers see it: over TLS, through the front.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use http::{HeaderName, HeaderValue, Request};
use hyper::body::Frame;
use k3s_front::testing::{Ca, Leaf, channel, soon, text};
use k3s_http::{Body, empty, full};
use k3s_identity::Password;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::testing::{AGENT_TOKEN, NODE_PASSWORD, Setup, TOKEN};
use crate::{PinnedTokens, Replacement, ServerAccess, ServerRequestError, bootstrap_data};

/// What a request is made of.
#[derive(Default)]
struct Ask<'a> {
    method: Option<&'a str>,
    path: &'a str,
    certificate: Option<&'a Leaf>,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
}

/// An answer: its code, its content type, its text.
#[derive(Debug, PartialEq)]
struct Answer {
    code: u16,
    kind: String,
    text: String,
}

impl<'a> Ask<'a> {
    fn get(path: &'a str) -> Self {
        Self { path, ..Self::default() }
    }

    fn post(path: &'a str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: Some("POST"), body: Some(body.into()), ..Self::get(path) }
    }

    fn put(path: &'a str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: Some("PUT"), body: Some(body.into()), ..Self::get(path) }
    }

    fn basic(self, user: &str, password: &str) -> Self {
        let credentials = STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", format!("Basic {credentials}"))
    }

    /// As agents log in.
    fn agent(self) -> Self {
        self.basic("node", AGENT_TOKEN)
    }

    /// As servers log in.
    fn server(self) -> Self {
        self.basic("server", TOKEN)
    }

    fn certificate(mut self, certificate: &'a Leaf) -> Self {
        self.certificate = Some(certificate);
        self
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn node(self, name: &str, password: &str) -> Self {
        self.header("k3s-node-name", name).header("k3s-node-password", password)
    }

    async fn of(self, setup: &Setup) -> Answer {
        let body: Body = self.body.map_or_else(empty, full);
        let mut request = Request::new(body);
        *request.method_mut() = self.method.unwrap_or("GET").parse().unwrap();
        *request.uri_mut() = format!("https://front.test:6443{}", self.path).parse().unwrap();
        for (name, value) in self.headers {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap());
        }
        let response = setup.http2(self.certificate).await.send(request).await;
        let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        Answer { code: response.status().as_u16(), kind: kind.unwrap_or_default(), text: text(response).await }
    }
}

impl Answer {
    /// The message of a `Status`, whose other fields have to fit the code.
    fn status(&self) -> (u16, String) {
        let status: Value = serde_json::from_str(&self.text).unwrap();
        assert_eq!(self.kind, "application/json");
        assert_eq!(
            (&status["kind"], &status["apiVersion"], &status["status"]),
            (&json!("Status"), &json!("v1"), &json!("Failure"))
        );
        assert_eq!(status["code"], self.code);
        let reason = match self.code {
            400 => json!("BadRequest"),
            401 => json!("Unauthorized"),
            403 => json!("Forbidden"),
            405 => json!("MethodNotAllowed"),
            408 => json!("Timeout"),
            413 => json!("RequestEntityTooLarge"),
            429 => json!("TooManyRequests"),
            500 => json!("InternalError"),
            503 => json!("ServiceUnavailable"),
            _ => Value::Null,
        };
        assert_eq!(status["reason"], reason);
        (self.code, status["message"].as_str().unwrap().to_owned())
    }
}

fn plain(text: &str) -> Answer {
    Answer { code: 200, kind: "text/plain".into(), text: text.into() }
}

/// A signing request as k3s agents send it: DER, without a subject.
fn signing_request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn refusal(code: u16, message: &str) -> (u16, String) {
    (code, message.to_owned())
}

const FOR_NODES: [&str; 9] = [
    "/v1-k3s/serving-kubelet.crt",
    "/v1-k3s/client-kubelet.crt",
    "/v1-k3s/client-kube-proxy.crt",
    "/v1-k3s/client-k3s-controller.crt",
    "/v1-k3s/client-ca.crt",
    "/v1-k3s/server-ca.crt",
    "/v1-k3s/apiservers",
    "/v1-k3s/config",
    "/v1-k3s/readyz",
];

const FOR_SERVERS: [&str; 6] = [
    "/db/info",
    "/v1-k3s/encrypt/status",
    "/v1-k3s/encrypt/config",
    "/v1-k3s/cert/cacerts",
    "/v1-k3s/server-bootstrap",
    "/v1-k3s/token",
];

#[tokio::test]
async fn everybody_may_see_the_authority() {
    let setup = Setup::start().await;
    assert_eq!(Ask::get("/ping").of(&setup).await, plain("pong"));
    assert_eq!(Ask::get("/cacerts").of(&setup).await, plain(&setup.server_ca.pem));
}

#[tokio::test]
async fn who_brings_nothing_or_something_wrong_gets_nowhere() {
    let setup = Setup::start().await;
    let stranger = Ca::new("client-ca").client("system:node:server", Some("system:nodes"));
    let monitor = setup.client_ca.client("system:monitoring", Some("system:monitoring"));
    for path in FOR_NODES.into_iter().chain(FOR_SERVERS) {
        let forbidden = refusal(403, "forbidden");
        assert_eq!(Ask::get(path).of(&setup).await.status(), forbidden, "anonymous: {path}");
        assert_eq!(Ask::get(path).certificate(&monitor).of(&setup).await.status(), forbidden, "no group: {path}");
        let unauthorized = refusal(401, "not authorized");
        assert_eq!(Ask::get(path).certificate(&stranger).of(&setup).await.status(), unauthorized, "stranger: {path}");
        assert_eq!(Ask::get(path).basic("server", AGENT_TOKEN).of(&setup).await.status(), unauthorized, "{path}");
        assert_eq!(Ask::get(path).basic("nobody", TOKEN).of(&setup).await.status(), unauthorized, "{path}");
        let jwt = Ask::get(path).header("authorization", "Bearer eyJhbGciOi.e30.c2ln");
        assert_eq!(jwt.of(&setup).await.status(), unauthorized, "{path}");
    }
}

#[tokio::test]
async fn each_layer_has_its_own_groups() {
    let setup = Setup::start().await;
    let node = setup.client_ca.client("system:node:server", Some("system:nodes"));
    let forbidden = refusal(403, "forbidden");
    for path in FOR_NODES {
        assert_eq!(Ask::get(path).server().of(&setup).await.status(), forbidden, "{path}");
        for ask in [Ask::get(path).agent(), Ask::get(path).certificate(&node)] {
            assert!(![401, 403, 404].contains(&ask.of(&setup).await.code), "{path}");
        }
    }
    for path in FOR_SERVERS {
        assert_eq!(Ask::get(path).agent().of(&setup).await.status(), forbidden, "{path}");
        assert_eq!(Ask::get(path).certificate(&node).of(&setup).await.status(), forbidden, "{path}");
        assert!(![401, 403, 404].contains(&Ask::get(path).server().of(&setup).await.code), "{path}");
    }
}

#[tokio::test]
async fn what_every_node_may_read() {
    let setup = Setup::start().await;
    assert_eq!(Ask::get("/v1-k3s/client-ca.crt").agent().of(&setup).await, plain(&setup.client_ca.pem));
    assert_eq!(Ask::get("/v1-k3s/server-ca.crt").agent().of(&setup).await, plain(&setup.server_ca.pem));
    let document = |text: &str| Answer { code: 200, kind: "application/json".into(), text: text.into() };
    assert_eq!(
        Ask::get("/v1-k3s/config").agent().of(&setup).await,
        document("{\"ClusterDomain\":\"cluster.local\"}\n")
    );
    assert_eq!(Ask::get("/v1-k3s/apiservers").agent().of(&setup).await, document("[]\n"));
    let not_ready = Ask::get("/v1-k3s/readyz").agent().of(&setup).await;
    assert_eq!(not_ready.status(), refusal(503, "runtime core not ready"));
}

#[tokio::test]
async fn certificates_are_signed_for_the_senders_key() {
    let setup = Setup::start().await;
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let ask = Ask::post("/v1-k3s/serving-kubelet.crt", signing_request(&key)).agent();
        let ask = ask.node("Server", NODE_PASSWORD).header("k3s-node-ip", "192.0.2.7,2001:db8::7");
        let answer = ask.of(&setup).await;
        assert_eq!((answer.code, answer.kind.as_str()), (200, "text/plain"));
        assert!(answer.text.ends_with(&setup.server_ca.pem), "followed by its authority");
        assert_eq!(answer.text.matches("BEGIN").count(), 2);
        let certificate = k3s_pki::Certificate::first_of(answer.text.as_bytes()).unwrap();
        assert_eq!(certificate.common_name.as_deref(), Some("server"));
        assert_eq!(certificate.public_key.spki(), rcgen::PublicKeyData::subject_public_key_info(&key));
        let sans: Vec<String> = certificate.sans.iter().map(ToString::to_string).collect();
        assert_eq!(sans, ["localhost", "server", "127.0.0.1", "192.0.2.7", "2001:db8::7"]);
    }

    let key = KeyPair::generate().unwrap();
    for (path, user, group) in [
        ("/v1-k3s/client-kubelet.crt", "system:node:server", Some("system:nodes")),
        ("/v1-k3s/client-kube-proxy.crt", "system:kube-proxy", None),
        ("/v1-k3s/client-k3s-controller.crt", "system:k3s-controller", None),
    ] {
        let ask = Ask::post(path, signing_request(&key)).agent().node("server", NODE_PASSWORD);
        let answer = ask.of(&setup).await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.text);
        assert!(answer.text.ends_with(&setup.client_ca.pem) && !answer.text.contains("PRIVATE KEY"));
        let certificate = k3s_pki::Certificate::first_of(answer.text.as_bytes()).unwrap();
        assert_eq!(certificate.common_name.as_deref(), Some(user));
        assert!(certificate.organizations.iter().map(String::as_str).eq(group));
    }
}

#[tokio::test]
async fn who_sends_no_signing_request_gets_the_shared_key() {
    let setup = Setup::start().await;
    for (path, name) in [
        ("/v1-k3s/serving-kubelet.crt", "serving-kubelet"),
        ("/v1-k3s/client-kubelet.crt", "client-kubelet"),
        ("/v1-k3s/client-kube-proxy.crt", "client-kube-proxy"),
        ("/v1-k3s/client-k3s-controller.crt", "client-k3s-controller"),
    ] {
        let shared = std::fs::read_to_string(setup.server_dir.path().join(format!("tls/{name}.key"))).unwrap();
        for ask in [Ask::get(path), Ask::post(path, "no request")] {
            let answer = ask.agent().node("server", NODE_PASSWORD).of(&setup).await;
            assert_eq!(answer.code, 200, "{path}: {}", answer.text);
            assert!(answer.text.ends_with(&shared), "{path}");
            let key = k3s_pki::PrivateKey::from_pem(shared.as_bytes()).unwrap();
            let certificate = k3s_pki::Certificate::first_of(answer.text.as_bytes()).unwrap();
            assert_eq!(&certificate.public_key, key.public());
        }
    }
}

#[tokio::test]
async fn another_partys_key_is_not_signed() {
    let setup = Setup::start().await;
    let mut forged = signing_request(&KeyPair::generate().unwrap());
    *forged.last_mut().unwrap() ^= 1;
    let (code, message) = Ask::post("/v1-k3s/client-kube-proxy.crt", forged).agent().of(&setup).await.status();
    assert_eq!(code, 400);
    assert!(message.starts_with("the signature of the certificate signing request does not match"), "{message}");
}

#[tokio::test]
async fn what_a_node_leaves_out_is_named() {
    let setup = Setup::start().await;
    let node = setup.client_ca.client("system:node:server", Some("system:nodes"));
    for path in &FOR_NODES[..2] {
        for ask in [Ask::get(path).agent(), Ask::get(path).certificate(&node)] {
            assert_eq!(ask.of(&setup).await.status(), refusal(400, "node name not set"));
        }
        let ask = Ask::get(path).agent().header("k3s-node-name", "edge-1");
        assert_eq!(ask.of(&setup).await.status(), refusal(400, "node password not set"));
        let ask = Ask::get(path).agent().node("edge-1", "s3cret");
        assert_eq!(ask.of(&setup).await.status(), refusal(503, "runtime core not ready"));
        let (code, message) = Ask::get(path).agent().node("server", "wrong").of(&setup).await.status();
        assert_eq!(code, 403);
        assert!(message.starts_with("unable to verify password for node server: hash does not match"), "{message}");
    }
}

#[tokio::test]
async fn a_node_gets_no_certificate_for_another_one() {
    let setup = Setup::start().await;
    let other = setup.client_ca.client("system:node:edge-1", Some("system:nodes"));
    for path in &FOR_NODES[..2] {
        let ask = Ask::get(path).certificate(&other).node("server", NODE_PASSWORD);
        assert_eq!(ask.of(&setup).await.status(), refusal(400, "header node name does not match auth node name"));
    }
}

#[tokio::test]
async fn no_node_gets_a_certificate_for_the_api_or_a_service() {
    let setup = Setup::start().await;
    let services = [
        ("server", "192.0.2.7,10.43.0.1", "10.43.0.1 is an address of the cluster's Services"),
        ("edge-1", "::ffff:10.43.0.1", "10.43.0.1 is an address of the cluster's Services"),
        ("edge-1", "::FFFF:0a2b:ff02", "10.43.255.2 is an address of the cluster's Services"),
        ("kubernetes", "192.0.2.7", "kubernetes is a name of the cluster's Services"),
        ("Kubernetes.Default.SVC", "192.0.2.7", "kubernetes.default.svc is a name of the cluster's Services"),
        (
            "metrics.kube-system.svc.cluster.local",
            "192.0.2.7",
            "metrics.kube-system.svc.cluster.local is a name of the",
        ),
    ];
    let servers = [
        ("edge-1", "192.0.2.1", "192.0.2.1 is an address of the server"),
        ("edge-1", "192.0.2.7,::ffff:192.0.2.1", "192.0.2.1 is an address of the server"),
        ("API.Example.COM", "192.0.2.7", "api.example.com is a name of the server"),
        ("eu.api.example.com", "192.0.2.7", "eu.api.example.com is a name of the server"),
    ];
    for path in &FOR_NODES[..2] {
        for (name, ips, why) in services.into_iter().chain(servers) {
            let ask = Ask::get(path).agent().node(name, NODE_PASSWORD).header("k3s-node-ip", ips);
            let (code, message) = ask.of(&setup).await.status();
            assert!(code == 400 && message.starts_with(why), "{name} {ips}: {code} {message}");
        }
    }
    let own = Ask::get(FOR_NODES[0]).agent().node("server", NODE_PASSWORD).header("k3s-node-ip", "192.0.2.1,10.44.0.1");
    assert_eq!(own.of(&setup).await.code, 200, "the server's own node has the server's address");
}

#[tokio::test]
async fn what_servers_ask_each_other() {
    let setup = Setup::start().await;
    assert_eq!(Ask::get("/v1-k3s/server-bootstrap").server().of(&setup).await.status(), refusal(400, "etcd disabled"));
    let status = Ask::get("/v1-k3s/encrypt/status").server().of(&setup).await;
    assert_eq!(status.text, r#"{"stage":"","activekey":""}"#);
    for path in ["/v1-k3s/encrypt/config", "/v1-k3s/cert/cacerts", "/v1-k3s/token"] {
        assert_eq!(Ask::get(path).server().of(&setup).await.status(), refusal(405, "method not allowed"));
    }
    let encrypt = Ask::put("/v1-k3s/encrypt/config", "{}").server().of(&setup).await;
    assert_eq!(encrypt.status(), refusal(503, "runtime core not ready"));
    assert_eq!(Ask::put("/v1-k3s/token", "new").server().of(&setup).await.status().0, 400);
    let same = Ask::put("/v1-k3s/token", json!({"newToken": TOKEN}).to_string()).server().of(&setup).await;
    assert_eq!(same.status().0, 400);
}

/// Files as they are sent: k3s' names, a time and base64.
fn files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let file = |(name, content): (&str, &str)| {
        (name.to_owned(), json!({"Timestamp": "2026-01-02T03:04:05Z", "Content": STANDARD.encode(content)}))
    };
    Value::Object(files.into_iter().map(file).collect()).to_string()
}

#[tokio::test]
async fn authorities_are_replaced_in_the_datastore_alone() {
    let setup = Setup::start().await;
    let served = Ask::get("/cacerts").of(&setup).await;
    let new = setup.server_ca.authority("k3s-server-ca");
    let body = files([("ServerCA", &*new.certificate), ("ServerCAKey", &new.key), ("PasswdFile", "none of theirs")]);
    let replaced = Ask::put("/v1-k3s/cert/cacerts", body).server().of(&setup).await;
    assert_eq!((replaced.code, replaced.text.as_str()), (204, ""));
    assert_eq!(Ask::get("/cacerts").of(&setup).await, served, "until the server starts again");
    let found = bootstrap_data::load(&setup.datastore.client(), Some(&Password::new(TOKEN)), None).await;
    let stored = found.unwrap().unwrap().data.files;
    assert_eq!(stored["ServerCA"].content, new.certificate.as_bytes());
    assert_eq!(stored["ServerCAKey"].content, new.key.as_bytes());
    assert_eq!(stored["ClientCA"].content, setup.client_ca.pem.as_bytes(), "what was left out stays");
    assert!(stored["PasswdFile"].content.starts_with(AGENT_TOKEN.as_bytes()), "only authorities are taken");
}

#[tokio::test]
async fn authorities_that_will_not_do_are_refused_in_words() {
    let setup = Setup::start().await;
    let (ca, stranger) = (&setup.server_ca, Ca::new("stranger"));
    let unrelated = stranger.authority("k3s-server-ca");
    let [unrelated_pair, single, no_key] = [
        files([("ServerCA", &*unrelated.certificate), ("ServerCAKey", &unrelated.key)]),
        files([("ServerCA", &*stranger.pem), ("ServerCAKey", &stranger.server().key)]),
        files([("ServerCA", &*ca.authority("k3s-server-ca").certificate)]),
    ];
    for (path, body, why) in [
        ("/v1-k3s/cert/cacerts", "{}", "there is neither an authority nor a key among the files"),
        ("/v1-k3s/cert/cacerts?force=true", "{}", "there is neither an authority nor a key among the files"),
        ("/v1-k3s/cert/cacerts", "[]", "the body is not JSON of the form"),
        (
            "/v1-k3s/cert/cacerts",
            &unrelated_pair,
            "tls/server-ca.crt: the old authority has signed neither its first certificate nor one that leads there; --force",
        ),
        (
            "/v1-k3s/cert/cacerts?force=false",
            &unrelated_pair,
            "tls/server-ca.crt: the old authority has signed neither",
        ),
        ("/v1-k3s/cert/cacerts?force=true", &single, "tls/server-ca.crt: its first certificate is not for its key"),
        ("/v1-k3s/cert/cacerts?force=true", &no_key, "tls/server-ca.crt: its first certificate is not for its key"),
    ] {
        let (code, message) = Ask::put(path, body).server().of(&setup).await.status();
        assert!(code == 400 && message.starts_with(why), "{path}: {code} {message}");
    }
    let none = bootstrap_data::load(&setup.datastore.client(), Some(&Password::new(TOKEN)), None).await.unwrap();
    assert!(none.is_none(), "nothing is stored");
    for ask in [Ask::put("/v1-k3s/cert/cacerts", "{}"), Ask::put("/v1-k3s/cert/cacerts", "{}").agent()] {
        assert_eq!(ask.of(&setup).await.status(), refusal(403, "forbidden"));
    }
    let forced = Ask::put("/v1-k3s/cert/cacerts?force=true", unrelated_pair.as_str()).server().of(&setup).await;
    assert_eq!(forced.code, 204);
}

#[tokio::test]
async fn a_server_is_asked_by_its_neighbour() {
    let setup = Setup::start().await;
    let url = format!("https://{}", setup.address).parse().unwrap();
    let access = |token: Option<&str>| ServerAccess::new(setup.server_dir.path(), &url, token);
    let folder = tempfile::tempdir().unwrap();
    let nothing = access(None).unwrap().replace_authorities(folder.path(), Replacement::Vouched).await.unwrap_err();
    assert!(matches!(nothing, ServerRequestError::NoAuthorities { .. }), "{nothing}");

    let tls = folder.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let new = setup.server_ca.authority("k3s-server-ca");
    std::fs::write(tls.join("server-ca.crt"), new.certificate).unwrap();
    let refused = access(None).unwrap().replace_authorities(folder.path(), Replacement::Vouched).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("did not replace its certificate authorities (400 Bad Request): tls/server-ca.crt:"),
        "{refused}"
    );
    assert_eq!(u8::from(refused.exit_code()), 65);
    std::fs::write(tls.join("server-ca.key"), new.key).unwrap();
    std::fs::write(tls.join("client-ca.crt"), "").unwrap();
    let tokens = access(Some(TOKEN)).unwrap().replace_authorities(folder.path(), Replacement::Vouched).await.unwrap();
    assert_eq!(tokens, PinnedTokens::Change, "one certificate is pinned as a file, a chain by its root");

    let wrong =
        access(Some("guess")).unwrap().replace_authorities(folder.path(), Replacement::Vouched).await.unwrap_err();
    assert_eq!(u8::from(wrong.exit_code()), 77, "{wrong}");
    let elsewhere = access(Some(&format!("K10{}::server:{TOKEN}", "0".repeat(64)))).unwrap_err();
    assert!(matches!(elsewhere, ServerRequestError::OtherCluster));
    access(None).unwrap().rotate_token(Some("new")).await.unwrap();
    assert_eq!(Ask::get("/v1-k3s/encrypt/status").basic("server", "new").of(&setup).await.code, 200);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let setup = Setup::start().await;
    let huge = Ask::post("/v1-k3s/client-kube-proxy.crt", vec![0; 65 << 10]).agent().of(&setup).await;
    assert_eq!(huge.status(), refusal(413, "a request's body has at most 65536 bytes"));
    // Of those who may not, no body is read at all.
    let huge = Ask::post("/v1-k3s/client-kube-proxy.crt", vec![0; 65 << 10]).of(&setup).await;
    assert_eq!(huge.status(), refusal(403, "forbidden"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let setup = Setup::start().await;
    assert_eq!(Ask::get("/v1-k3s/config").agent().of(&setup).await.code, 200, "recognised from now on");
    let (_sender, body) = channel();
    let basic = format!("Basic {}", STANDARD.encode(format!("node:{AGENT_TOKEN}")));
    let request = Request::post("https://front.test:6443/v1-k3s/client-kube-proxy.crt").header("authorization", basic);
    let answer = setup.http2(None).await.begin(request.body(body).unwrap());
    tokio::time::pause();
    let response = answer.await.unwrap();
    assert_eq!(response.status(), 408);
    assert!(text(response).await.contains("the request's body did not come within 10 s"));
}

#[tokio::test]
async fn names_that_a_client_gives_itself_open_nothing() {
    let setup = Setup::start().await;
    let ask = Ask::get("/v1-k3s/config")
        .header("x-remote-user", "system:node:server")
        .header("x-remote-group", "system:nodes");
    assert_eq!(ask.of(&setup).await.status(), refusal(403, "forbidden"));
}

#[tokio::test]
async fn a_path_in_another_spelling_is_not_ours() {
    let setup = Setup::start().await;
    for path in [
        "//v1-k3s/config",
        "/v1-k3s//config",
        "/v1-k3s/%63onfig",
        "/v1-k3s%2fconfig",
        "/x/../v1-k3s/config",
        "/v1-k3s/token/",
        "/V1-K3S/token",
    ] {
        let client = setup.http2(None).await;
        let answer = client.get_with(path, &[("authorization", "Bearer of-kube-apiservers")]).await;
        assert_eq!(text(answer).await, "ok", "{path}");
        let seen = setup.api.last();
        assert!(!seen.trusted);
        assert_eq!(seen.uri.path(), path, "unchanged");
    }
}

#[tokio::test]
async fn a_bootstrap_token_waits_for_the_api() {
    let setup = Setup::start().await;
    let ask = Ask::get("/v1-k3s/config").header("authorization", "Bearer abcdef.0123456789abcdef");
    assert_eq!(ask.of(&setup).await.status(), refusal(503, "runtime core not ready"));
}

#[tokio::test]
async fn a_rotated_token_counts_at_once() {
    let setup = Setup::start().await;
    let rotate = |token: &str| Ask::put("/v1-k3s/token", json!({"newToken": token}).to_string());
    let rotated = rotate("new").server().of(&setup).await;
    assert_eq!((rotated.code, rotated.text.as_str()), (200, ""));
    assert_eq!(rotate("newer").server().of(&setup).await.status(), refusal(401, "not authorized"), "the old one");
    assert_eq!(rotate("newer").basic("server", "new").of(&setup).await.code, 200);
    assert_eq!(Ask::get("/v1-k3s/config").agent().of(&setup).await.code, 200, "agents have their own");
}

#[tokio::test]
async fn no_more_nodes_than_there_are_places() {
    let setup = Setup::start().await;
    assert_eq!(Ask::get("/v1-k3s/config").agent().of(&setup).await.code, 200);
    // Ten that do not end their requests.
    let client = setup.http2(None).await;
    let mut held = Vec::new();
    let basic = format!("Basic {}", STANDARD.encode(format!("node:{AGENT_TOKEN}")));
    for _ in 0..10 {
        let (sender, body) = channel();
        let request = Request::post("https://front.test:6443/v1-k3s/client-kube-proxy.crt")
            .header("authorization", &basic)
            .body(body)
            .unwrap();
        held.push((sender, client.begin(request)));
    }
    let refused = soon(async {
        loop {
            let answer = Ask::post("/v1-k3s/client-kube-proxy.crt", "").agent().of(&setup).await;
            if answer.code == 429 {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(refused.status(), refusal(429, "Too many requests, please try again later."));
    assert_eq!(Ask::get("/v1-k3s/config").agent().of(&setup).await.code, 200, "readers have their own places");
    for (sender, answer) in held {
        drop(sender);
        assert_eq!(soon(answer).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn of_many_that_join_at_once_each_has_an_answer() {
    let setup = Setup::start().await;
    let basic = format!("Basic {}", STANDARD.encode(format!("node:{AGENT_TOKEN}")));
    let client = setup.http2(None).await;
    let (mut bodies, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let (sender, body) = channel();
        let request = Request::post("https://front.test:6443/v1-k3s/client-kube-proxy.crt");
        answers.push(client.begin(request.header("authorization", &basic).body(body).unwrap()));
        bodies.push(sender);
    }
    let answers = tokio::spawn(join_all(answers));
    let request = signing_request(&KeyPair::generate().unwrap());
    for body in bodies {
        body.send(Frame::data(request.clone().into())).await.unwrap();
    }
    let mut codes = std::collections::BTreeSet::new();
    for answer in soon(answers).await.unwrap() {
        codes.insert(answer.unwrap().status().as_u16());
    }
    assert!(codes.contains(&200) && codes.is_subset(&[200, 429].into()), "{codes:?}");
}
