//! A histogram of atomics: whoever observes takes no lock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Counts values by upper bounds, each twice the one before.
#[derive(Debug)]
pub(crate) struct Histogram<const BOUNDS: usize> {
    /// The first bound, in the unit of observed values.
    first: u64,
    /// Observed values in one of the exposed unit.
    scale: f64,
    /// The last one is for what is above every bound.
    buckets: [AtomicU64; BOUNDS],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const BOUNDS: usize> Histogram<BOUNDS> {
    /// Bounds `first`, twice `first` and so on; `scale` observed units are exposed as one.
    pub(crate) fn new(first: u64, scale: f64) -> Self {
        let buckets = std::array::from_fn(|_| AtomicU64::new(0));
        Self { first, scale, buckets, above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, value: u64) {
        let bucket = value.div_ceil(self.first).max(1).next_power_of_two().trailing_zeros();
        self.buckets.get(bucket as usize).unwrap_or(&self.above).fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(crate) fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bound = |bucket: usize| (self.first << bucket) as f64 / self.scale;
        let mut buckets: Vec<_> =
            self.buckets.iter().enumerate().map(|(i, count)| (bound(i), count.load(Relaxed))).collect();
        buckets.push((f64::INFINITY, self.above.load(Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Relaxed) as f64 / self.scale;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_at_the_first_bound_that_holds_them() {
        let histogram = Histogram::<3>::new(10, 1.0);
        for value in [0, 1, 10, 11, 20, 21, 40, 41, 1 << 40] {
            histogram.observe(value);
        }
        let counts: Vec<_> = histogram.buckets.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!(counts, [3, 2, 2]);
        assert_eq!(histogram.above.load(Relaxed), 2);
    }
}
