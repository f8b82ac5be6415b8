//! All metrics of a store, when somebody asks.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric as _, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::histogram::Histogram;
use super::{CODES, METHODS, Metrics, NANOSECONDS};
use crate::store::Store;

/// A store's metrics; none once the store is gone.
pub(crate) struct StoreCollector(pub(crate) Weak<Store>);

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(store) = self.0.upgrade() else { return Ok(()) };
        counted(&store.metrics, &mut encoder)?;
        looked_up(&store, &mut encoder)
    }
}

/// What was counted as it happened.
fn counted(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    requests(metrics, encoder)?;
    histogram(encoder, "commit_rows", "Rows in a commit", &metrics.commit_rows)?;
    let batch = "Seconds from taking a batch of transactions until it is durable";
    histogram(encoder, "batch_seconds", batch, &metrics.batch_time)?;
    let commit = "Seconds of a commit in SQLite: writing its log, and fsync";
    histogram(encoder, "commit_seconds", commit, &metrics.commit_time)?;
    counter(encoder, "compactions", "Compactions that were begun", metrics.compactions.load(Relaxed))?;
    counter(encoder, "compacted_rows", "Rows that compactions deleted", metrics.compacted_rows.load(Relaxed))?;
    let seconds = metrics.compaction_nanoseconds.load(Relaxed) as f64 / NANOSECONDS;
    counter(encoder, "compaction_seconds", "Seconds for which compactions kept the writer busy", seconds)
}

/// What is true at this moment.
fn looked_up(store: &Store, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let mut wal = store.path.clone().into_os_string();
    wal.push("-wal");
    gauge(encoder, "file_bytes", "Size of the database file", size(&store.path))?;
    gauge(encoder, "wal_bytes", "Size of the write-ahead log", size(Path::new(&wal)))?;
    if let Some(bytes) = written_bytes(store.metrics.writer.load(Relaxed)) {
        let help = "Bytes that the writer caused to be sent to storage, in whole pages, as the kernel counts them";
        counter(encoder, "written_bytes", help, bytes)?;
    }
    gauge(encoder, "no_space", "1 while writes are refused for want of room", u64::from(store.has_no_space()))?;

    let (revision, compacted) = {
        let state = store.state();
        (state.published, state.compacted)
    };
    gauge(encoder, "revision", "The newest revision", revision.0)?;
    gauge(encoder, "compacted_revision", "Reads before this revision are refused", compacted.0)?;

    let lag = store.hub().lag();
    gauge(encoder, "watchers", "Watchers", lag.watchers)?;
    gauge(encoder, "watchers_behind", "Watchers that have events to come", lag.behind)?;
    gauge(encoder, "watch_lag_revisions", "Revisions that the slowest watcher is behind", lag.revisions)?;
    gauge(encoder, "leases", "Leases that are granted", store.lessor().len())
}

fn requests(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Calls that were answered, or whose stream has begun";
    let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (method, codes) in METHODS.iter().zip(&metrics.requests) {
        for (code, count) in CODES.iter().zip(codes) {
            let count = count.load(Relaxed);
            if count > 0 {
                let labels = [("method", *method), ("code", *code)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn histogram<const BOUNDS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    histogram: &Histogram<BOUNDS>,
) -> fmt::Result {
    histogram.encode(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// What a thread of ours has written; `None` where the kernel does not count it.
fn written_bytes(thread: i32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/self/task/{thread}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok())
}
