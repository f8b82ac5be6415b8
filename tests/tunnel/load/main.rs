//! The program tunnel-load sends one load through a new tunnel and prints what came of it as JSON.
//!
//! `tunnel-load SERVER CLIENT LOAD`: the programs of both ends, and `from-node`, `to-node`, `eight-from-node`, `requests-1` or `requests-32`.

use std::{
    env,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tunnel_tests::{Outcome, Program, Progress, Tunnel, receive, send};

/// Bytes of a bulk load.
const BULK: u64 = 1 << 30;
/// A request and its answer, bytes.
const REQUEST: usize = 100;
const ANSWER: usize = 1000;
/// Requests of a load.
const REQUESTS: usize = 32_000;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [server, client, load] = &words[..] else { bail!("usage: tunnel-load SERVER CLIENT LOAD") };
    let [server, client] = [server, client].map(|path| Program { name: "end", path: path.into() });
    let tunnel = Tunnel::start(&server, &client)?;
    let cpu = || Ok::<_, anyhow::Error>(tunnel.server.cpu()? + tunnel.client.cpu()?);
    let (before, started) = (cpu()?, Instant::now());
    let (amount, waits) = match load.as_str() {
        "from-node" => bulk(&tunnel, 1, false)?,
        "to-node" => bulk(&tunnel, 1, true)?,
        "eight-from-node" => bulk(&tunnel, 8, false)?,
        "requests-1" => requests(&tunnel, 1)?,
        "requests-32" => requests(&tunnel, 32)?,
        _ => bail!("There is no load {load}"),
    };
    let outcome = Outcome::new(amount, started.elapsed(), cpu()? - before, waits);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Sends over that many connections at once. Returns the bytes sent.
fn bulk(tunnel: &Tunnel, connections: u64, towards_node: bool) -> Result<(u64, Vec<Duration>)> {
    let pairs: Vec<_> = (0..connections).map(|_| tunnel.connect()).collect::<Result<_>>()?;
    let length = BULK / connections;
    thread::scope(|scope| {
        let working: Vec<_> = pairs
            .iter()
            .flat_map(|(here, there)| {
                let (from, to) = if towards_node { (here, there) } else { (there, here) };
                [
                    scope.spawn(move || send(from, length, &Progress::default())),
                    scope.spawn(move || receive(to, length)),
                ]
            })
            .collect();
        working.into_iter().try_for_each(|work| work.join().expect("it returns errors"))
    })?;
    Ok((BULK, Vec::new()))
}

/// Asks over that many connections at once. Returns how many were asked, and how long each answer took.
fn requests(tunnel: &Tunnel, connections: usize) -> Result<(u64, Vec<Duration>)> {
    let pairs: Vec<_> = (0..connections).map(|_| tunnel.connect()).collect::<Result<_>>()?;
    let count = REQUESTS / connections;
    let waits = thread::scope(|scope| {
        let asking: Vec<_> = pairs
            .iter()
            .map(|(here, there)| {
                scope.spawn(move || answer(there, count));
                scope.spawn(move || ask(here, count))
            })
            .collect();
        asking.into_iter().map(|asking| asking.join().expect("it returns errors")).collect::<Result<Vec<_>>>()
    })?;
    let waits = waits.concat();
    Ok((waits.len() as u64, waits))
}

fn ask(mut stream: &TcpStream, count: usize) -> Result<Vec<Duration>> {
    let mut answer = [0; ANSWER];
    let ask = |_| {
        let asked = Instant::now();
        stream.write_all(&[1; REQUEST])?;
        stream.read_exact(&mut answer)?;
        Ok(asked.elapsed())
    };
    (0..count).map(ask).collect()
}

fn answer(mut stream: &TcpStream, count: usize) -> Result<()> {
    for _ in 0..count {
        stream.read_exact(&mut [0; REQUEST])?;
        stream.write_all(&[2; ANSWER])?;
    }
    Ok(())
}
