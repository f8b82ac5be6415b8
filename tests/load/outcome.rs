//! What came of a phase.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

/// What one client did in a phase.
#[derive(Debug, Default)]
pub struct Log {
    /// How long each operation took.
    pub latencies: Vec<Duration>,
    /// How many operations of them changed something.
    pub writes: usize,
    /// How often one had to be repeated, since there were too many.
    pub refused: usize,
}

/// The figures of a phase: one line of the output.
#[derive(Debug, Serialize, PartialEq)]
pub struct Outcome {
    operations: usize,
    /// Changes that the store acknowledged.
    writes: usize,
    /// How often one had to be repeated.
    refused: usize,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Log {
    /// Does an operation that reads.
    ///
    /// # Errors
    /// That of the operation, which is counted.
    pub async fn read<T>(&mut self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let answer = operation.await?;
        self.latencies.push(started.elapsed());
        Ok(answer)
    }

    /// Does an operation that changes something.
    ///
    /// # Errors
    /// That of the operation, which is counted.
    pub async fn write<T>(&mut self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = self.read(operation).await?;
        self.writes += 1;
        Ok(answer)
    }
}

impl Outcome {
    /// Of all clients' logs, which were written at the same time.
    pub fn new(logs: impl IntoIterator<Item = Log>, took: Duration) -> Self {
        let (mut latencies, mut writes, mut refused) = (Vec::new(), 0, 0);
        for log in logs {
            latencies.extend(log.latencies);
            writes += log.writes;
            refused += log.refused;
        }
        latencies.sort_unstable();
        Self {
            operations: latencies.len(),
            writes,
            refused,
            seconds: took.as_secs_f64(),
            p50_ms: percentile(&latencies, 50),
            p99_ms: percentile(&latencies, 99),
        }
    }
}

/// Of sorted latencies, in milliseconds: so many percent of them were not longer.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64) * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_put_together() {
        let log = |latencies: &[u64], writes| Log {
            latencies: latencies.iter().copied().map(Duration::from_millis).collect(),
            writes,
            refused: 1,
        };
        let outcome = Outcome::new([log(&[3, 9], 1), log(&[1, 2], 2)], Duration::from_secs(2));
        assert_eq!(outcome, Outcome { operations: 4, writes: 3, refused: 2, seconds: 2.0, p50_ms: 2.0, p99_ms: 9.0 });
        assert_eq!(Outcome::new([], Duration::ZERO).p99_ms, 0.0);
    }
}
