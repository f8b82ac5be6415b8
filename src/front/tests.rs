//! The front as clients and kube-apiserver see it.

use std::error::Error as _;

use bytes::Bytes;
use futures_util::{FutureExt as _, future::join_all};
use http::{Request, Version};
use http_body_util::BodyExt;
use hyper::{body::Frame, client::conn::http1};
use hyper_util::rt::TokioIo;
use k3s_http::{empty, full};
use k3s_pki::TlsPolicy;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use rustls::sign::CertifiedKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{
    KubeApiserver, Unauthenticated, serve_starting,
    testing::{Ca, Settings, Setup, channel, connector, is_answered_after_the_end, soon, text},
};

/// Every header that names somebody, with one that may.
const FORGED: [(&str, &str); 6] = [
    ("x-remote-user", "system:admin"),
    ("x-remote-group", "system:masters"),
    ("x_remote_user", "system:admin"),
    ("x-remote-uid", "0"),
    ("x-remote-extra-scopes", "all"),
    ("impersonate-user", "john"),
];

/// Where `--anonymous-auth` is on.
fn forwarded() -> Settings {
    Settings { unauthenticated: Unauthenticated::Forwarded, ..Settings::default() }
}

#[tokio::test]
async fn a_verified_certificate_is_vouched_for_on_the_trusted_connection() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.client_ca.client("jane", Some("dev")))).await;
    let mut headers = FORGED.to_vec();
    headers.extend([
        ("authorization", "Bearer of-somebody-else"),
        ("x-forwarded-for", "192.0.2.7"),
        ("te", "trailers"),
    ]);
    assert_eq!(text(client.get_with("/api/v1/pods?watch=1&a=%2F", &headers).await).await, "ok");

    let seen = setup.api.last();
    assert!(seen.trusted);
    assert_eq!(seen.version, Version::HTTP_2);
    assert_eq!(seen.uri, "https://front.test:6443/api/v1/pods?watch=1&a=%2F");
    let mut headers = seen.headers;
    let credential = headers.remove("x-remote-extra-authentication.kubernetes.io%2fcredential-id").unwrap();
    assert!(credential.to_str().unwrap().starts_with("X509SHA256="));
    let mut names: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            ("impersonate-user", "john"),
            ("x-forwarded-for", "192.0.2.7, 127.0.0.1"),
            ("x-remote-group", "dev"),
            ("x-remote-user", "jane"),
        ]
    );
}

#[tokio::test]
async fn strangers_get_one_request_a_connection() {
    let setup = Setup::start().await;
    let foreign = Ca::new("client-ca").client("system:admin", None);
    let client = setup.http2(Some(&foreign)).await;
    assert_eq!(client.get("/api").await.status(), 401);
    soon(client.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_certificate_requests_speak_for_themselves() {
    let setup = Setup::start().await;
    let client = setup.http2(None).await;
    let mut headers = FORGED.to_vec();
    headers.push(("authorization", "Bearer abc"));
    assert_eq!(client.get_with("/api", &headers).await.status(), 200);

    let seen = setup.api.last();
    assert!(!seen.trusted);
    assert_eq!(seen.headers["authorization"], "Bearer abc");
    assert!(seen.headers.keys().all(|name| !name.as_str().replace('_', "-").starts_with("x-remote-")));
}

#[tokio::test]
async fn a_foreign_certificate_is_refused_unless_a_token_speaks() {
    let setup = Setup::start().await;
    let foreign = Ca::new("client-ca").client("system:admin", Some("system:masters"));
    let client = setup.http2(Some(&foreign)).await;
    let refused = client.get("/api").await;
    assert_eq!(refused.status(), 401);
    let status = text(refused).await;
    assert!(status.contains(r#""reason":"Unauthorized""#) && status.contains("unknown authority"), "{status}");

    let client = setup.http2(Some(&foreign)).await;
    assert_eq!(client.get_with("/api", &[("authorization", "Bearer abc")]).await.status(), 200);
    assert!(!setup.api.last().trusted);
    assert_eq!(client.get("/ping").await.status(), 200, "public for everybody");
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused_in_the_handshake() {
    let setup = Setup::start().await;
    let admin = setup.client_ca.client("system:admin", Some("system:masters"));
    let stolen = CertifiedKey::new(vec![admin.der()], Ca::new("x").client("x", None).certified_key().key);
    let thief = connector(setup.address, &setup.server_ca, Some(stolen));
    // With TLS 1.3 the client has finished before the server looks: the first read meets the alert.
    let refused = match soon(thief.http1()).await {
        Ok(mut stream) => soon(stream.read_u8()).await.unwrap_err().to_string(),
        Err(error) => format!("{error:?}"),
    };
    assert!(refused.contains("DecryptError") || refused.contains("decrypt"), "{refused}");
    assert_eq!(setup.api.requests_by_connection(), [0; 0]);
}

#[tokio::test]
async fn a_chain_that_nobody_needs_ends_the_handshake() {
    let setup = Setup::start().await;
    let (ours, foreign) = (setup.client_ca.client("jane", None), Ca::new("client-ca"));
    let CertifiedKey { cert: mut chain, key, .. } = ours.certified_key();
    for number in 0..120 {
        chain.push(if number % 2 == 0 { ours.der() } else { foreign.server().der() });
    }
    let stranger = connector(setup.address, &setup.server_ca, Some(CertifiedKey::new(chain, key)));
    let refused = match soon(stranger.http2()).await {
        Ok(mut stream) => soon(stream.read_to_end(&mut Vec::new())).await.unwrap_err().to_string(),
        Err(error) => format!("{error:?}"),
    };
    assert!(refused.contains("CertificateUnknown"), "{refused}");
    assert_eq!(setup.http2(Some(&ours)).await.get("/api").await.status(), 200);
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_looked_at_once_and_a_new_one_needs_a_new_connection() {
    let setup = Setup::start().await;
    let mut client = setup.http1(Some(&Ca::new("client-ca").client("system:admin", None))).await;
    let request = |path| Request::get(path).header("host", "front.test").body(empty()).unwrap();
    assert_eq!(soon(client.send_request(request("/ping"))).await.unwrap().status(), 200);
    client.ready().await.unwrap();
    let refused = soon(client.send_request(request("/api"))).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["connection"]), (401, &"close".parse().unwrap()));
}

#[tokio::test]
async fn the_serving_certificate_can_be_exchanged_while_serving() {
    let setup = Setup::start().await;
    let shown = async |setup: &Setup| {
        let stream = soon(setup.connector(None).http2()).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = shown(&setup).await;
    let renewed = setup.server_ca.server();
    setup.certificate.replace(renewed.certified_key());
    assert_ne!(shown(&setup).await, before);
    assert_eq!(shown(&setup).await, renewed.der());
}

#[tokio::test]
async fn metrics_of_ours_follow_kube_apiservers_for_whom_it_lets_see_them() {
    let mut registry = Registry::default();
    registry.register("ours", "What we count", Gauge::<i64>::default());
    let token = ("authorization", "Bearer abc");

    let setup = Setup::start_with(Settings { metrics: Some(registry), ..forwarded() }).await;
    let client = setup.http2(None).await;
    let page = text(client.get_with("/metrics", &[token, ("accept-encoding", "gzip")]).await).await;
    assert_eq!(page, "theirs 1\n# HELP ours What we count.\n# TYPE ours gauge\nours 0\n");
    assert!(!setup.api.last().headers.contains_key("accept-encoding"));
    let refused = client.get("/metrics").await;
    assert_eq!((refused.status().as_u16(), text(refused).await.as_str()), (403, "no"));

    let setup = Setup::start().await;
    let client = setup.http2(None).await;
    assert_eq!(text(client.get_with("/metrics", &[token, ("accept", "text/plain")]).await).await, "theirs 1\n");
}

#[tokio::test]
async fn until_kube_apiserver_is_ready_clients_are_told_to_try_again() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    setup.kube_apiserver.send_replace(KubeApiserver::Starting);
    let response = client.get("/api").await;
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert!(text(response).await.contains("apiserver not ready"));
    assert_eq!(text(client.get("/ping").await).await, "pong");

    setup.kube_apiserver.send_replace(KubeApiserver::Ready);
    assert_eq!(client.get("/api").await.status(), 200);
}

#[tokio::test]
async fn a_server_without_kube_apiserver_says_so() {
    let setup = Setup::start().await;
    setup.kube_apiserver.send_replace(KubeApiserver::Disabled);
    let client = setup.http2(Some(&setup.jane)).await;
    for path in ["/api", "/readyz", "/openapi/v2"] {
        let response = client.get(path).await;
        assert_eq!(response.status(), 503);
        assert!(text(response).await.contains("apiserver disabled"), "{path}");
    }
    assert_eq!(text(client.get("/ping").await).await, "pong");
}

#[tokio::test]
async fn while_the_server_starts_everything_has_to_come_again() {
    let ca = Ca::new("server-ca");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = async {
        for path in ["/ping", "/v1-k3s/config", "/api"] {
            let stream = connector(address, &ca, None).http1().await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let running = tokio::spawn(connection);
            let response = sender.send_request(Request::get(path).body(empty()).unwrap()).await.unwrap();
            assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
            assert!(text(response).await.contains("\"message\":\"starting\""), "{path}");
            drop(sender);
            running.await.unwrap().unwrap();
        }
        let idle = TcpStream::connect(address).await.unwrap();
        (idle, "through")
    };
    let (_idle, outcome) = soon(serve_starting(&listener, ca.server().current(), &TlsPolicy::default(), asked)).await;
    assert_eq!(outcome, "through");
    TcpStream::connect(address).await.unwrap();
    soon(listener.accept()).await.unwrap();
}

#[tokio::test]
async fn bodies_and_trailers_stream_both_ways() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    let (sender, body) = channel();
    let mut response = client.send(Request::put("https://front.test/echo").body(body).unwrap()).await;
    for part in ["one", "two"] {
        sender.send(Frame::data(Bytes::from(part))).await.unwrap();
        let frame = soon(response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part, "before the next is sent");
    }
    let trailers = http::HeaderMap::from_iter([("x-sum".parse().unwrap(), "6".parse().unwrap())]);
    sender.send(Frame::trailers(trailers.clone())).await.unwrap();
    drop(sender);
    assert_eq!(soon(response.body_mut().frame()).await.unwrap().unwrap().into_trailers().unwrap(), trailers);
}

#[tokio::test]
async fn http1_clients_are_served_too() {
    let setup = Setup::start().await;
    let mut client = setup.http1(Some(&setup.client_ca.client("jane", None))).await;
    for _ in 0..2 {
        let request = Request::put("/echo").header("host", "front.test:6443").body(full("body")).unwrap();
        assert_eq!(text(soon(client.send_request(request)).await.unwrap()).await, "body");
        let seen = setup.api.last();
        assert_eq!((seen.version, seen.uri.to_string()), (Version::HTTP_2, "https://front.test:6443/echo".to_owned()));
        assert_eq!(seen.headers["x-remote-user"], "jane");
        assert_eq!(seen.headers["content-length"], "4");
        client.ready().await.unwrap();
    }
    let request = Request::get("/api").header("host", "no host").body(empty()).unwrap();
    assert_eq!(soon(client.send_request(request)).await.unwrap().status(), 400);
}

#[tokio::test]
async fn upgrades_are_spliced_and_each_side_may_end_first() {
    let setup = Setup::start().await;
    for certificate in [Some(&setup.jane), None] {
        let mut client = setup.http1(certificate).await;
        let request = Request::post("/upgrade")
            .header("host", "front.test")
            .header("authorization", "Bearer abc")
            .header("connection", "Upgrade, X-Mine")
            .header("upgrade", "SPDY/3.1")
            .header("x-mine", "1")
            .header("x-remote-user", "system:admin")
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
            .body(empty())
            .unwrap();
        let mut response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        let mut io = TokioIo::new(soon(hyper::upgrade::on(&mut response)).await.unwrap());
        io.write_all(b"hello").await.unwrap();
        io.shutdown().await.unwrap();
        let mut heard = String::new();
        soon(io.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "HELLO", "said after we had ended");

        let seen = setup.api.last();
        assert_eq!((seen.version, seen.trusted), (Version::HTTP_11, certificate.is_some()));
        assert_eq!(seen.headers["connection"], "Upgrade");
        assert_eq!(seen.headers["host"], "front.test");
        assert_eq!(seen.headers["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(!seen.headers.contains_key("x-mine"));
        assert_eq!(seen.headers.get("x-remote-user").is_some_and(|user| user == "jane"), certificate.is_some());
        assert_ne!(seen.headers.get("x-remote-user"), Some(&"system:admin".parse().unwrap()));
    }
}

#[tokio::test]
async fn what_was_said_before_an_upgraded_connection_ended_arrives_however_slowly_it_is_read() {
    let setup = Setup::start().await;
    let mut client = setup.http1(Some(&setup.jane)).await;
    let request = Request::get("/upgrade").header("host", "h").header("connection", "upgrade");
    let request = request.header("upgrade", "websocket").body(empty()).unwrap();
    let mut response = soon(client.send_request(request)).await.unwrap();
    is_answered_after_the_end(TokioIo::new(soon(hyper::upgrade::on(&mut response)).await.unwrap())).await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    let setup = Setup::start().await;
    let mut client = setup.http1(Some(&setup.jane)).await;
    let request =
        Request::get("/api").header("host", "h").header("connection", "upgrade").header("upgrade", "websocket");
    let response = soon(client.send_request(request.body(empty()).unwrap())).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, "ok");
}

#[tokio::test]
async fn long_streams_are_spread_over_connections_before_they_are_full() {
    let setup = Setup::start().await;
    let jane = Some(&setup.jane);
    let clients = [setup.http2(jane).await, setup.http2(jane).await, setup.http2(jane).await];
    let mut watches = Vec::new();
    for number in 0..200 {
        watches.push(clients[number % 3].get("/watch").await);
    }
    setup.api.sending(200).await;
    assert_eq!(setup.api.requests_by_connection(), [79, 79, 42]);
    assert_eq!(clients[0].get("/api").await.status(), 200, "the next request finds room");
    for watch in &mut watches {
        assert_eq!(soon(watch.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap(), "event");
    }
}

#[tokio::test]
async fn clients_that_do_not_read_block_nobody_else() {
    let setup = Setup::start().await;
    let mut unread = Vec::new();
    for _ in 0..50 {
        let client = setup.http2(Some(&setup.jane)).await;
        unread.push((client.get("/flood").await, client));
    }
    let client = setup.http2(Some(&setup.jane)).await;
    for _ in 0..20 {
        assert_eq!(text(client.get("/api").await).await, "ok");
    }
    assert_eq!(setup.api.requests_by_connection(), [70], "all on one connection");
}

#[tokio::test]
async fn a_client_that_goes_ends_its_requests_at_kube_apiserver() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    let (watch, other) = (client.get("/watch").await, client.get("/watch").await);
    setup.api.sending(2).await;
    drop(watch);
    setup.api.sending(1).await;
    drop((other, client));
    setup.api.sending(0).await;

    let client = setup.http1(Some(&setup.jane)).await;
    let hanging = tokio::spawn({
        let mut client = client;
        async move { client.send_request(Request::get("/hang").header("host", "h").body(empty()).unwrap()).await }
    });
    setup.api.sending(1).await;
    hanging.abort();
    setup.api.sending(0).await;
}

#[tokio::test]
async fn after_goodbye_new_requests_take_a_new_connection_and_old_ones_go_on() {
    let mut setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    let (sender, body) = channel();
    let mut running = client.send(Request::put("https://front.test/echo").body(body).unwrap()).await;
    setup.api.send_goaway();
    for _ in 0..3 {
        assert_eq!(text(client.get("/api").await).await, "ok");
    }
    sender.send(Frame::data(Bytes::from("still here"))).await.unwrap();
    assert_eq!(soon(running.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap(), "still here");
}

#[tokio::test]
async fn requests_survive_a_restart_of_kube_apiserver() {
    let mut setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    assert_eq!(client.get("/api").await.status(), 200);
    let watch = client.get("/watch").await;
    setup.api.kill().await;
    assert!(soon(watch.into_body().collect()).await.is_err(), "a watch that was cut does not look complete");
    let away = client.get("/api").await;
    assert_eq!((away.status().as_u16(), &away.headers()["retry-after"]), (503, &"1".parse().unwrap()));

    setup.api.restart().await;
    for method in ["GET", "PUT", "DELETE"] {
        let request = Request::builder().method(method).uri("https://front.test/api").body(empty()).unwrap();
        assert_eq!(client.send(request).await.status(), 200, "{method}");
    }
}

#[tokio::test]
async fn what_kube_apiserver_may_have_done_is_not_repeated() {
    let mut setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    let hanging =
        tokio::spawn(
            async move { client.send(Request::post("https://front.test/hang").body(full("once")).unwrap()).await },
        );
    setup.api.sending(1).await;
    setup.api.kill().await;
    setup.api.restart().await;
    assert_eq!(soon(hanging).await.unwrap().status(), 502);
    assert_eq!(setup.api.requests_by_connection(), [1]);
}

#[tokio::test]
async fn shutdown_lets_requests_finish_and_cuts_watches() {
    let mut setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    let (sender, body) = channel();
    let echo = client.send(Request::put("https://front.test/echo").body(body).unwrap()).await;
    let watch = client.get("/watch").await;
    setup.shutdown.cancel();
    drop(sender);
    assert_eq!(text(echo).await, "");
    assert!(soon(watch.into_body().collect()).await.is_err());
    soon(&mut setup.serving).await.unwrap();
    assert!(setup.connector(None).http2().await.is_err(), "nobody listens");
    setup.api.sending(0).await;
}

#[tokio::test]
async fn shutdown_sends_idle_clients_away() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    assert_eq!(client.get("/api").await.status(), 200);
    setup.shutdown.cancel();
    soon(setup.serving).await.unwrap();
    soon(client.running).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_are_sent_away() {
    let setup = Setup::start().await;
    let mut silent = TcpStream::connect(setup.address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "without a handshake");
}

#[tokio::test]
async fn headers_are_bounded() {
    let setup = Setup::start().await;
    let long = |kilobytes: usize| "x".repeat(kilobytes << 10);
    let mut client = setup.http1(None).await;
    let request = Request::get("/ping").header("host", "front.test").header("x-long", long(512)).body(empty()).unwrap();
    assert_eq!(soon(client.send_request(request)).await.unwrap().status(), 431);

    let client = setup.http2(None).await;
    let request = Request::get("https://front.test/ping").header("x-long", long(200)).body(empty()).unwrap();
    assert_eq!(client.send(request).await.status(), 431);
    assert_eq!(client.get("/ping").await.status(), 200, "the connection is none the worse");
}

#[tokio::test]
async fn clients_that_never_finish_their_headers_are_sent_away() {
    let setup = Setup::start().await;
    let mut slow = setup.connector(None).http1().await.unwrap();
    slow.write_all(b"GET /ping HTTP/1.1\r\nhost: front.test\r\nx-slow: ").await.unwrap();
    tokio::time::pause();
    let mut heard = Vec::new();
    // However it ends, it does.
    let _ = slow.read_to_end(&mut heard).await;
    assert!(!String::from_utf8_lossy(&heard).contains("200"));
}

#[tokio::test]
async fn tls_before_1_2_is_not_spoken() {
    /// A record of a TLS 1.1 handshake: version, random, no session, two suites of that time, no compression.
    fn client_hello() -> Vec<u8> {
        let mut hello = vec![3, 2];
        hello.extend([7; 32]);
        hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]);
        let mut record = vec![22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
        record.extend(hello);
        record
    }
    let setup = Setup::start().await;
    let mut old = TcpStream::connect(setup.address).await.unwrap();
    old.write_all(&client_hello()).await.unwrap();
    let mut heard = Vec::new();
    soon(old.read_to_end(&mut heard)).await.unwrap();
    assert_eq!((heard[0], heard[5]), (21, 2), "a fatal alert, and nothing else");
    assert_eq!(heard.len(), 7);
}

/// What a client of HTTP/2 is told when its connection ends with GOAWAY.
fn is_told_to_calm_down(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| error.is_go_away() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

#[tokio::test]
async fn without_credentials_nothing_reaches_kube_apiserver() {
    let setup = Setup::start().await;
    let client = setup.http2(None).await;
    let response = client.get_with("/api", &[("authorization", "Basic YWJj"), ("audit-id", "mine")]).await;
    assert_eq!(response.status(), 401);
    let mut headers = response.headers().clone();
    assert!(headers.remove("date").is_some());
    let mut names: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            ("audit-id", "mine"),
            ("cache-control", "no-cache, private"),
            ("content-length", "129"),
            ("content-type", "application/json"),
        ]
    );
    let expected = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
    assert_eq!(text(response).await, format!("{expected}\n"));

    let mut client = setup.http1(None).await;
    let request = Request::get("/api/v1/namespaces/default/pods/p/exec").header("host", "front.test");
    let request = request.header("connection", "upgrade").header("upgrade", "websocket").body(empty()).unwrap();
    assert_eq!(soon(client.send_request(request)).await.unwrap().status(), 401);
    assert_eq!(setup.api.requests_by_connection(), [0; 0], "not even a handshake");
}

#[tokio::test]
async fn where_anonymous_access_is_on_strangers_ask_on_connections_of_their_own() {
    let setup = Setup::start_with(forwarded()).await;
    let clients = [setup.http2(None).await, setup.http2(None).await];
    for client in [&clients[0], &clients[1], &clients[0]] {
        assert_eq!(text(client.get("/livez").await).await, "ok");
        assert!(!setup.api.last().trusted);
    }
    clients[1].get("/api").await;
    assert_eq!(setup.api.connections(), 2);
}

#[tokio::test]
async fn each_identity_has_connections_of_its_own() {
    let setup = Setup::start().await;
    let john = setup.client_ca.client("john", Some("dev"));
    for certificate in [Some(&setup.jane), Some(&john), None, Some(&setup.jane)] {
        for token in ["Bearer abc", "Bearer def"] {
            setup.http2(certificate).await.get_with("/api", &[("authorization", token)]).await;
        }
    }
    assert_eq!(setup.api.requests_by_connection(), [4, 2, 1, 1], "jane's, john's, and one for each token");
}

#[tokio::test]
async fn guesses_of_tokens_leave_no_connection_and_are_counted() {
    let setup = Setup::start().await;
    let guess = async |number: usize| {
        let guesser = setup.http2(None).await;
        let request = Request::get("https://front.test/guess").header("authorization", format!("Bearer {number}"));
        let status = guesser.send(request.body(empty()).unwrap()).await.status().as_u16();
        assert!(soon(guesser.running).await.is_ok(), "the next guess takes another connection");
        status
    };
    let answers = soon(join_all((0..90).map(guess))).await;
    let count = |status: u16| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!(count(401) + count(429), 90);
    assert!((1..=setup.api.connections()).contains(&count(401)) && count(429) > 0);
    setup.api.connected(0).await;
    assert_eq!(setup.http2(Some(&setup.jane)).await.get("/api").await.status(), 200);
}

#[tokio::test]
async fn whoever_resets_what_it_asks_loses_its_connection_and_nobody_else_does() {
    let setup = Setup::start().await;
    let john = setup.client_ca.client("john", Some("system:nodes"));
    let watching = setup.http2(Some(&setup.jane)).await;
    let mut watch = watching.get("/watch").await;
    let token = setup.http2(None).await;
    let mut other = token.get_with("/watch", &[("authorization", "Bearer abc")]).await;

    let mut attacker = setup.http2(Some(&john)).await;
    let request = || Request::get("https://front.test/hang").body(empty()).unwrap();
    let mut given_up = 0;
    let ended = soon(async {
        loop {
            let asked: Vec<_> = (0..50).map(|_| tokio::spawn(attacker.begin(request()))).collect();
            tokio::select! {
                () = setup.api.sending(2 + 50) => {}
                ended = &mut attacker.running => return ended,
            }
            asked.iter().for_each(JoinHandle::abort);
            given_up += 50;
            tokio::select! {
                () = setup.api.sending(2) => {}
                ended = &mut attacker.running => return ended,
            }
        }
    })
    .await;
    assert!((200..=400).contains(&given_up), "{given_up}");
    let told = ended.unwrap().unwrap_err();
    assert!(is_told_to_calm_down(&told), "{told:?}");
    for watch in [&mut watch, &mut other] {
        assert_eq!(soon(watch.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap(), "event");
        assert!(watch.body_mut().frame().now_or_never().is_none(), "it goes on");
    }
    assert_eq!(watching.get("/api").await.status(), 200);
    assert_eq!(setup.http2(Some(&john)).await.get("/ping").await.status(), 200, "john may come again");
}

#[tokio::test]
async fn a_path_that_go_cannot_read_is_a_bad_request() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    for path in ["/%", "/api/%4", "/%zz", "/api%2"] {
        let response = client.get(path).await;
        assert_eq!((response.status().as_u16(), text(response).await.contains("%")), (400, true), "{path}");
    }
    for path in ["/%41", "/?%", "/api?a=%zz"] {
        assert_eq!(client.get(path).await.status(), 200, "{path}");
    }
}
