//! What strangers can take from others at the front: clocks and limits, frame by frame.

use std::{io, time::Duration};

use http::Request;
use hyper::client::conn::http1::SendRequest;
use k3s_http::{Body, empty};
use k3s_listener::Limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, pause},
};
use tokio_rustls::client::TlsStream;

use super::{
    paced::Paced,
    testing::{Ca, Settings, Setup, connector, soon, text},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// No answer may begin (SETTINGS_INITIAL_WINDOW_SIZE).
const CLOSED_WINDOWS: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

/// A client of HTTP/2 that sends what it likes, and answers nothing.
struct RawClient(TlsStream<Paced<TcpStream>>);

/// What came.
#[derive(Debug)]
struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

impl RawClient {
    async fn connect(setup: &Setup) -> Self {
        Self(soon(setup.connector(None).http2()).await.unwrap())
    }

    /// One that has begun, and whose settings were taken.
    async fn begin(setup: &Setup, settings: &[u8]) -> Self {
        let mut client = Self::connect(setup).await;
        client.send(&[PREFACE, settings].concat()).await;
        client.frames_until(|frame| frame.kind == 4 && frame.payload.is_empty()).await;
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame { kind: head[3], payload })
    }

    async fn frames_until(&mut self, is_last: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            frames.push(soon(self.frame()).await.unwrap());
            if is_last(frames.last().unwrap()) {
                return frames;
            }
        }
    }

    /// What still comes, and after how many seconds the connection ends; no time passes but while everybody waits.
    async fn until_closed(mut self) -> (Vec<Frame>, u64) {
        pause();
        let (start, mut frames) = (Instant::now(), Vec::new());
        while let Ok(frame) = self.frame().await {
            frames.push(frame);
        }
        (frames, start.elapsed().as_secs())
    }
}

/// A GET.
fn get(stream: u8, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let literal = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let mut block = [vec![0x82, 0x87, 0x04], literal(path), vec![0x01], literal("front.test")].concat();
    for (name, value) in headers {
        block.extend([vec![0], literal(name), literal(value)].concat());
    }
    [&[0, 0, block.len() as u8, HEADERS, 5, 0, 0, 0, stream], block.as_slice()].concat()
}

/// As exact as the runtime's timers are.
fn is_about(seconds: u64, expected: u64) -> bool {
    (expected - 1..expected + 3).contains(&seconds)
}

#[tokio::test]
async fn a_client_that_agrees_on_http2_and_says_nothing_is_cut_off_after_ten_seconds() {
    let setup = Setup::start().await;
    let silent = RawClient::connect(&setup).await;
    let (frames, seconds) = silent.until_closed().await;
    assert!(frames.is_empty() && seconds <= 10, "{frames:?} {seconds}");
}

#[tokio::test]
async fn a_client_that_is_silent_after_its_settings_is_sent_away() {
    let setup = Setup::start().await;
    let silent = RawClient::begin(&setup, &SETTINGS).await;
    let (frames, seconds) = silent.until_closed().await;
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY) && (60..=96).contains(&seconds), "{frames:?} {seconds}");
}

#[tokio::test]
async fn half_a_header_is_waited_for_no_longer_than_none() {
    let setup = Setup::start().await;
    let mut slow = RawClient::begin(&setup, &SETTINGS).await;
    let head = get(1, "/ping", &[]);
    slow.send(&head[..head.len() / 2]).await;
    let (_, seconds) = slow.until_closed().await;
    assert!((60..=96).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_client_that_was_refused_and_does_not_listen_gets_no_more_answers() {
    let setup = Setup::start().await;
    let mut deaf = RawClient::begin(&setup, &SETTINGS).await;
    deaf.send(&get(1, "/api", &[])).await;
    let answers = |frames: &[Frame]| frames.iter().filter(|frame| frame.kind == HEADERS).count();
    let told = deaf.frames_until(|frame| frame.kind == GOAWAY).await;
    deaf.send(&Vec::from_iter((1..=50).map(|n| get(2 * n + 1, "/api", &[]))).concat()).await;
    let (frames, seconds) = deaf.until_closed().await;
    let refused = frames.iter().filter(|frame| frame.kind == RST_STREAM && frame.payload == REFUSED_STREAM).count();
    assert_eq!((refused, answers(&told) + answers(&frames)), (50, 1));
    assert!(seconds <= 6, "{seconds}");
}

#[tokio::test]
async fn answers_that_a_stranger_does_not_take_are_few_and_given_up() {
    let setup = Setup::start().await;
    let mut greedy = RawClient::begin(&setup, &CLOSED_WINDOWS).await;
    greedy.send(&Vec::from_iter((0..100).map(|n| get(2 * n + 1, "/cacerts", &[]))).concat()).await;
    let (frames, seconds) = greedy.until_closed().await;
    assert_eq!(frames.iter().filter(|frame| frame.kind == HEADERS).count(), 16);
    assert!((60..=121).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn requests_of_a_stranger_wait_for_its_token_to_be_accepted() {
    let setup = Setup::start().await;
    let mut pod = RawClient::begin(&setup, &SETTINGS).await;
    let watch = |n: u8| get(2 * n + 1, "/watch", &[("authorization", "Bearer abc")]);
    pod.send(&Vec::from_iter((0..60).map(watch)).concat()).await;
    let mut begun = 0;
    while begun < 60 {
        begun += usize::from(soon(pod.frame()).await.unwrap().kind == HEADERS);
    }
    setup.api.sending(60).await;
}

#[tokio::test]
async fn a_watch_goes_on_while_its_client_answers_pings_and_no_longer() {
    let setup = Setup::start().await;
    let client = setup.http2(Some(&setup.jane)).await;
    let watch = client.get("/watch").await;
    let mut vanished = RawClient::begin(&setup, &SETTINGS).await;
    vanished.send(&get(1, "/watch", &[("authorization", "Bearer abc")])).await;
    vanished.frames_until(|frame| frame.kind == DATA).await;
    let (_, seconds) = vanished.until_closed().await;
    assert!((60..=81).contains(&seconds), "{seconds}");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    tokio::time::resume();
    assert_eq!(text(client.get("/ping").await).await, "pong");
    assert!(!client.running.is_finished());
    drop(watch);
}

async fn ping(client: &mut SendRequest<Body>) -> u16 {
    client.ready().await.unwrap();
    let request = Request::get("/ping").header("host", "front.test").body(empty()).unwrap();
    let answer = soon(client.send_request(request)).await.unwrap();
    let status = answer.status().as_u16();
    text(answer).await;
    status
}

#[tokio::test]
async fn an_http1_connection_is_kept_for_the_next_request_as_long_as_kube_apiserver_keeps_it() {
    let setup = Setup::start().await;
    let mut client = setup.http1(None).await;
    assert_eq!(ping(&mut client).await, 200);
    pause();
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(ping(&mut client).await, 200);
    let start = Instant::now();
    while !client.is_closed() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(is_about(start.elapsed().as_secs(), 90), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_body_that_stops_ends_a_strangers_connection() {
    let setup = Setup::start().await;
    let mut client = setup.connector(None).http1().await.unwrap();
    let head =
        "POST /hang HTTP/1.1\r\nhost: front.test\r\nauthorization: Bearer abc\r\ncontent-length: 100\r\n\r\nhalf";
    client.write_all(head.as_bytes()).await.unwrap();
    setup.api.sending(1).await;
    pause();
    let start = Instant::now();
    let _ = client.read_to_end(&mut Vec::new()).await;
    assert!(is_about(start.elapsed().as_secs(), 60), "{:?}", start.elapsed());
    setup.api.sending(0).await;
}

#[tokio::test]
async fn strangers_displace_each_other_and_nobody_else() {
    let limits = Limits { strangers: 40, strangers_of_source: 20, authenticated: 100, authenticated_of_source: 50 };
    let setup = Setup::start_with(Settings { limits, ..Settings::default() }).await;
    let (admin, pod) = (setup.http2(Some(&setup.jane)).await, setup.http2(None).await);
    let mut watch = admin.get("/watch").await;
    let token = [("authorization", "Bearer abc")];
    assert_eq!(pod.get_with("/api", &token).await.status(), 200);
    let early = setup.http2(None).await;

    let mut silent = Vec::new();
    for number in 0..200 {
        silent.push(TcpStream::connect(setup.address).await.unwrap());
        if number % 50 == 49 {
            // Whoever comes meanwhile is served.
            assert_eq!(text(setup.http2(None).await.get("/ping").await).await, "pong");
            assert_eq!(text(setup.http2(Some(&setup.jane)).await.get("/api").await).await, "ok");
        }
    }
    for gone in silent.drain(..100) {
        let mut gone = gone;
        assert!(soon(gone.read(&mut [0])).await.map_or(true, |read| read == 0));
    }
    assert!(soon(early.running).await.is_ok(), "an old stranger is sent away as well");
    assert_eq!(text(admin.get("/api").await).await, "ok");
    assert_eq!(pod.get_with("/api", &token).await.status(), 200);
    let event = soon(http_body_util::BodyExt::frame(watch.body_mut())).await.unwrap().unwrap();
    assert_eq!(event.into_data().unwrap(), "event");
}

#[tokio::test]
async fn a_certificate_of_nobodys_is_a_strangers() {
    let limits = Limits { strangers: 2, strangers_of_source: 2, authenticated: 100, authenticated_of_source: 50 };
    let setup = Setup::start_with(Settings { limits, ..Settings::default() }).await;
    let foreign = Ca::new("client-ca").client("system:admin", Some("system:masters"));
    let stranger = connector(setup.address, &setup.server_ca, Some(foreign.certified_key()));
    let mut first = soon(stranger.http1()).await.unwrap();
    let _others = [soon(stranger.http1()).await.unwrap(), soon(stranger.http1()).await.unwrap()];
    assert!(soon(first.read(&mut [0])).await.map_or(true, |read| read == 0));
}
