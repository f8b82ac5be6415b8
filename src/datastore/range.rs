//! Reads: which keys a range request selects, in which order, and what it answers.
//!
//! A read goes in two steps, so that no lock is held while values are fetched: [`Range::select`] works on the index
//! alone, [`Selection::finish`] puts the values in.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::error::RequestError;
use crate::index::{Entry, Index};
use crate::key::{Key, KeyRange};
use crate::revision::Revision;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
    pub(crate) value: Bytes,
}

/// What results are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// Which way results are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SortOrder {
    Ascend,
    Descend,
}

/// A range request.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) keys: KeyRange,
    /// The revision to read at; zero or less is the newest.
    pub(crate) revision: Revision,
    /// Keys to return at most; `None` is all.
    pub(crate) limit: Option<usize>,
    pub(crate) order: Option<SortOrder>,
    pub(crate) target: SortTarget,
    pub(crate) keys_only: bool,
    pub(crate) count_only: bool,
    /// Inclusive bounds on the revision of the last change.
    pub(crate) modified: RevisionBounds,
    /// Inclusive bounds on the revision of the create.
    pub(crate) created: RevisionBounds,
}

/// Inclusive bounds on a revision; zero is no bound.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RevisionBounds {
    pub(crate) min: Revision,
    pub(crate) max: Revision,
}

impl RevisionBounds {
    fn contains(self, revision: Revision) -> bool {
        (self.min == Revision::ZERO || revision >= self.min) && (self.max == Revision::ZERO || revision <= self.max)
    }
}

/// What a range request answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// The newest revision when the request was served.
    pub(crate) revision: Revision,
    pub(crate) kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    pub(crate) more: bool,
    /// Keys in the range, whatever limit and bounds say.
    pub(crate) count: usize,
}

/// The keys that a read will return, still without values.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) entries: Vec<(Key, Entry)>,
    head: Revision,
    count: usize,
    more: bool,
    values: Values,
}

/// What is still to be done about values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// None are returned.
    No,
    Yes,
    /// They decide the order, so the limit comes after them.
    ToSort {
        order: SortOrder,
        limit: Option<usize>,
        keep: bool,
    },
}

impl Range {
    /// Reads a whole range, newest revision.
    pub(crate) fn newest(keys: KeyRange) -> Self {
        Self {
            keys,
            revision: Revision::ZERO,
            limit: None,
            order: None,
            target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            modified: RevisionBounds::default(),
            created: RevisionBounds::default(),
        }
    }

    /// Refuses a revision that is not there yet or not there any more.
    pub(crate) fn check(&self, head: Revision, compacted: Revision) -> Result<(), RequestError> {
        if self.revision > head {
            Err(RequestError::FutureRevision)
        } else if self.revision > Revision::ZERO && self.revision < compacted {
            Err(RequestError::Compacted)
        } else {
            Ok(())
        }
    }

    /// Chooses the keys. `head` is the newest revision that this read may see.
    pub(crate) fn select(&self, index: &Index, head: Revision, compacted: Revision) -> Result<Selection, RequestError> {
        self.check(head, compacted)?;
        let at = if self.revision > Revision::ZERO { self.revision } else { head };
        let empty = |count| Selection { entries: Vec::new(), head, count, more: false, values: Values::No };
        if self.count_only {
            return Ok(empty(index.range(&self.keys, at).count()));
        }

        // etcd sorts by key without being told, and ascending by any other target.
        let order = match (self.target, self.order) {
            (SortTarget::Key, Some(SortOrder::Ascend)) => None,
            (SortTarget::Key, order) => order,
            (_, order) => Some(order.unwrap_or(SortOrder::Ascend)),
        };
        let early_limit = if order.is_none() { self.limit } else { None };
        let mut count = 0;
        let mut more = false;
        let mut entries = Vec::new();
        for (key, entry) in index.range(&self.keys, at) {
            count += 1;
            if !(self.modified.contains(entry.modified) && self.created.contains(entry.created)) {
                continue;
            }
            if early_limit.is_some_and(|limit| entries.len() >= limit) {
                more = true;
                continue;
            }
            entries.push((key.clone(), entry));
        }

        let keep = !self.keys_only;
        let mut values = if keep { Values::Yes } else { Values::No };
        match (order, self.target) {
            (None, _) => {}
            (Some(order), SortTarget::Value) => values = Values::ToSort { order, limit: self.limit, keep },
            (Some(order), target) => {
                sort(&mut entries, order, |(a_key, a), (b_key, b)| match target {
                    SortTarget::Key | SortTarget::Value => a_key.cmp(b_key),
                    SortTarget::Version => a.version.cmp(&b.version),
                    SortTarget::Create => a.created.cmp(&b.created),
                    SortTarget::Mod => a.modified.cmp(&b.modified),
                });
                more = truncate(&mut entries, self.limit);
            }
        }
        Ok(Selection { entries, head, count, more, values })
    }
}

impl Selection {
    /// Whether [`Selection::finish`] needs the values of the entries.
    pub(crate) fn needs_values(&self) -> bool {
        self.values != Values::No && !self.entries.is_empty()
    }

    /// Puts the values in. `values` are those of the entries, in their order; empty if none are needed.
    pub(crate) fn finish(self, values: Vec<Bytes>) -> Page {
        let values = values.into_iter().chain(std::iter::repeat(Bytes::new()));
        let mut kvs: Vec<_> =
            self.entries.into_iter().zip(values).map(|((key, entry), value)| KeyValue { key, entry, value }).collect();
        let mut more = self.more;
        if let Values::ToSort { order, limit, keep } = self.values {
            sort(&mut kvs, order, |a, b| a.value.cmp(&b.value));
            more = truncate(&mut kvs, limit);
            if !keep {
                kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
            }
        }
        Page { revision: self.head, kvs, more, count: self.count }
    }
}

fn sort<T>(items: &mut [T], order: SortOrder, compare: impl Fn(&T, &T) -> Ordering) {
    items.sort_by(|a, b| match order {
        SortOrder::Ascend => compare(a, b),
        SortOrder::Descend => compare(b, a),
    });
}

/// Cuts to the limit and tells whether that left something out.
fn truncate<T>(items: &mut Vec<T>, limit: Option<usize>) -> bool {
    let limit = limit.unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::LeaseId;

    fn index() -> Index {
        let mut index = Index::default();
        for (key, modified, created, version) in [("a", 5, 2, 3), ("b", 3, 3, 1), ("c", 4, 4, 1), ("d", 6, 6, 1)] {
            let entry =
                Entry { modified: Revision(modified), created: Revision(created), version, lease: LeaseId::NONE };
            index.push(&Key::from_static(key.as_bytes()), entry);
        }
        index
    }

    fn keys(page: &Page) -> Vec<&str> {
        page.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect()
    }

    fn read(change: impl FnOnce(&mut Range), values: &[&'static str]) -> Page {
        let mut range = Range::newest(KeyRange::From(Key::from_static(b"a")));
        change(&mut range);
        let selection = range.select(&index(), Revision(6), Revision(2)).unwrap();
        let values = values.iter().map(|v| Bytes::from_static(v.as_bytes())).collect();
        selection.finish(values)
    }

    #[test]
    fn a_limit_leaves_the_count_alone() {
        let page = read(|r| r.limit = Some(2), &[]);
        assert_eq!((keys(&page), page.more, page.count), (vec!["a", "b"], true, 4));
        let page = read(|r| r.limit = Some(4), &[]);
        assert!(!page.more);
        let page = read(|r| r.count_only = true, &[]);
        assert_eq!((keys(&page), page.count), (vec![], 4));
    }

    #[test]
    fn results_sort_by_each_target() {
        let by = |target, order| {
            read(
                |r| {
                    r.target = target;
                    r.order = order;
                    r.limit = Some(2);
                },
                &["y", "z", "x", "w"],
            )
        };
        assert_eq!(keys(&by(SortTarget::Key, Some(SortOrder::Descend))), ["d", "c"]);
        assert_eq!(keys(&by(SortTarget::Mod, None)), ["b", "c"]);
        assert_eq!(keys(&by(SortTarget::Create, Some(SortOrder::Descend))), ["d", "c"]);
        assert_eq!(keys(&by(SortTarget::Version, Some(SortOrder::Descend))), ["a", "b"]);
        let page = by(SortTarget::Value, Some(SortOrder::Descend));
        assert_eq!((keys(&page), page.more), (vec!["b", "a"], true));
    }

    #[test]
    fn revision_bounds_filter_but_do_not_change_the_count() {
        let page = read(
            |r| {
                r.modified = RevisionBounds { min: Revision(4), max: Revision(5) };
                r.created.min = Revision(3);
            },
            &[],
        );
        assert_eq!((keys(&page), page.count), (vec!["c"], 4));
    }

    #[test]
    fn a_revision_must_be_there() {
        let at = |revision| {
            let mut range = Range::newest(KeyRange::One(Key::from_static(b"a")));
            range.revision = Revision(revision);
            range.check(Revision(6), Revision(4))
        };
        assert_eq!(at(7), Err(RequestError::FutureRevision));
        assert_eq!(at(3), Err(RequestError::Compacted));
        assert_eq!(at(4), Ok(()));
        assert_eq!(at(0), Ok(()));
        assert_eq!(at(-1), Ok(()));
    }
}
