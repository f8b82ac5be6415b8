//! Memory that a burst of connections took goes back to the system.
//!
//! glibc gives back by itself only what lies at the end of an arena, and something that lives on always lies behind what a burst took. So it
//! is asked to look through its arenas, when many connections have ended; it is not asked at other times.

use std::time::Duration;

use tokio::{task::spawn_blocking, time::sleep};

/// Connections that have to end for it to be worth it.
const MANY: usize = 100;
/// For what they held to be freed, and between two times.
const PAUSE: Duration = Duration::from_secs(2);

/// How many connections there were, at most, since memory was given back.
#[derive(Debug, Default)]
pub(crate) struct HighWater(usize);

impl HighWater {
    /// So many are there now. Whether so many have ended that memory is to be given back.
    pub(crate) fn is_past(&mut self, now: usize) -> bool {
        self.0 = self.0.max(now);
        let past = self.0 - now >= MANY && now <= self.0 / 2;
        if past {
            self.0 = now;
        }
        past
    }
}

/// Gives back what is free, after a pause.
pub(crate) async fn give_back() {
    sleep(PAUSE).await;
    // It takes some milliseconds, and who allocates meanwhile may wait for it; it has no result of interest.
    let _ = spawn_blocking(trim).await;
}

#[cfg(target_env = "gnu")]
fn trim() {
    #[expect(
        unsafe_code,
        reason = "glibc's function has no safe form: it takes a number, touches no memory that is in use and locks by itself"
    )]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Other allocators give back what is free by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_is_over_is_one_and_what_comes_and_goes_is_none() {
        let mut water = HighWater::default();
        let mut past = |counts: &[usize]| Vec::from_iter(counts.iter().filter(|now| water.is_past(**now)).copied());
        assert_eq!(past(&[1, 50, 99, 0, 99, 0]), [0; 0]);
        assert_eq!(past(&[400, 300, 201, 200, 199, 101, 100, 99, 50, 10, 0]), [200, 100, 0]);
        assert_eq!(past(&[1000, 900, 1000, 600, 1000]), [0; 0], "half of them are still there");
    }

    #[test]
    fn what_is_free_can_be_given_back_at_any_time() {
        let kept = vec![1_u8; 1 << 20];
        trim();
        assert!(kept.iter().all(|byte| *byte == 1));
    }
}
