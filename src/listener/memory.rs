//! Memory that a burst took goes back to the system.
//!
//! glibc gives back by itself only what lies at the end of an arena, and something that lives on always lies behind what a burst took. So it
//! is asked to look through its arenas, when much of what took memory has ended; it is not asked at other times.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

/// For what was held to be freed, and between two times.
const PAUSE: Duration = Duration::from_secs(2);

/// Counts what takes memory while it lasts, and has that memory given back when much of it has ended. Clones share the count.
#[derive(Debug, Clone)]
pub struct Trimmer(Arc<Shared>);

/// Something that takes memory until this is dropped.
#[derive(Debug)]
pub struct Held(Trimmer);

#[derive(Debug)]
struct Shared {
    count: Mutex<Count>,
    /// Many have ended.
    ended: Notify,
}

#[derive(Debug)]
struct Count {
    now: usize,
    high_water: HighWater,
}

/// How many there were, at most, since memory was given back.
#[derive(Debug)]
struct HighWater {
    most: usize,
    many: usize,
}

impl Trimmer {
    /// So `many` have to end for it to be worth it.
    pub fn new(many: usize) -> Self {
        let count = Count { now: 0, high_water: HighWater { most: 0, many } };
        Self(Arc::new(Shared { count: Mutex::new(count), ended: Notify::new() }))
    }

    /// One more.
    pub fn hold(&self) -> Held {
        let mut count = self.count();
        count.now += 1;
        let now = count.now;
        count.high_water.is_past(now);
        drop(count);
        Held(self.clone())
    }

    /// How many there are.
    pub fn held(&self) -> usize {
        self.count().now
    }

    /// Gives memory back whenever many have ended.
    pub async fn run(&self) {
        loop {
            self.0.ended.notified().await;
            sleep(PAUSE).await;
            // It takes some milliseconds, and who allocates meanwhile may wait for it; it has no result of interest.
            let _ = spawn_blocking(trim).await;
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        // No method of it panics halfway.
        self.0.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut count = self.0.count();
        count.now -= 1;
        let now = count.now;
        if count.high_water.is_past(now) {
            drop(count);
            self.0.0.ended.notify_one();
        }
    }
}

impl HighWater {
    /// So many are there now. Whether so many have ended that memory is to be given back.
    fn is_past(&mut self, now: usize) -> bool {
        self.most = self.most.max(now);
        let past = self.most - now >= self.many && now <= self.most / 2;
        if past {
            self.most = now;
        }
        past
    }
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
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_burst_that_is_over_is_one_and_what_comes_and_goes_is_none() {
        let mut water = HighWater { most: 0, many: 100 };
        let mut past = |counts: &[usize]| Vec::from_iter(counts.iter().filter(|now| water.is_past(**now)).copied());
        assert_eq!(past(&[1, 50, 99, 0, 99, 0]), [0; 0]);
        assert_eq!(past(&[400, 300, 201, 200, 199, 101, 100, 99, 50, 10, 0]), [200, 100, 0]);
        assert_eq!(past(&[1000, 900, 1000, 600, 1000]), [0; 0], "half of them are still there");
    }

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let trimmer = Trimmer::new(2);
        let (first, second) = (trimmer.hold(), trimmer.hold());
        drop(first);
        assert_eq!(trimmer.held(), 1);
        assert!(trimmer.0.ended.notified().now_or_never().is_none());
        drop(second);
        assert_eq!(trimmer.held(), 0);
        assert!(trimmer.0.ended.notified().now_or_never().is_some());
    }

    #[test]
    fn what_is_free_can_be_given_back_at_any_time() {
        let kept = vec![1_u8; 1 << 20];
        trim();
        assert!(kept.iter().all(|byte| *byte == 1));
    }
}
