//! What a datastore promised holds after `kill -9` in the midst of traffic, and after its disk has failed.

use std::path::Path;

use anyhow::Result;
use datastore_tests::{
    Crash, Datastore, Fault, Place, Server,
    vfs::{Disk, Failure},
};
use etcd_client::{CompactionOptions, GetOptions, ResponseHeader};
use tempfile::TempDir;

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

/// The store once answered that there was no room for a compaction, when it had only found none to delete the rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_is_refused_has_not_happened() -> Result<()> {
    let mut has_failed = true;
    for nth in 1.. {
        if !has_failed {
            break;
        }
        let scratch = TempDir::with_prefix_in("datastore-", Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let disk = Disk::Failing { failure: Failure::WriteFull, nth };
        let Ok(server) = Server::start(&ours(), &Place::folder(scratch.path())?, disk).await else { continue };
        let mut client = server.connect().await?;
        for value in ["1", "2", "3"] {
            // One of them may find no room.
            let _ = client.put("/a", value, None).await;
        }
        let newest = client.get("/a", None).await?.header().map_or(0, ResponseHeader::revision);
        let compacted = client.compact(newest, Some(CompactionOptions::new().with_physical())).await;
        let past = client.get("/a", Some(GetOptions::new().with_revision(newest - 1))).await;
        if compacted.is_err_and(|refusal| refusal.to_string().contains("space exceeded")) {
            assert!(past.is_ok(), "write {nth} failed, the compaction was refused, and {past:?}");
        }
        has_failed = server.kill().await?;
    }
    Ok(())
}
