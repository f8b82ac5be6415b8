//! Recently written and read values, bounded by bytes.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::revision::Revision;

/// What an entry costs beside its value.
const OVERHEAD: usize = 96;
/// Forgotten values whose places are not worth a sweep.
const FORGOTTEN: usize = 256;

/// A clock cache: the oldest value goes unless it was used since it was last looked at. Values never change, since a
/// revision names one value for ever.
#[derive(Debug)]
pub(crate) struct ValueCache {
    values: HashMap<Revision, Slot>,
    order: VecDeque<Revision>,
    bytes: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Slot {
    value: Bytes,
    used: bool,
}

impl ValueCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), bytes: 0, capacity }
    }

    pub(crate) fn get(&mut self, revision: Revision) -> Option<Bytes> {
        let slot = self.values.get_mut(&revision)?;
        slot.used = true;
        Some(slot.value.clone())
    }

    /// Adds a value; one that would fill most of the cache alone is not kept.
    pub(crate) fn insert(&mut self, revision: Revision, value: Bytes) {
        let cost = value.len() + OVERHEAD;
        if cost > self.capacity / 4 || self.values.contains_key(&revision) {
            return;
        }
        self.bytes += cost;
        self.values.insert(revision, Slot { value, used: false });
        self.order.push_back(revision);
        while self.bytes > self.capacity {
            self.evict_one();
        }
    }

    /// Drops a value that nobody will ask for again.
    pub(crate) fn forget(&mut self, revision: Revision) {
        if let Some(slot) = self.values.remove(&revision) {
            self.bytes -= slot.value.len() + OVERHEAD;
            // The places of forgotten values in the order are given up when there are more of them than of others.
            if self.order.len() > 2 * self.values.len() + FORGOTTEN {
                self.order.retain(|revision| self.values.contains_key(revision));
            }
        }
    }

    fn evict_one(&mut self) {
        let Some(oldest) = self.order.pop_front() else { return };
        match self.values.get_mut(&oldest) {
            Some(slot) if slot.used => {
                slot.used = false;
                self.order.push_back(oldest);
            }
            _ => {
                if let Some(slot) = self.values.remove(&oldest) {
                    self.bytes -= slot.value.len() + OVERHEAD;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_values_stay_and_the_bound_holds() {
        let mut cache = ValueCache::new(10 * (100 + OVERHEAD));
        for revision in 0..10 {
            cache.insert(Revision(revision), Bytes::from(vec![0; 100]));
        }
        assert!(cache.get(Revision(0)).is_some());
        for revision in 10..15 {
            cache.insert(Revision(revision), Bytes::from(vec![0; 100]));
        }
        assert!(cache.get(Revision(0)).is_some());
        assert!(cache.get(Revision(1)).is_none());
        assert!(cache.bytes <= cache.capacity);
        cache.insert(Revision(99), Bytes::from(vec![0; 1000]));
        assert!(cache.get(Revision(99)).is_none());
    }

    #[test]
    fn forgotten_values_leave_nothing_behind() {
        let mut cache = ValueCache::new(1 << 20);
        for revision in 0..10_000 {
            cache.insert(Revision(revision), Bytes::from_static(b"value"));
            cache.forget(Revision(revision - 1));
        }
        assert!(cache.get(Revision(9_999)).is_some());
        assert_eq!(cache.bytes, 5 + OVERHEAD);
        assert!(cache.order.len() <= FORGOTTEN + 2);
    }
}
