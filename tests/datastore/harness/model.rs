//! What a store must hold: too simple to be wrong.
//!
//! A [`Timeline`] is a store's state at every revision. It is made of the state at the beginning and of what is known to have
//! happened since, one revision after the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::history::{Change, Event, KeyValue, Keys, LeaseId, Moment, Revision, Value};

/// What a store holds at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The newest revision.
    pub revision: Revision,
    /// Every key that there is.
    pub keys: BTreeMap<String, KeyValue>,
    /// Reads before this revision are refused.
    pub compacted: Revision,
    /// Reads before this revision may be refused: a compaction that nobody answered.
    pub maybe_compacted: Revision,
}

impl Default for State {
    /// An empty store, as etcd's begin.
    fn default() -> Self {
        Self { revision: 1, keys: BTreeMap::new(), compacted: 0, maybe_compacted: 0 }
    }
}

/// What happens to a key, as whoever wants it says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Put { value: Value, lease: LeaseId },
    Delete,
}

/// A store's state at every revision.
#[derive(Debug)]
pub struct Timeline {
    first: Revision,
    last: Revision,
    /// Each key's states, with the revision at which they begin; `None` once it is deleted.
    keys: BTreeMap<String, Vec<(Revision, Option<KeyValue>)>>,
    /// What happened at each revision, as a watch has to tell it.
    events: BTreeMap<Revision, Vec<Event>>,
    compacted: Revision,
    /// When compactions were asked for, those of before as if at the beginning.
    compactions: Vec<(Moment, Revision)>,
}

impl Timeline {
    /// A timeline that begins with this state.
    pub(crate) fn new(state: &State) -> Self {
        let begin = |(key, now): (&String, &KeyValue)| (key.clone(), vec![(now.modified, Some(now.clone()))]);
        Self {
            first: state.revision,
            last: state.revision,
            keys: state.keys.iter().map(begin).collect(),
            events: BTreeMap::new(),
            compacted: state.compacted,
            compactions: vec![(Moment(0), state.maybe_compacted)],
        }
    }

    /// Adds the next revision.
    pub(crate) fn push(&mut self, key: &str, revision: Revision, effect: Effect) {
        let previous = self.at(key, revision - 1).cloned();
        let now = match effect {
            Effect::Delete => None,
            Effect::Put { value, lease } => Some(KeyValue {
                key: key.to_owned(),
                value,
                created: previous.as_ref().map_or(revision, |previous| previous.created),
                modified: revision,
                version: previous.as_ref().map_or(0, |previous| previous.version) + 1,
                lease,
            }),
        };
        let change = now.clone().map_or_else(|| Change::Delete { key: key.to_owned(), revision }, Change::Put);
        self.keys.entry(key.to_owned()).or_default().push((revision, now));
        self.events.entry(revision).or_default().push(Event { change, previous });
        self.last = revision;
    }

    /// Notes that everything before a revision may be forgotten from now on; if `done`, it is.
    pub(crate) fn compact(&mut self, asked: Moment, revision: Revision, done: bool) {
        self.compactions.push((asked, revision));
        if done {
            self.compacted = self.compacted.max(revision);
        }
    }

    /// Whether the state at a revision may have been forgotten at a moment.
    pub(crate) fn may_forget(&self, revision: Revision, at: Moment) -> bool {
        self.compactions.iter().any(|(asked, compacted)| *asked <= at && revision < *compacted)
    }

    /// Everything before this revision is forgotten at the end.
    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Everything before this revision may be forgotten at the end.
    pub(crate) fn maybe_compacted(&self) -> Revision {
        self.compactions.iter().map(|(_, revision)| *revision).max().unwrap_or_default()
    }

    /// The newest revision.
    pub fn last(&self) -> Revision {
        self.last
    }

    /// Whether the state at this revision is known.
    pub fn knows(&self, revision: Revision) -> bool {
        (self.first..=self.last).contains(&revision)
    }

    /// What a key is at a revision.
    pub fn at(&self, key: &str, revision: Revision) -> Option<&KeyValue> {
        let states = self.keys.get(key)?;
        let next = states.partition_point(|(begin, _)| *begin <= revision);
        states.get(next.checked_sub(1)?)?.1.as_ref()
    }

    /// The keys that there are at a revision, in order.
    pub fn range(&self, keys: &Keys, revision: Revision) -> impl Iterator<Item = &KeyValue> {
        self.keys.keys().filter(|key| keys.contain(key)).filter_map(move |key| self.at(key, revision))
    }

    /// What happened from one revision to another, both included.
    pub fn events(&self, from: Revision, to: Revision) -> impl Iterator<Item = &Event> {
        let known = if from <= to { Some(self.events.range(from..=to)) } else { None };
        known.into_iter().flatten().flat_map(|(_, events)| events)
    }

    /// What the store holds at the end.
    pub(crate) fn end(&self) -> BTreeMap<String, KeyValue> {
        self.range(&Keys::all(), self.last).map(|now| (now.key.clone(), now.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_its_last_write_made_it() {
        let mut timeline = Timeline::new(&State::default());
        let put = |number| Effect::Put { value: Value::Ours { number, padding: 0 }, lease: 0 };
        timeline.push("/a", 2, put(1));
        timeline.push("/b", 3, put(2));
        timeline.push("/a", 4, put(3));
        timeline.push("/a", 5, Effect::Delete);
        timeline.push("/a", 6, put(4));
        let state = |revision| timeline.at("/a", revision).map(|now| (now.created, now.modified, now.version));
        assert_eq!(
            (1..=7).map(state).collect::<Vec<_>>(),
            [None, Some((2, 2, 1)), Some((2, 2, 1)), Some((2, 4, 2)), None, Some((6, 6, 1)), Some((6, 6, 1))]
        );
        assert_eq!(timeline.range(&Keys::all(), 5).map(|now| now.key.as_str()).collect::<Vec<_>>(), ["/b"]);
        let deleted = timeline.events(5, 5).next().unwrap();
        assert_eq!((deleted.key(), deleted.previous.as_ref().map(|previous| previous.modified)), ("/a", Some(4)));
    }
}
