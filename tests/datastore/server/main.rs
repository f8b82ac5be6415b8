//! `datastore-server DATABASE DISK`: serves a database on a loopback port until it is told to stop.
//!
//! It prints `serving http://ADDRESS` once that is so. When the store has stopped by itself it says why and stays until it is killed, since
//! the file system that it is on may stay only as long. DISK is `honest`, `forgetful` or as in `write-half:17`.

use std::{env::args, process::ExitCode};

use anyhow::{Context as _, Result};
use datastore_tests::vfs;
use k3s_datastore::{Datastore, Options};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<()> {
    let (path, disk) = args().nth(1).zip(args().nth(2)).context("usage: datastore-server DATABASE DISK")?;
    let vfs = vfs::register(disk.parse()?)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let datastore = Datastore::open(Options { vfs, ..Options::new(path) }).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("serving http://{}", listener.local_addr()?);
    let shutdown = CancellationToken::new();
    let serving = datastore.serve(listener, shutdown.clone());
    tokio::pin!(serving);
    let failure = tokio::select! {
        served = &mut serving => return Ok(served?),
        failure = datastore.stopped() => Some(failure),
        _ = terminate.recv() => None,
    };
    shutdown.cancel();
    serving.await?;
    let closed = datastore.close().await;
    match failure {
        Some(failure) => {
            println!("{failure}");
            std::future::pending().await
        }
        None => Ok(closed?),
    }
}
