//! Which revisions each key has: the whole log without its values, in memory.
//!
//! The index answers every question that needs no value, and says by revision where a value lies.
//! It holds what the table holds: superseded revisions and tombstones stay until compaction deletes their rows.

use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;

use crate::key::{Key, KeyRange};
use crate::revision::{LeaseId, Revision};

/// One row of the log without name and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) modified: Revision,
    /// Revision of the create that this life of the key began with; zero on tombstones.
    pub(crate) created: Revision,
    /// Changes in this life of the key, from 1; zero on tombstones.
    pub(crate) version: i64,
    pub(crate) lease: LeaseId,
}

impl Entry {
    pub(crate) const fn tombstone(modified: Revision) -> Self {
        Self { modified, created: Revision::ZERO, version: 0, lease: LeaseId::NONE }
    }

    pub(crate) const fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// A row with its key and the row before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
    /// What the key was before; `None` if it did not exist, or if compaction has removed it.
    pub(crate) previous: Option<Entry>,
}

/// Rows that a compaction may delete, as far as it has looked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Superseded {
    pub(crate) revisions: Vec<Revision>,
    /// The key to look at next; `None` when this was the last.
    pub(crate) resume: Option<Key>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Key, Vec<Entry>>,
}

impl Index {
    /// Adds the newest row of a key; its revision is above all others of that key.
    pub(crate) fn push(&mut self, key: &Key, entry: Entry) {
        match self.keys.get_mut(key) {
            Some(history) => history.push(entry),
            None => {
                self.keys.insert(key.clone(), vec![entry]);
            }
        }
    }

    /// Takes back the rows of a key above `published`: their transaction failed.
    pub(crate) fn rollback(&mut self, key: &Key, published: Revision) {
        if let Some(history) = self.keys.get_mut(key) {
            history.retain(|entry| entry.modified <= published);
            if history.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    /// The newest row of a key, which may be a tombstone.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<Entry> {
        self.keys.get(key)?.last().copied()
    }

    /// The revision of the row before the newest one of a key.
    pub(crate) fn before_newest(&self, key: &[u8]) -> Option<Revision> {
        let history = self.keys.get(key)?;
        Some(history[history.len().checked_sub(2)?].modified)
    }

    /// The key as it was at a revision.
    #[cfg(test)]
    pub(crate) fn at(&self, key: &[u8], revision: Revision) -> Option<Entry> {
        live_at(self.keys.get(key)?, revision)
    }

    /// The keys of a range as they were at a revision, in key order.
    pub(crate) fn range(&self, range: &KeyRange, revision: Revision) -> impl Iterator<Item = (&Key, Entry)> {
        self.histories(range).filter_map(move |(key, history)| Some((key, live_at(history, revision)?)))
    }

    /// The oldest `limit` changes in a range from `from` to `to` inclusive, in revision order.
    pub(crate) fn changes(&self, range: &KeyRange, from: Revision, to: Revision, limit: usize) -> Vec<Change> {
        // A heap of the oldest so far: memory stays at `limit` however long the history is.
        let mut oldest: BinaryHeap<(Revision, &Key, usize)> = BinaryHeap::new();
        for (key, history) in self.histories(range) {
            let first = history.partition_point(|entry| entry.modified < from);
            for (position, entry) in history.iter().enumerate().skip(first).take_while(|(_, e)| e.modified <= to) {
                if oldest.len() == limit {
                    if oldest.peek().is_some_and(|(newest, ..)| entry.modified > *newest) {
                        break;
                    }
                    oldest.pop();
                }
                oldest.push((entry.modified, key, position));
            }
        }
        oldest
            .into_sorted_vec()
            .into_iter()
            .filter_map(|(_, key, position)| {
                let history = self.keys.get(key)?;
                let previous = position.checked_sub(1).map(|p| history[p]).filter(|entry| !entry.is_tombstone());
                Some(Change { key: key.clone(), entry: history[position], previous })
            })
            .collect()
    }

    /// Finds rows that no read at or after `compacted` can see, among `limit` keys from `resume` on. They are to be
    /// deleted in the order of their revisions: a tombstone that went before an older row of its key would let the next
    /// start find the key alive again.
    ///
    /// A tombstone stays while its revision is `compacted` itself (a watch may still start there) or `newest_row`, so
    /// that the largest id of the table is never deleted.
    pub(crate) fn superseded(
        &self,
        resume: Option<&Key>,
        compacted: Revision,
        newest_row: Revision,
        limit: usize,
    ) -> Superseded {
        let from = resume.map_or(Bound::Unbounded, |key| Bound::Included(key.as_ref()));
        let mut keys = self.keys.range::<[u8], _>((from, Bound::Unbounded));
        let mut revisions = Vec::new();
        for (_, history) in keys.by_ref().take(limit) {
            let old = history.partition_point(|entry| entry.modified <= compacted);
            let Some(last) = old.checked_sub(1) else { continue };
            let removable = history[last].is_tombstone()
                && history[last].modified < compacted
                && history[last].modified < newest_row;
            let gone = if removable { old } else { last };
            revisions.extend(history[..gone].iter().map(|entry| entry.modified));
        }
        Superseded { revisions, resume: keys.next().map(|(key, _)| key.clone()) }
    }

    /// Forgets a key's rows up to a revision: they are deleted.
    pub(crate) fn remove(&mut self, key: &[u8], through: Revision) {
        let Some(history) = self.keys.get_mut(key) else { return };
        let gone = history.partition_point(|entry| entry.modified <= through);
        history.drain(..gone);
        if history.is_empty() {
            self.keys.remove(key);
        } else {
            history.shrink_to(history.len() + 1);
        }
    }

    /// Every live key at a revision.
    pub(crate) fn live(&self, revision: Revision) -> impl Iterator<Item = (&Key, Entry)> {
        self.keys.iter().filter_map(move |(key, history)| Some((key, live_at(history, revision)?)))
    }

    fn histories(&self, range: &KeyRange) -> impl Iterator<Item = (&Key, &Vec<Entry>)> {
        range.bounds().into_iter().flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
    }
}

fn live_at(history: &[Entry], revision: Revision) -> Option<Entry> {
    // The newest row is nearly always the answer.
    let entry = match history.last() {
        Some(last) if last.modified <= revision => last,
        _ => &history[history.partition_point(|entry| entry.modified <= revision).checked_sub(1)?],
    };
    (!entry.is_tombstone()).then_some(*entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::copy_from_slice(name.as_bytes())
    }

    fn put(modified: i64, created: i64, version: i64) -> Entry {
        Entry { modified: Revision(modified), created: Revision(created), version, lease: LeaseId::NONE }
    }

    /// `a`: created 2, updated 4, deleted 5, created 7. `b`: created 3, deleted 6.
    fn sample() -> Index {
        let mut index = Index::default();
        let (a, b) = (key("a"), key("b"));
        index.push(&a, put(2, 2, 1));
        index.push(&b, put(3, 3, 1));
        index.push(&a, put(4, 2, 2));
        index.push(&a, Entry::tombstone(Revision(5)));
        index.push(&b, Entry::tombstone(Revision(6)));
        index.push(&a, put(7, 7, 1));
        index
    }

    fn all() -> KeyRange {
        KeyRange::From(key("\0"))
    }

    #[test]
    fn a_key_has_its_state_at_each_revision() {
        let index = sample();
        let versions: Vec<_> = (1..=7).map(|r| index.at(b"a", Revision(r)).map(|e| e.version)).collect();
        assert_eq!(versions, [None, Some(1), Some(1), Some(2), None, None, Some(1)]);
        let at_4: Vec<_> = index.range(&all(), Revision(4)).map(|(k, e)| (k.clone(), e.modified.0)).collect();
        assert_eq!(at_4, [(key("a"), 4), (key("b"), 3)]);
    }

    #[test]
    fn changes_come_in_revision_order_with_what_was_before() {
        let index = sample();
        let changes = index.changes(&all(), Revision(3), Revision(7), 3);
        let seen: Vec<_> = changes.iter().map(|c| (c.entry.modified.0, c.previous.map(|p| p.modified.0))).collect();
        assert_eq!(seen, [(3, None), (4, Some(2)), (5, Some(4))]);
        let rest = index.changes(&all(), Revision(6), Revision(7), 3);
        let seen: Vec<_> = rest.iter().map(|c| (c.entry.modified.0, c.previous.map(|p| p.modified.0))).collect();
        assert_eq!(seen, [(6, Some(3)), (7, None)]);
    }

    #[test]
    fn compaction_takes_tombstones_with_their_whole_past() {
        let mut index = sample();
        let found = index.superseded(None, Revision(6), Revision(7), 10);
        // The tombstone at 6 stays: a watch may start at the compacted revision.
        assert_eq!(found.revisions, [2, 4, 5, 3].map(Revision));
        for (key, revision) in [(b"a", 2), (b"b", 3), (b"a", 4), (b"a", 5)] {
            index.remove(key, Revision(revision));
        }
        assert_eq!(index.newest(b"b"), Some(Entry::tombstone(Revision(6))));
        assert_eq!(index.superseded(None, Revision(7), Revision(7), 10).revisions, [Revision(6)]);
        index.remove(b"b", Revision(6));
        assert_eq!(index.newest(b"b"), None);
        assert_eq!(index.at(b"a", Revision(7)).map(|e| e.modified), Some(Revision(7)));
    }

    #[test]
    fn compaction_never_deletes_the_largest_id() {
        let mut index = Index::default();
        index.push(&key("a"), put(2, 2, 1));
        index.push(&key("a"), Entry::tombstone(Revision(3)));
        // The head is beyond the last row when a revision was kept elsewhere, for example as the compacted one.
        assert_eq!(index.superseded(None, Revision(9), Revision(3), 10).revisions, [Revision(2)]);
    }

    #[test]
    fn compaction_looks_at_some_keys_at_a_time() {
        let index = sample();
        let first = index.superseded(None, Revision(7), Revision(7), 1);
        assert_eq!((first.revisions.len(), first.resume.clone()), (3, Some(key("b"))));
        let second = index.superseded(first.resume.as_ref(), Revision(7), Revision(7), 1);
        assert_eq!((second.revisions.len(), second.resume), (2, None));
    }

    #[test]
    fn a_failed_transaction_leaves_no_trace() {
        let mut index = sample();
        index.push(&key("c"), put(8, 8, 1));
        index.push(&key("a"), put(9, 7, 2));
        index.rollback(&key("c"), Revision(7));
        index.rollback(&key("a"), Revision(7));
        assert_eq!(index.newest(b"c"), None);
        assert_eq!(index.newest(b"a"), Some(put(7, 7, 1)));
    }
}
