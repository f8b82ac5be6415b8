//! Running campaigns in tests.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use datastore_tests::{Campaign, Crash, Datastore};

/// The store of this workspace.
pub(crate) fn ours() -> Datastore {
    Datastore::Store(env!("CARGO_BIN_EXE_datastore-server").into())
}

/// A campaign with a random seed, or that of a run that is to be repeated.
pub(crate) async fn campaign(datastore: Datastore, crash: Crash) -> Result<Campaign> {
    let seed = match std::env::var("DATASTORE_TESTS_SEED") {
        Ok(seed) => seed.parse().context("DATASTORE_TESTS_SEED is no number")?,
        Err(_) => fastrand::u64(..),
    };
    println!("DATASTORE_TESTS_SEED={seed}");
    // Not on a file system in memory: that has no direct I/O.
    Campaign::new(datastore, crash, Path::new(env!("CARGO_TARGET_TMPDIR")), seed).await
}

/// Runs a campaign in which every promise has to be kept, and every mistake found that is put into its histories.
pub(crate) async fn keeps_its_promises(datastore: Datastore, crash: Crash, cycles: u64) -> Result<Campaign> {
    let mut campaign = campaign(datastore, crash).await?;
    if let Some(broken) = campaign.run(cycles).await? {
        bail!("{broken}");
    }
    println!("{:?}; {} mistakes put in and found", campaign.tally(), campaign.proof().found());
    assert_eq!(campaign.proof().missed(), [], "mistakes that were put in and not found");
    Ok(campaign)
}
