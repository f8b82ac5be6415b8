//! Values that tell how old they are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Where values come from: each bears the moment at which it was made.
#[derive(Debug, Clone)]
pub struct Values {
    filler: Vec<u8>,
    epoch: Instant,
}

impl Values {
    /// Values of so many bytes.
    pub fn new(bytes: usize) -> Self {
        // Bytes that do not compress, the same in every run: xorshift64.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        Self { filler: (0..bytes.max(size_of::<u64>())).map(|_| next()).collect(), epoch: Instant::now() }
    }

    /// Short ones, as of a node's heartbeat.
    pub fn short(&self) -> Self {
        Self { filler: self.filler[..self.filler.len().min(300)].to_vec(), epoch: self.epoch }
    }

    /// A value made now.
    pub fn make(&self) -> Vec<u8> {
        self.made_at(Instant::now())
    }

    /// A value whose age counts from a moment, such as the one at which it was due.
    pub fn made_at(&self, moment: Instant) -> Vec<u8> {
        let mut value = self.filler.clone();
        let made = u64::try_from(moment.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX);
        value[..size_of::<u64>()].copy_from_slice(&made.to_le_bytes());
        value
    }

    /// How long ago a value was made.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn age(&self, value: &[u8]) -> Result<Duration> {
        let stamp = value.first_chunk().context("a value lacks the moment at which it was made")?;
        Ok(self.epoch.elapsed().saturating_sub(Duration::from_nanos(u64::from_le_bytes(*stamp))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_its_age() {
        let values = Values::new(100);
        let value = values.make();
        assert_eq!(value.len(), 100);
        assert!(values.age(&value).unwrap() <= values.epoch.elapsed());
        assert!(values.age(&[]).is_err());
    }
}
