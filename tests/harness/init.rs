//! Process 1 of a machine: builds the root, says that it is ready, then only reaps.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process, thread,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::sethostname,
};

use crate::{machine::Blueprint, root};

/// The line on standard output that says that commands can run.
pub(crate) const READY: &str = "ready\n";

/// Never returns but with an error: it ends when standard input does.
pub(crate) fn run(blueprint: &Blueprint) -> Result<u8> {
    // Before any thread is made, so that all have the mask: SIGCHLD is waited for, not delivered.
    let children = SigSet::from(Signal::SIGCHLD);
    children.thread_block().context("cannot block SIGCHLD")?;
    sethostname(&blueprint.host_name).context("cannot set the host name")?;
    root::build(blueprint)?;
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        // The kernel kills every process of the machine with us.
        process::exit(0)
    });
    if let Some(address) = blueprint.mirror {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        thread::spawn(move || listener.incoming().flatten().for_each(mirror));
    }
    io::stdout().write_all(READY.as_bytes()).context("cannot tell that the machine is up")?;
    loop {
        reap();
        children.wait().context("cannot wait for SIGCHLD")?;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "process 1 owns every orphan of its machine and starts no child of its own"
)]
fn reap() {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)) {}
}

/// Answers one HTTP request with the address that it came from. What the client does wrong is its own loss.
fn mirror(stream: TcpStream) {
    let _ = answer(&stream);
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    for line in BufReader::new(stream.take(64 << 10)).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("{}\n", SocketAddr::ip(&peer));
    write!(&*stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
