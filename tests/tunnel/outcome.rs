//! What came of a load.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a load took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Bytes or requests.
    pub amount: u64,
    /// How long all of it took.
    pub seconds: f64,
    /// Processor time of both ends together.
    pub cpu_seconds: f64,
    /// Half of the answers took no longer, milliseconds; 0 where nothing was asked.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
}

impl Outcome {
    /// Of a load that took `elapsed`, and whose answers took `waits`.
    pub fn new(amount: u64, elapsed: Duration, cpu: Duration, mut waits: Vec<Duration>) -> Self {
        waits.sort_unstable();
        let after = |hundredths: usize| {
            let index = waits.len() * hundredths / 100;
            waits.get(index.min(waits.len().saturating_sub(1))).map_or(0.0, |wait| wait.as_secs_f64() * 1000.0)
        };
        Self {
            amount,
            seconds: elapsed.as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
            p50_ms: after(50),
            p99_ms: after(99),
        }
    }
}
