//! Writes: guarded transactions that change at most one key.
//!
//! One row of the log is one revision, so a transaction can change one key. That is all that Kubernetes' interface to
//! etcd needs; a request that would change more is refused before it changes anything.

use std::cmp::Ordering;
use std::collections::HashSet;

use bytes::Bytes;

use crate::error::{Error, RequestError};
use crate::index::{Entry, Index};
use crate::key::{Key, KeyRange};
use crate::log::kine;
use crate::range::{KeyValue, Page, Range};
use crate::revision::{LeaseId, Revision};

/// Operations that one branch may have, as etcd's `--max-txn-ops`.
const MAX_OPS: usize = 128;

/// A transaction: if all guards hold, the operations of `success`, else those of `failure`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Txn {
    pub(crate) guards: Vec<Guard>,
    pub(crate) success: Vec<Op>,
    pub(crate) failure: Vec<Op>,
}

/// A comparison that must hold for every key in its range.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    pub(crate) keys: KeyRange,
    pub(crate) target: Target,
    pub(crate) relation: Relation,
}

/// What is compared, and with what.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Version(i64),
    Create(Revision),
    Mod(Revision),
    Value(Bytes),
    Lease(LeaseId),
}

/// How the stored side must relate to the given one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Range(Range),
    Put(Put),
    Delete(Delete),
}

/// Sets a key.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) key: Key,
    /// `None` keeps the value that is there.
    pub(crate) value: Option<Bytes>,
    /// `None` keeps the lease that is there.
    pub(crate) lease: Option<LeaseId>,
    /// Whether to answer with what was there.
    pub(crate) return_previous: bool,
}

/// Deletes the keys of a range.
#[derive(Clone, Debug)]
pub(crate) struct Delete {
    pub(crate) keys: KeyRange,
    /// Whether to answer with what was there.
    pub(crate) return_previous: bool,
}

/// What a transaction answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TxnReply {
    pub(crate) revision: Revision,
    pub(crate) succeeded: bool,
    pub(crate) replies: Vec<OpReply>,
}

/// What one operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpReply {
    Range(Page),
    Put { revision: Revision, previous: Option<KeyValue> },
    Delete { revision: Revision, deleted: usize, previous: Vec<KeyValue> },
}

/// The row that a transaction adds to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
    /// Revision of the key's newest row before this one, a tombstone's too; zero if the table has none.
    pub(crate) previous: Revision,
    /// `None` on tombstones.
    pub(crate) value: Option<Bytes>,
}

/// The store as a transaction finds it.
pub(crate) struct View<'a> {
    pub(crate) index: &'a Index,
    /// The revision before this transaction.
    pub(crate) head: Revision,
    pub(crate) compacted: Revision,
}

/// What a transaction needs that is not in the index.
pub(crate) trait Sources {
    /// The value of a row that is in the log.
    fn value(&mut self, key: &Key, revision: Revision) -> Result<Bytes, Error>;

    /// Whether a lease is granted.
    fn has_lease(&self, lease: LeaseId) -> bool;
}

/// Why a transaction was not done: its own fault, or the store's.
#[derive(Debug)]
pub(crate) enum Failure {
    Request(RequestError),
    Store(Error),
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// A transaction whose outcome is decided.
#[derive(Debug)]
pub(crate) struct Decision<'a> {
    pub(crate) succeeded: bool,
    ops: &'a [Op],
    /// The row it adds; `None` if it changes nothing.
    pub(crate) row: Option<Row>,
}

impl Txn {
    /// A transaction of one operation without guards.
    pub(crate) fn of(op: Op) -> Self {
        Self { guards: Vec::new(), success: vec![op], failure: Vec::new() }
    }

    /// Refuses what etcd refuses before it looks at any data.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        if [self.guards.len(), self.success.len(), self.failure.len()].iter().any(|&n| n > MAX_OPS) {
            return Err(RequestError::TooManyOps);
        }
        for branch in [&self.success, &self.failure] {
            let mut puts = HashSet::new();
            for op in branch {
                if let Op::Put(put) = op
                    && !puts.insert(&put.key)
                {
                    return Err(RequestError::DuplicateKey);
                }
            }
            let deletes = branch.iter().filter_map(|op| if let Op::Delete(delete) = op { Some(delete) } else { None });
            for delete in deletes {
                if puts.iter().any(|key| delete.keys.contains(key)) {
                    return Err(RequestError::DuplicateKey);
                }
            }
        }
        Ok(())
    }

    /// Evaluates the guards and works out the change.
    pub(crate) fn decide(&self, view: &View<'_>, sources: &mut impl Sources) -> Result<Decision<'_>, Failure> {
        let mut succeeded = true;
        for guard in &self.guards {
            if !guard.holds(view, sources)? {
                succeeded = false;
                break;
            }
        }
        let ops: &[Op] = if succeeded { &self.success } else { &self.failure };
        let mut rows = Vec::new();
        for op in ops {
            match op {
                Op::Range(range) => range.check(view.head, view.compacted)?,
                Op::Put(put) => rows.push(put.row(view, sources)?),
                Op::Delete(delete) => rows.extend(delete.rows(view)),
            }
            if rows.len() > 1 {
                return Err(RequestError::Unsupported(
                    "this request changes more than one key, and one revision of the log holds one change: split it"
                        .to_owned(),
                )
                .into());
            }
        }
        Ok(Decision { succeeded, ops, row: rows.pop() })
    }
}

impl Decision<'_> {
    /// Answers, once the row is in the index. `view` is still the one before the change.
    pub(crate) fn replies(&self, view: &View<'_>, sources: &mut impl Sources) -> Result<TxnReply, Failure> {
        let changed = self.row.as_ref().map(|row| row.entry.modified);
        let mut now = view.head;
        let mut replies = Vec::with_capacity(self.ops.len());
        for op in self.ops {
            replies.push(match op {
                Op::Range(range) => {
                    let selection = range.select(view.index, now, view.compacted)?;
                    let mut values = Vec::new();
                    if selection.needs_values() {
                        for (key, entry) in &selection.entries {
                            values.push(sources.value(key, entry.modified)?);
                        }
                    }
                    OpReply::Range(selection.finish(values))
                }
                Op::Put(put) => {
                    let previous = previous(view, &KeyRange::One(put.key.clone()), put.return_previous, sources)?;
                    now = changed.unwrap_or(now);
                    OpReply::Put { revision: now, previous: previous.into_iter().next() }
                }
                Op::Delete(delete) => {
                    let previous = previous(view, &delete.keys, delete.return_previous, sources)?;
                    let deleted = view.index.range(&delete.keys, view.head).count();
                    if deleted > 0 {
                        now = changed.unwrap_or(now);
                    }
                    OpReply::Delete { revision: now, deleted, previous }
                }
            });
        }
        Ok(TxnReply { revision: changed.unwrap_or(view.head), succeeded: self.succeeded, replies })
    }
}

/// The live keys of a range before the change, if they are asked for.
fn previous(
    view: &View<'_>,
    keys: &KeyRange,
    wanted: bool,
    sources: &mut impl Sources,
) -> Result<Vec<KeyValue>, Failure> {
    if !wanted {
        return Ok(Vec::new());
    }
    let entries: Vec<_> = view.index.range(keys, view.head).map(|(key, entry)| (key.clone(), entry)).collect();
    let mut kvs = Vec::with_capacity(entries.len());
    for (key, entry) in entries {
        let value = sources.value(&key, entry.modified)?;
        kvs.push(KeyValue { key, entry, value });
    }
    Ok(kvs)
}

impl Guard {
    fn holds(&self, view: &View<'_>, sources: &mut impl Sources) -> Result<bool, Failure> {
        let mut any = false;
        for (key, entry) in view.index.range(&self.keys, view.head) {
            any = true;
            let ordering = match &self.target {
                Target::Value(value) => sources.value(key, entry.modified)?.cmp(value),
                target => target.compare(&entry),
            };
            if !self.relation.holds(ordering) {
                return Ok(false);
            }
        }
        if any {
            return Ok(true);
        }
        // A key that is not there compares as zeros, and never by value.
        match &self.target {
            Target::Value(_) => Ok(false),
            target => Ok(self.relation.holds(target.compare(&Entry::tombstone(Revision::ZERO)))),
        }
    }
}

impl Target {
    fn compare(&self, entry: &Entry) -> Ordering {
        match self {
            Self::Version(version) => entry.version.cmp(version),
            Self::Create(revision) => entry.created.cmp(revision),
            Self::Mod(revision) => entry.modified.cmp(revision),
            Self::Lease(lease) => entry.lease.cmp(lease),
            Self::Value(value) => Bytes::new().cmp(value),
        }
    }
}

impl Relation {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Greater => ordering.is_gt(),
            Self::Less => ordering.is_lt(),
            Self::NotEqual => ordering.is_ne(),
        }
    }
}

impl Put {
    fn row(&self, view: &View<'_>, sources: &mut impl Sources) -> Result<Row, Failure> {
        if kine::is_reserved(&self.key) {
            return Err(RequestError::ReservedKey(String::from_utf8_lossy(&self.key).into_owned()).into());
        }
        let newest = view.index.newest(&self.key);
        let current = newest.filter(|entry| !entry.is_tombstone());
        let kept = || current.ok_or(RequestError::KeyNotFound);
        let value = match &self.value {
            Some(value) => value.clone(),
            None => sources.value(&self.key, kept()?.modified)?,
        };
        let lease = match self.lease {
            Some(lease) => lease,
            None => kept()?.lease,
        };
        if self.lease.is_some() && !lease.is_none() && !sources.has_lease(lease) {
            return Err(RequestError::LeaseNotFound.into());
        }
        let modified = view.head.next();
        let entry = Entry {
            modified,
            created: current.map_or(modified, |entry| entry.created),
            version: current.map_or(0, |entry| entry.version) + 1,
            lease,
        };
        Ok(Row {
            key: self.key.clone(),
            entry,
            previous: newest.map_or(Revision::ZERO, |entry| entry.modified),
            value: Some(value),
        })
    }
}

impl Delete {
    /// At most two rows: enough to see that it would be more than one.
    fn rows(&self, view: &View<'_>) -> Vec<Row> {
        view.index
            .range(&self.keys, view.head)
            .take(2)
            .map(|(key, entry)| Row::tombstone(key, entry, view.head))
            .collect()
    }
}

impl Row {
    /// The row that deletes a key whose newest row is `entry`.
    pub(crate) fn tombstone(key: &Key, entry: Entry, head: Revision) -> Self {
        Self { key: key.clone(), entry: Entry::tombstone(head.next()), previous: entry.modified, value: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values by revision, and one lease.
    struct Fixed;

    impl Sources for Fixed {
        fn value(&mut self, _: &Key, revision: Revision) -> Result<Bytes, Error> {
            Ok(format!("value {revision}").into())
        }

        fn has_lease(&self, lease: LeaseId) -> bool {
            lease == LeaseId(7)
        }
    }

    fn key(name: &'static str) -> Key {
        Key::from_static(name.as_bytes())
    }

    /// `a` is live at version 2, `b` is deleted; the head is 5.
    fn sample() -> Index {
        let mut index = Index::default();
        let entry = |modified, version| Entry {
            modified: Revision(modified),
            created: Revision(2),
            version,
            lease: LeaseId(7),
        };
        index.push(&key("a"), entry(2, 1));
        index.push(&key("a"), entry(3, 2));
        index.push(&key("b"), entry(4, 1));
        index.push(&key("b"), Entry::tombstone(Revision(5)));
        index
    }

    fn decide(op: Op) -> Result<Option<Row>, RequestError> {
        let (index, txn) = (sample(), Txn::of(op));
        let view = View { index: &index, head: Revision(5), compacted: Revision(2) };
        match txn.decide(&view, &mut Fixed) {
            Ok(decision) => Ok(decision.row),
            Err(Failure::Request(error)) => Err(error),
            Err(Failure::Store(error)) => panic!("{error}"),
        }
    }

    fn put(name: &'static str, value: Option<&'static str>, lease: Option<i64>) -> Op {
        let value = value.map(|value| Bytes::from_static(value.as_bytes()));
        Op::Put(Put { key: key(name), value, lease: lease.map(LeaseId), return_previous: false })
    }

    #[test]
    fn an_update_goes_on_with_the_life_of_the_key() {
        let row = decide(put("a", Some("new"), Some(0))).unwrap().unwrap();
        let entry = Entry { modified: Revision(6), created: Revision(2), version: 3, lease: LeaseId::NONE };
        assert_eq!((row.entry, row.previous, row.value.unwrap()), (entry, Revision(3), Bytes::from_static(b"new")));
        let kept = decide(put("a", None, None)).unwrap().unwrap();
        assert_eq!((kept.entry.lease, kept.value.unwrap()), (LeaseId(7), Bytes::from_static(b"value 3")));
    }

    #[test]
    fn a_create_after_a_delete_begins_a_new_life_behind_the_tombstone() {
        let row = decide(put("b", Some("new"), Some(0))).unwrap().unwrap();
        assert_eq!((row.entry.created, row.entry.version, row.previous), (Revision(6), 1, Revision(5)));
        assert_eq!(decide(put("b", None, Some(0))), Err(RequestError::KeyNotFound));
    }

    #[test]
    fn a_delete_of_nothing_changes_nothing() {
        let delete = |name, end: &'static str| {
            let keys = KeyRange::new(key(name), key(end));
            decide(Op::Delete(Delete { keys, return_previous: false })).unwrap()
        };
        assert_eq!(delete("b", ""), None);
        assert_eq!(delete("a", "\0").unwrap().previous, Revision(3));
    }

    #[test]
    fn reserved_keys_and_unknown_leases_are_refused() {
        assert!(matches!(decide(put("compact_rev_key_apiserver", Some(""), None)), Err(RequestError::ReservedKey(_))));
        assert_eq!(decide(put("a", Some(""), Some(8))), Err(RequestError::LeaseNotFound));
    }
}
