//! The ways into nodes: tunnels that they open here, and kube-apiserver's connections through them.

use http::{Request, Response};
use hyper::{body::Incoming, upgrade};
use hyper_util::rt::TokioIo;
use k3s_front::Connection;
use k3s_http::{Body, Status, empty};
use k3s_splice::{ReadFirst, splice};
use k3s_tunnel::{Destination, Dialect};
use tracing::{debug, info};

use super::Routes;
use crate::caller::Group;

impl Routes {
    /// `GET /v1-k3s/connect`: the connection becomes the tunnel of the node that the client's certificate names.
    pub(super) async fn open_tunnel(
        &self,
        request: &mut Request<Incoming>,
        connection: Connection<'_>,
    ) -> Result<Response<Body>, Status> {
        let Connection { peer, tasks, shutdown } = connection;
        let caller = self.admit(&[Group::Nodes], request.headers(), peer).await?;
        let node = caller.node().ok_or_else(|| Status::unauthorized("failed authentication"))?;
        let mut takes_nodes = self.takes_nodes.clone();
        if !*takes_nodes.borrow() {
            return Err(Status::unavailable("the datastore does not answer this server: use another one"));
        }
        let response = k3s_tunnel::upgrade(request, node).map_err(|error| Status::bad_request(error.to_string()))?;
        let (node, address, dialect) = (node.to_owned(), peer.address, Dialect::of(request.headers()));
        let (tunnels, shutdown, upgraded) = (self.dialer.tunnels.clone(), shutdown.clone(), upgrade::on(request));
        tasks.spawn(async move {
            let io = match upgraded.await {
                Ok(io) => TokioIo::new(io),
                Err(error) => return debug!(%node, %address, %error, "A node was gone before its tunnel was open."),
            };
            info!(%node, %address, "A node opened its tunnel.");
            let end = shutdown.child_token();
            let served = async {
                let served = tunnels.serve(&node, dialect, io, &end).await;
                end.cancel();
                served
            };
            let sent_away = async {
                if let Some(Ok(_)) = end.run_until_cancelled(takes_nodes.wait_for(|taken| !taken)).await {
                    info!(%node, %address, "A node is sent to another server.");
                    end.cancel();
                }
            };
            if let (Err(reason), ()) = tokio::join!(served, sent_away) {
                info!(%node, %address, %reason, "A node's tunnel has ended.");
            }
        });
        Ok(response.map(|()| empty()))
    }

    /// `CONNECT host:port`: the connection leads there, through a tunnel where that is the way.
    pub(super) async fn connect(
        &self,
        request: &mut Request<Incoming>,
        connection: Connection<'_>,
    ) -> Result<Response<Body>, Status> {
        self.admit(&[Group::Masters], request.headers(), connection.peer).await?;
        let Some(authority) = request.uri().authority() else {
            return Err(Status::bad_request("CONNECT needs host:port"));
        };
        let destination = Destination::try_from(authority).map_err(|error| Status::bad_request(error.to_string()))?;
        let there = self.dialer.dial(destination).await.map_err(|error| Status::bad_gateway(error.to_string()))?;
        let upgraded = upgrade::on(request);
        connection.tasks.spawn(async move {
            let carried = async {
                let client = ReadFirst::new(TokioIo::new(upgraded.await?));
                splice(client, there).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            };
            if let Err(error) = carried.await {
                debug!(%error, "A connection into the cluster broke off.");
            }
        });
        Ok(Response::new(empty()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use k3s_front::testing::{Ca, Leaf, answer_the_end, is_answered_after_the_end, soon, text};
    use k3s_tunnel::{Node, Reach, Rules, SessionError, Tunnel};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::watch,
        task::JoinHandle,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::routes::testing::Setup;

    const NODES: Option<&str> = Some("system:nodes");
    const MASTERS: Option<&str> = Some("system:masters");

    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn apiserver(setup: &Setup) -> Leaf {
        setup.client_ca.client("system:apiserver", MASTERS)
    }

    fn node(setup: &Setup) -> Leaf {
        setup.client_ca.client("system:node:worker", NODES)
    }

    /// Serves a tunnel of the node `worker`, whose kubelet is `kubelet`.
    async fn open_tunnel(setup: &Setup, kubelet: SocketAddr) -> JoinHandle<Result<(), SessionError>> {
        let stream = setup.stream(Some(&node(setup))).await;
        let tunnel = soon(Tunnel::connect(stream, "front.test:6443")).await.unwrap();
        let addresses = ["192.0.2.7".parse().unwrap()].into();
        let worker = Node { addresses, kubelet_port: Some(kubelet.port()), ..Node::default() };
        setup.egress.send_modify(|egress| drop(egress.nodes.insert("worker".to_owned(), worker)));
        tokio::spawn(async move {
            let (_rules, current) = watch::channel(Rules { kubelet, reach: Reach::Kubelet });
            tunnel.serve(current, &CancellationToken::new()).await
        })
    }

    async fn ask_connect(setup: &Setup, certificate: Option<&Leaf>, destination: &str) -> Response<Incoming> {
        let mut client = setup.http1(certificate).await;
        let request = Request::connect(destination).header("host", destination).body(empty()).unwrap();
        soon(client.send_request(request)).await.unwrap()
    }

    async fn ask_tunnel(setup: &Setup, certificate: Option<&Leaf>, headers: &[(&str, &str)]) -> (u16, String) {
        let mut client = setup.http1(certificate).await;
        let mut request = Request::get(k3s_tunnel::PATH).header("host", "front.test:6443");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = soon(client.send_request(request.body(empty()).unwrap())).await.unwrap();
        (response.status().as_u16(), text(response).await)
    }

    /// Connects as kube-apiserver does, until that succeeds: a tunnel is there a little after its handshake.
    async fn connect(setup: &Setup, destination: &str) -> TokioIo<upgrade::Upgraded> {
        soon(async {
            loop {
                let mut response = ask_connect(setup, Some(&apiserver(setup)), destination).await;
                if response.status() == 200 {
                    return TokioIo::new(upgrade::on(&mut response).await.unwrap());
                }
                assert_eq!(response.status(), 502);
            }
        })
        .await
    }

    #[tokio::test]
    async fn kube_apiserver_talks_to_a_kubelet_through_its_nodes_tunnel() {
        let setup = Setup::start().await;
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = kubelet.local_addr().unwrap();
        let tunnel = open_tunnel(&setup, address).await;

        let mut stream = connect(&setup, &format!("192.0.2.7:{}", address.port())).await;
        stream.write_all(b"hello").await.unwrap();
        let (mut kubelet, _) = soon(kubelet.accept()).await.unwrap();
        let mut heard = [0; 5];
        soon(kubelet.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"hello");
        kubelet.write_all(b"world").await.unwrap();
        drop(kubelet);
        let mut rest = String::new();
        soon(stream.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "world");

        setup.shutdown.cancel();
        assert!(matches!(soon(tunnel).await.unwrap(), Err(SessionError::Closed)));
        soon(setup.front.serving).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_without_its_store_sends_nodes_away() {
        let setup = Setup::start().await;
        let tunnel = open_tunnel(&setup, "127.0.0.1:10250".parse().unwrap()).await;
        setup.takes_nodes.send_replace(false);
        assert!(matches!(soon(tunnel).await.unwrap(), Err(SessionError::Closed)));
        let (status, sentence) = ask_tunnel(&setup, Some(&node(&setup)), &WEBSOCKET).await;
        assert_eq!(status, 503);
        assert!(sentence.contains("the datastore does not answer this server"), "{sentence}");
        setup.takes_nodes.send_replace(true);
        open_tunnel(&setup, "127.0.0.1:10250".parse().unwrap()).await;
    }

    /// Directly, and through a tunnel: `kubectl exec` of a program that has ended long before its output was read.
    #[tokio::test]
    async fn what_was_said_before_a_connection_ended_arrives_however_slowly_it_is_read() {
        let setup = Setup::start().await;
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = kubelet.local_addr().unwrap();
        let _tunnel = open_tunnel(&setup, address).await;
        for destination in [address.to_string(), format!("192.0.2.7:{}", address.port())] {
            let stream = connect(&setup, &destination).await;
            let (kubelet, _) = soon(kubelet.accept()).await.unwrap();
            tokio::join!(is_answered_after_the_end(stream), answer_the_end(kubelet));
        }
    }

    #[tokio::test]
    async fn what_is_no_kubelet_is_dialled_from_here() {
        let setup = Setup::start().await;
        let webhook = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = webhook.local_addr().unwrap().to_string();
        let mut stream = connect(&setup, &address).await;
        stream.write_all(b"x").await.unwrap();
        let (mut webhook_side, _) = soon(webhook.accept()).await.unwrap();
        assert_eq!(soon(webhook_side.read_u8()).await.unwrap(), b'x');

        drop((webhook_side, webhook));
        let gone = ask_connect(&setup, Some(&apiserver(&setup)), &address).await;
        assert_eq!(gone.status(), 502);
        let sentence = text(gone).await;
        assert!(sentence.contains(&format!("cannot connect to {address}: Connection refused")), "{sentence}");
    }

    #[tokio::test]
    async fn a_kubelet_without_a_tunnel_is_not_reached() {
        let setup = Setup::start().await;
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        open_tunnel(&setup, kubelet).await.abort();
        soon(async {
            loop {
                let response =
                    ask_connect(&setup, Some(&apiserver(&setup)), &format!("worker:{}", kubelet.port())).await;
                if response.status() == 502 {
                    return assert!(text(response).await.contains("failed to find Session for client worker"));
                }
            }
        })
        .await;
    }

    #[tokio::test]
    async fn only_masters_connect() {
        let setup = Setup::start().await;
        let foreign = Ca::new("client-ca").client("system:apiserver", MASTERS);
        for (certificate, status) in [(None, 403), (Some(node(&setup)), 403), (Some(foreign), 401)] {
            let response = ask_connect(&setup, certificate.as_ref(), "127.0.0.1:10250").await;
            assert_eq!(response.status(), status);
        }
        let response = ask_connect(&setup, Some(&apiserver(&setup)), "no-port").await;
        assert_eq!(response.status(), 400);
        assert!(text(response).await.contains("no-port is not host:port"));
    }

    #[tokio::test]
    async fn only_nodes_open_tunnels() {
        let setup = Setup::start().await;
        let foreign = Ca::new("client-ca").client("system:node:worker", NODES);
        let nobody = setup.client_ca.client("worker", NODES);
        for (certificate, status, sentence) in [
            (None, 403, "forbidden"),
            (Some(apiserver(&setup)), 403, "forbidden"),
            (Some(foreign), 401, "not authorized"),
            (Some(nobody), 401, "failed authentication"),
        ] {
            let (found, body) = ask_tunnel(&setup, certificate.as_ref(), &WEBSOCKET).await;
            assert_eq!((found, body.contains(sentence)), (status, true), "{body}");
        }
        for missing in 0..WEBSOCKET.len() {
            let mut headers = WEBSOCKET.to_vec();
            headers.remove(missing);
            let (found, body) = ask_tunnel(&setup, Some(&node(&setup)), &headers).await;
            assert_eq!((found, body.contains("Error during upgrade for host [worker]")), (400, true), "{body}");
        }
    }
}
