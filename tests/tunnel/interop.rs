//! The room `tunnel` at either end, with remotedialer at the other where `REMOTEDIALER` names the program of
//! `nix/components/remotedialer`: what holds there has to hold here.

use std::{env, io::Read as _, net::TcpStream, thread};

use anyhow::Result;
use tunnel_tests::{Program, Progress, Tunnel, receive, receive_in_bursts, send};

/// A tunnel of each pair that has an end of ours, and of the original alone.
fn each(test: impl Fn(Tunnel) -> Result<()>) {
    let ours = Program { name: "k3s", path: env!("CARGO_BIN_EXE_tunnel-end").into() };
    let theirs = env::var_os("REMOTEDIALER").map(|path| Program { name: "remotedialer", path: path.into() });
    let mut pairs = vec![(&ours, &ours)];
    if let Some(theirs) = &theirs {
        pairs.extend([(theirs, theirs), (theirs, &ours), (&ours, theirs)]);
    }
    for (server, client) in pairs {
        let outcome = Tunnel::start(server, client).and_then(&test);
        outcome.unwrap_or_else(|error| panic!("server {}, client {}: {error:?}", server.name, client.name));
    }
}

/// Sends through one end while the other receives.
fn cross(from: &TcpStream, to: &TcpStream, length: u64) -> Result<()> {
    let progress = Progress::default();
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(from, length, &progress));
        let received = receive(to, length);
        received.and(sending.join().expect("sending does not panic"))
    })
}

#[test]
fn bytes_cross_in_both_directions_and_end() {
    each(|tunnel| {
        for length in [0, 1, 1000, 32 << 10, 5_000_001] {
            let (here, there) = tunnel.connect()?;
            cross(&here, &there, length)?;
            let (here, there) = tunnel.connect()?;
            cross(&there, &here, length)?;
        }
        Ok(())
    });
}

/// remotedialer has no half-closed connections: the end of either direction is the end of both.
#[test]
fn between_two_ends_of_ours_an_end_is_answered() {
    each(|tunnel| {
        if [&tunnel.server, &tunnel.client].iter().any(|end| end.program() != "k3s") {
            return Ok(());
        }
        for server_ends_first in [true, false] {
            let (here, there) = tunnel.connect()?;
            let (first, second) = if server_ends_first { (&here, &there) } else { (&there, &here) };
            cross(first, second, 5_000_001)?;
            cross(second, first, 5_000_001)?;
        }
        Ok(())
    });
}

#[test]
fn many_connections_share_a_tunnel() {
    each(|tunnel| {
        let connections: Vec<_> = (0..32).map(|_| tunnel.connect()).collect::<Result<_>>()?;
        thread::scope(|scope| {
            let crossing: Vec<_> = connections
                .iter()
                .enumerate()
                .map(|(number, (here, there))| {
                    let (from, to) = if number % 2 == 0 { (here, there) } else { (there, here) };
                    scope.spawn(move || cross(from, to, 2_000_003))
                })
                .collect();
            crossing.into_iter().try_for_each(|crossing| crossing.join().expect("crossing does not panic"))
        })
    });
}

#[test]
fn a_connection_that_the_node_cannot_make_ends() {
    each(|tunnel| {
        let (mut refused, _ends) = tunnel.connect_to_nothing()?;
        // An end or a reset: both say that there is nothing.
        assert!(!matches!(refused.read(&mut [0]), Ok(1..)));
        Ok(())
    });
}

/// Through each end: the length, what a reader takes at once, and what an end of ours may hold at most beside what it is.
const GIBIBYTE: u64 = 1 << 30;
const BURST: u64 = 64 << 20;
const BOUND: u64 = 24 << 20;

#[test]
fn a_gibibyte_passes_a_reader_that_keeps_stopping_in_bounded_memory() {
    each(|tunnel| {
        let ends = [&tunnel.server, &tunnel.client];
        let before = [ends[0].peak_memory()?, ends[1].peak_memory()?];
        for towards_node in [true, false] {
            let (here, there) = tunnel.connect()?;
            let (from, to) = if towards_node { (&here, &there) } else { (&there, &here) };
            let progress = Progress::default();
            thread::scope(|scope| {
                let sending = scope.spawn(|| send(from, GIBIBYTE, &progress));
                let received = receive_in_bursts(to, GIBIBYTE, BURST, &progress);
                received.and(sending.join().expect("sending does not panic"))
            })?;
        }
        for (end, before) in ends.into_iter().zip(before) {
            let grown = end.peak_memory()?.saturating_sub(before);
            eprintln!("{}: grew by {} KiB", end.program(), grown >> 10);
            if end.program() == "k3s" {
                assert!(grown < BOUND, "It grew by {grown} bytes");
            }
        }
        Ok(())
    });
}
