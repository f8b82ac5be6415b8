//! What a datastore promised holds after its disk has lost its power.

use anyhow::{Result, bail};
use datastore_tests::{Crash, Datastore};

use crate::run::{campaign, keeps_its_promises, ours};

/// `cargo xtask bench crash` cuts more often.
const CUTS: u64 = 5;
/// A disk that forgets may by chance have forgotten nothing that matters; so often it has not.
const ATTEMPTS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_its_promises_through_power_cuts() -> Result<()> {
    keeps_its_promises(Datastore::etcd()?, Crash::PowerCut { forgetful: false }, CUTS).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_keeps_its_promises_through_power_cuts() -> Result<()> {
    keeps_its_promises(ours(), Crash::PowerCut { forgetful: false }, CUTS).await?;
    Ok(())
}

/// The judges see that a store loses writes which does not sync.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_sync_is_caught() -> Result<()> {
    let mut campaign = campaign(ours(), Crash::PowerCut { forgetful: true }).await?;
    for cut in 1..=ATTEMPTS {
        if let Some(violation) = campaign.cycle().await?.violations.first() {
            println!("Caught at cut {cut}: {violation}");
            return Ok(());
        }
    }
    bail!("{ATTEMPTS} power cuts without a sync, and nothing was seen")
}
