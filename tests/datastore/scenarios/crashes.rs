//! What a datastore promised holds after `kill -9` in the midst of traffic, and after its disk has failed.

use anyhow::Result;
use datastore_tests::{Crash, Datastore, Fault};

use crate::run::{keeps_its_promises, ours};

/// `cargo xtask bench crash` runs more.
const CYCLES: u64 = 10;

/// The judges on a datastore that is known to be good.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_its_promises_through_kills() -> Result<()> {
    let campaign = keeps_its_promises(Datastore::etcd()?, Crash::Kill, CYCLES).await?;
    assert_eq!(campaign.proof().untried(), [], "mistakes that no history had a place for");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_keeps_its_promises_through_kills_and_failing_disks() -> Result<()> {
    let campaign = keeps_its_promises(ours(), Crash::Kill, CYCLES).await?;
    // It writes one key a revision: none can be torn.
    assert_eq!(campaign.proof().untried(), [Fault::TornRevision], "mistakes that no history had a place for");
    Ok(())
}
