//! What the store counts about itself, in OpenMetrics' form; `docs/datastore.md` lists it.
//!
//! Counting is adding to atomics. Sizes, watchers and leases are looked up when somebody asks, so that an idle store has
//! nothing to do for its metrics.

mod collector;
mod histogram;
mod page;

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub(crate) use collector::StoreCollector;
pub(crate) use page::serve;

use histogram::Histogram;

/// The calls that are counted by name, as gRPC's paths without `etcdserverpb.`; the last row is for all others.
const METHODS: [&str; 20] = [
    "KV/Range",
    "KV/Txn",
    "KV/Put",
    "KV/DeleteRange",
    "KV/Compact",
    "Watch/Watch",
    "Lease/LeaseGrant",
    "Lease/LeaseKeepAlive",
    "Lease/LeaseRevoke",
    "Lease/LeaseTimeToLive",
    "Lease/LeaseLeases",
    "Maintenance/Status",
    "Maintenance/Alarm",
    "Maintenance/Defragment",
    "Maintenance/Hash",
    "Maintenance/HashKV",
    "Cluster/MemberList",
    "Auth/AuthStatus",
    "Auth/Authenticate",
    "other",
];
/// gRPC's codes by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const NANOSECONDS: f64 = 1e9;
/// The first bound of times: 62.5 µs; the last is 2 s.
const SHORTEST: u64 = 62_500;

/// Counters of one store since it was opened.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: [[AtomicU64; CODES.len()]; METHODS.len()],
    commit_rows: Histogram<10>,
    batch_time: Histogram<16>,
    commit_time: Histogram<16>,
    compactions: AtomicU64,
    compacted_rows: AtomicU64,
    compaction_nanoseconds: AtomicU64,
    /// The thread that writes, by the kernel's number; zero before it runs.
    writer: AtomicI32,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Default::default(),
            commit_rows: Histogram::new(1, 1.0),
            batch_time: Histogram::new(SHORTEST, NANOSECONDS),
            commit_time: Histogram::new(SHORTEST, NANOSECONDS),
            compactions: AtomicU64::new(0),
            compacted_rows: AtomicU64::new(0),
            compaction_nanoseconds: AtomicU64::new(0),
            writer: AtomicI32::new(0),
        }
    }
}

impl Metrics {
    /// A call was answered, or its stream begun, with a gRPC status.
    pub(crate) fn answered(&self, path: &str, code: tonic::Code) {
        let name = path.strip_prefix("/etcdserverpb.").unwrap_or_default();
        let method = METHODS.iter().position(|method| *method == name).unwrap_or(METHODS.len() - 1);
        self.requests[method][code as usize].fetch_add(1, Relaxed);
    }

    /// A batch of transactions was decided, written and is durable.
    pub(crate) fn batch_done(&self, took: Duration) {
        self.batch_time.observe(nanoseconds(took));
    }

    /// A commit of so many rows is durable. `took` is the commit alone: writing the log and its `fsync`.
    pub(crate) fn committed(&self, rows: usize, took: Duration) {
        if rows > 0 {
            self.commit_rows.observe(rows as u64);
        }
        self.commit_time.observe(nanoseconds(took));
    }

    /// A compaction has begun.
    pub(crate) fn compaction_begun(&self) {
        self.compactions.fetch_add(1, Relaxed);
    }

    /// A step of a compaction has deleted rows.
    pub(crate) fn compaction_step(&self, rows: usize, took: Duration) {
        self.compacted_rows.fetch_add(rows as u64, Relaxed);
        self.compaction_nanoseconds.fetch_add(nanoseconds(took), Relaxed);
    }

    /// The calling thread is the one that writes.
    pub(crate) fn writer_is_here(&self) {
        self.writer.store(nix::unistd::gettid().as_raw(), Relaxed);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
