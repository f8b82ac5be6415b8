//! What a history says about the store that it is of.

use std::fmt;

use crate::{
    history::{Body, History},
    linearizability,
    model::{State, Timeline},
    promises,
};

/// What a datastore promises. The watch promises are etcd's own list, in its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// After a crash the store starts and answers again, and stops without complaint.
    Recovers,
    /// Every request seems to happen at one moment between its call and its answer; what was answered or told stays.
    Linearizable,
    /// A watch tells only what was asked for.
    Filter,
    /// After a progress notification nothing comes from before it.
    Bookmarkable,
    /// Events come in the order of their revisions.
    Ordered,
    /// No event comes twice.
    Unique,
    /// All events of a revision come together.
    Atomic,
    /// Between two events nothing is left out.
    Reliable,
    /// A watch begins where it was told to.
    Resumable,
    /// An event shows what the key was before.
    PreviousValue,
    /// An event shows whether it created the key.
    Creation,
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which one.
    pub promise: Promise,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(promise: Promise, what: impl Into<String>) -> Self {
        Self { promise, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// What a history says.
#[derive(Debug)]
pub struct Verdict {
    /// Promises that were not kept; empty if all is well.
    pub violations: Vec<Violation>,
    /// What happened, as far as it is known.
    pub timeline: Timeline,
    /// What the store holds at the end.
    pub after: State,
}

impl Verdict {
    /// Holds a history against every promise.
    pub fn of(history: &History) -> Self {
        let (timeline, mut violations) = linearizability::check(history);
        for watch in &history.watches {
            violations.extend(promises::check(watch, &timeline));
        }
        let after = State {
            revision: timeline.last(),
            keys: timeline.end(),
            compacted: timeline.compacted(),
            maybe_compacted: timeline.maybe_compacted(),
        };
        Self { violations, timeline, after }
    }

    /// Whether this promise was broken.
    pub fn breaks(&self, promise: Promise) -> bool {
        self.violations.iter().any(|violation| violation.promise == promise)
    }
}

/// Events that watches were told.
pub(crate) fn events(history: &History) -> usize {
    let messages = history.watches.iter().flat_map(|watch| &watch.messages);
    messages.map(|message| if let Body::Events(events) = &message.body { events.len() } else { 0 }).sum()
}
