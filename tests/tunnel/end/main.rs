//! The program tunnel-end is one end of a tunnel, made of the room `tunnel`. `nix/components/remotedialer` has the same commands.
//!
//! `server TARGET` takes tunnels at the address that it prints first. Once there is one, it takes connections that lead through it to
//! TARGET, at the address that it prints then. `client SERVER TARGET` opens a tunnel through which TARGET is reached.

use std::{env, io, net::SocketAddr, process, thread, time::Duration};

use anyhow::{Context, Result, bail};
use http_body_util::Empty;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn, upgrade};
use hyper_util::rt::TokioIo;
use k3s_splice::{ReadFirst, splice};
use k3s_tunnel::{Dialect, Reach, Rules, Target, Tunnel, Tunnels};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{bytes::Bytes, sync::CancellationToken};

/// What the only client is called.
const NODE: &str = "node";

#[tokio::main]
async fn main() -> Result<()> {
    // Whoever started this program holds its standard input, until it is gone itself.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    });
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", target] => serve(target.parse().context("TARGET is no address")?).await,
        ["client", server, target] => connect(server, target.parse().context("TARGET is no address")?).await,
        _ => bail!("usage: tunnel-end server TARGET | client SERVER TARGET"),
    }
}

async fn serve(target: SocketAddr) -> Result<()> {
    let tunnels = Tunnels::default();
    let (websockets, entry) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    println!("{}", websockets.local_addr()?);
    tokio::spawn(take_tunnels(websockets, tunnels.clone()));
    while !tunnels.reaches(NODE) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{}", entry.local_addr()?);
    loop {
        let (here, _) = entry.accept().await?;
        here.set_nodelay(true)?;
        if let Ok(there) = tunnels.dial(NODE, Target::tcp(target.to_string())) {
            tokio::spawn(splice(ReadFirst::new(here), there));
        }
    }
}

async fn take_tunnels(websockets: TcpListener, tunnels: Tunnels) -> Result<()> {
    loop {
        let (stream, _) = websockets.accept().await?;
        stream.set_nodelay(true)?;
        let tunnels = tunnels.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let tunnels = tunnels.clone();
            async move {
                let response: Response<()> = k3s_tunnel::upgrade(&request, NODE)?;
                let dialect = Dialect::of(request.headers());
                tokio::spawn(async move {
                    let stream = TokioIo::new(upgrade::on(request).await?);
                    tunnels.serve(NODE, dialect, stream, &CancellationToken::new()).await?;
                    Ok::<_, anyhow::Error>(())
                });
                Ok::<_, anyhow::Error>(response.map(|()| Empty::<Bytes>::new()))
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
    }
}

async fn connect(server: &str, target: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (_rules, rules) = watch::channel(Rules { kubelet: target, reach: Reach::Kubelet });
    Tunnel::connect(stream, server).await?.serve(rules, &CancellationToken::new()).await?;
    Ok(())
}
