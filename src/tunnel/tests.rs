//! Both sides of a tunnel, over a pipe.

use std::{net::SocketAddr, time::Duration};

use futures_util::SinkExt as _;
use proptest::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    runtime,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, accept_async, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::Role,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{Dialect, Reach, Rules, SessionError, Target, Tunnel, TunnelStream, Tunnels};

/// A hang fails instead of waiting for ever.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it hangs")
}

/// A node with a kubelet, and its server.
struct Pair {
    kubelet: TcpListener,
    tunnels: Tunnels,
    rules: watch::Sender<Rules>,
    stop_node: CancellationToken,
    stop_server: CancellationToken,
    node: JoinHandle<Result<(), SessionError>>,
    server: JoinHandle<Result<(), SessionError>>,
}

impl Pair {
    async fn start() -> Self {
        Self::start_with(Dialect::HalfClose).await
    }

    async fn start_with(dialect: Dialect) -> Self {
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rules = Rules { kubelet: kubelet.local_addr().unwrap(), reach: Reach::Kubelet };
        let (rules, current) = watch::channel(rules);
        let tunnels = Tunnels::default();
        let (stop_node, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let (near, far) = duplex(64 << 10);
        let server = tokio::spawn({
            let (tunnels, stop) = (tunnels.clone(), stop_server.clone());
            async move {
                #[expect(clippy::result_large_err, reason = "tungstenite's own type")]
                let answer = |_: &Request, mut response: Response| {
                    dialect.tell(response.headers_mut());
                    Ok(response)
                };
                let far = accept_hdr_async(far, answer).await.unwrap().into_inner();
                tunnels.serve("node", dialect, far, &stop).await
            }
        });
        let node: Tunnel<DuplexStream> = Tunnel::connect(near, "server:6443").await.unwrap();
        let node = tokio::spawn({
            let stop = stop_node.clone();
            async move { node.serve(current, &stop).await }
        });
        let pair = Self { kubelet, tunnels, rules, stop_node, stop_server, node, server };
        while !pair.tunnels.reaches("node") {
            tokio::task::yield_now().await;
        }
        pair
    }

    fn kubelet(&self) -> SocketAddr {
        self.kubelet.local_addr().unwrap()
    }

    fn dial(&self, address: impl ToString) -> TunnelStream {
        self.tunnels.dial("node", Target::tcp(address.to_string())).unwrap()
    }

    /// A connection from both of its ends.
    async fn connection(&self) -> (TunnelStream, TcpStream) {
        let stream = self.dial(self.kubelet());
        (stream, soon(self.kubelet.accept()).await.unwrap().0)
    }
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let pair = Pair::start().await;
    let (mut stream, mut kubelet) = pair.connection().await;
    let mut heard = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    soon(kubelet.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"hello");
    kubelet.write_all(b"world").await.unwrap();
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"world");
}

#[tokio::test]
async fn an_end_comes_after_all_that_was_said() {
    let pair = Pair::start().await;
    let said: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();

    let (mut stream, mut kubelet) = pair.connection().await;
    let (mut heard, mut rest) = (Vec::new(), Vec::new());
    let (wrote, read) = soon(async {
        let write = async {
            kubelet.write_all(&said).await?;
            kubelet.shutdown().await
        };
        tokio::join!(write, stream.read_to_end(&mut heard))
    })
    .await;
    wrote.and(read.map(drop)).unwrap();
    assert!(heard == said);

    let (mut stream, mut kubelet) = pair.connection().await;
    let (wrote, read) = soon(async {
        let write = async {
            stream.write_all(&said).await?;
            stream.shutdown().await
        };
        tokio::join!(write, kubelet.read_to_end(&mut rest))
    })
    .await;
    wrote.and(read.map(drop)).unwrap();
    assert!(rest == said);
}

/// What one end sends before it closes for writing, what it reads at once, and how many milliseconds it rests after that.
#[derive(Debug, Clone)]
struct End {
    sends: usize,
    reads: usize,
    rests: u64,
}

fn end() -> impl Strategy<Value = End> {
    (0..4_000_000_usize, 100_000..1_000_000_usize, 0..4_u64).prop_map(|(sends, reads, rests)| End {
        sends,
        reads,
        rests,
    })
}

impl End {
    fn bytes(&self) -> Vec<u8> {
        (0..self.sends).map(|position| (position % 251) as u8).collect()
    }

    /// Sends and hears, and returns what it heard.
    async fn play(&self, stream: impl AsyncRead + AsyncWrite) -> Vec<u8> {
        let (mut from, mut to) = tokio::io::split(stream);
        let send = async {
            to.write_all(&self.bytes()).await.unwrap();
            to.shutdown().await.unwrap();
        };
        tokio::join!(self.hear(&mut from), send).0
    }

    async fn hear(&self, from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let (mut heard, mut chunk) = (Vec::new(), vec![0; self.reads]);
        while let count @ 1.. = from.read(&mut chunk).await.unwrap() {
            heard.extend_from_slice(&chunk[..count]);
            sleep(Duration::from_millis(self.rests)).await;
        }
        heard
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn whoever_ends_first_is_answered_and_every_byte_arrives(server in end(), kubelet in end()) {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (from_kubelet, from_server) = runtime.block_on(async {
            let pair = Pair::start().await;
            let (stream, connection) = pair.connection().await;
            soon(async { tokio::join!(server.play(stream), kubelet.play(connection)) }).await
        });
        prop_assert!(from_kubelet == kubelet.bytes(), "{} of {}", from_kubelet.len(), kubelet.sends);
        prop_assert!(from_server == server.bytes(), "{} of {}", from_server.len(), server.sends);
    }
}

/// By remotedialer's messages alone: a slow server has all that a kubelet sent before that ended, and the other way round.
#[tokio::test]
async fn without_half_closed_connections_whoever_ends_first_is_heard() {
    let pair = Pair::start_with(Dialect::Remotedialer).await;
    let said = End { sends: 5_000_000, reads: 200_000, rests: 1 };
    for kubelet_ends in [true, false] {
        let (mut stream, mut kubelet) = pair.connection().await;
        let heard = if kubelet_ends {
            let send = async {
                kubelet.write_all(&said.bytes()).await.unwrap();
                drop(kubelet);
            };
            soon(async { tokio::join!(send, said.hear(&mut stream)) }).await.1
        } else {
            let send = async {
                stream.write_all(&said.bytes()).await.unwrap();
                drop(stream);
            };
            soon(async { tokio::join!(send, said.hear(&mut kubelet)) }).await.1
        };
        assert!(heard == said.bytes(), "{} of {}, kubelet ends: {kubelet_ends}", heard.len(), said.sends);
    }
}

#[tokio::test]
async fn a_dropped_stream_ends_the_connection_at_the_node() {
    let pair = Pair::start().await;
    let (stream, mut kubelet) = pair.connection().await;
    drop(stream);
    assert_eq!(soon(kubelet.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn what_cannot_be_dialled_says_why() {
    let pair = Pair::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    pair.rules.send_modify(|rules| rules.kubelet = free);
    let mut stream = pair.dial(free);
    let error = soon(stream.read(&mut [0])).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("dial tcp {free}: Connection refused")), "{error}");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_and_ends_nothing_else() {
    let pair = Pair::start().await;
    let (mut open, mut kubelet) = pair.connection().await;
    let mut stream = pair.dial("127.0.0.1:22");
    let refused = soon(stream.read(&mut [0])).await.unwrap_err().to_string();
    assert_eq!(refused, "connect not allowed: tcp/127.0.0.1:22");
    kubelet.write_all(b"x").await.unwrap();
    assert_eq!(soon(open.read_u8()).await.unwrap(), b'x');
}

#[tokio::test]
async fn a_node_that_stops_leaves_no_connection() {
    let pair = Pair::start().await;
    let (mut stream, mut kubelet) = pair.connection().await;
    pair.stop_node.cancel();
    soon(pair.node).await.unwrap().unwrap();
    assert_eq!(
        pair.tunnels.dial("node", Target::tcp("127.0.0.1:22")).unwrap_err().to_string(),
        "failed to find Session for client node"
    );
    assert_eq!(soon(kubelet.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap_err().to_string(), "tunnel disconnect");
    assert!(matches!(soon(pair.server).await.unwrap(), Err(SessionError::Closed)));
}

#[tokio::test]
async fn a_server_that_stops_says_goodbye() {
    let pair = Pair::start().await;
    pair.stop_server.cancel();
    soon(pair.server).await.unwrap().unwrap();
    assert!(matches!(soon(pair.node).await.unwrap(), Err(SessionError::Closed)));
}

#[tokio::test]
async fn a_connection_that_nobody_reads_holds_up_no_other() {
    let pair = Pair::start().await;
    let (stream, mut flood) = pair.connection().await;
    let flooding = tokio::spawn(async move {
        let chunk = vec![7; 64 << 10];
        for _ in 0..256 {
            flood.write_all(&chunk).await?;
        }
        Ok::<_, std::io::Error>(flood)
    });
    let (mut other, mut kubelet) = pair.connection().await;
    for _ in 0..100 {
        other.write_all(b"ping").await.unwrap();
        soon(kubelet.read_exact(&mut [0; 4])).await.unwrap();
        kubelet.write_all(b"pong").await.unwrap();
        soon(other.read_exact(&mut [0; 4])).await.unwrap();
    }
    assert!(!flooding.is_finished(), "16 MiB do not fit into what is buffered");
    let mut stream = stream;
    let mut heard = vec![0; 16 << 20];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    soon(flooding).await.unwrap().unwrap();
    assert!(heard.iter().all(|byte| *byte == 7));
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_stays_and_a_silent_peer_ends_it() {
    let pair = Pair::start().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(pair.tunnels.reaches("node"));

    let (near, far) = duplex(1 << 10);
    let tunnels = pair.tunnels.clone();
    let serving =
        tokio::spawn(async move { tunnels.serve("mute", Dialect::HalfClose, far, &CancellationToken::new()).await });
    let ended = timeout(Duration::from_secs(70), serving).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.to_string(), "the peer has said nothing for 60 s");
    drop(near);
}

#[tokio::test]
async fn a_node_that_came_back_is_reached_though_its_former_tunnel_seems_to_stand() {
    let pair = Pair::start().await;
    let (_dead_node, dead) = duplex(1 << 10);
    let (tunnels, stop) = (pair.tunnels.clone(), CancellationToken::new());
    let _former = tokio::spawn(async move { tunnels.serve("back", Dialect::HalfClose, dead, &stop).await });
    let (near, far) = duplex(64 << 10);
    let tunnels = pair.tunnels.clone();
    while !tunnels.reaches("back") {
        tokio::task::yield_now().await;
    }
    let server = tokio::spawn(async move {
        let far = accept_async(far).await.unwrap().into_inner();
        tunnels.serve("back", Dialect::Remotedialer, far, &CancellationToken::new()).await
    });
    let rules = watch::Sender::new(Rules { kubelet: pair.kubelet(), reach: Reach::Kubelet });
    let node: Tunnel<DuplexStream> = Tunnel::connect(near, "server:6443").await.unwrap();
    let stop = CancellationToken::new();
    let serving = node.serve(rules.subscribe(), &stop);
    let reached = async {
        // Until the tunnel is listed, connections take the former one and come to nothing.
        let mut attempts = Vec::new();
        loop {
            attempts.push(pair.tunnels.dial("back", Target::tcp(pair.kubelet().to_string())).unwrap());
            if let Ok(accepted) = timeout(Duration::from_millis(20), pair.kubelet.accept()).await {
                return accepted.unwrap();
            }
        }
    };
    tokio::select! {
        _ = soon(reached) => {}
        ended = serving => panic!("{ended:?}"),
    }
    server.abort();
}

#[tokio::test]
async fn what_is_no_binary_message_ends_the_tunnel() {
    for message in [Message::text("hello"), Message::binary(vec![0xff; 11]), Message::binary(vec![0; (1 << 20) + 1])] {
        let (near, far) = duplex(4 << 20);
        let serving = tokio::spawn(async move {
            Tunnels::default().serve("node", Dialect::default(), far, &CancellationToken::new()).await
        });
        let mut node = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        soon(node.send(message.clone())).await.unwrap();
        let ended = soon(serving).await.unwrap().unwrap_err();
        let expected = match message {
            Message::Text(_) => matches!(ended, SessionError::Text),
            Message::Binary(bytes) if bytes.len() == 11 => matches!(ended, SessionError::Violation(_)),
            _ => matches!(ended, SessionError::Websocket(_)),
        };
        assert!(expected, "{ended:?}");
    }
}

#[tokio::test]
async fn a_node_that_opens_more_and_more_tunnels_keeps_the_newest() {
    let (tunnels, stop) = (Tunnels::default(), CancellationToken::new());
    let (mut serving, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        let (near, far) = duplex(64 << 10);
        nodes.push(near);
        serving.push(tokio::spawn({
            let (tunnels, stop) = (tunnels.clone(), stop.clone());
            async move { tunnels.serve("node", Dialect::HalfClose, far, &stop).await }
        }));
        tokio::task::yield_now().await;
    }
    for ended in serving.drain(..4) {
        soon(ended).await.unwrap().unwrap();
    }
    assert!(tunnels.reaches("node") && serving.iter().all(|newer| !newer.is_finished()));
    stop.cancel();
    for ended in serving {
        soon(ended).await.unwrap().unwrap();
    }
    assert!(!tunnels.reaches("node"));
}
