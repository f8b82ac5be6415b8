//! What clients asked and were told: requests, answers, watches, each with its moments.
//!
//! It can be written as JSON, so that a history that breaks a promise can be kept and looked at.

use std::{fmt, time::Instant};

use serde::{Deserialize, Serialize};

use crate::model::State;

/// A revision of the store.
pub type Revision = i64;
/// The number of a lease; zero is none.
pub type LeaseId = i64;

/// Nanoseconds since the history began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub u64);

/// Tells moments of one history.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that stands at zero now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// This moment.
    pub fn now(&self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Everything that clients saw of a store between two moments at which its content is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct History {
    /// What the store held before.
    pub before: State,
    /// Requests that have one answer or none, in no particular order.
    pub operations: Vec<Operation>,
    /// Requests that have many.
    pub watches: Vec<Watch>,
}

/// A request and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// What was asked.
    pub request: Request,
    /// When it was sent.
    pub called: Moment,
    /// What came back.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done.
    Answered {
        /// When the answer was there.
        at: Moment,
        /// What it says.
        answer: Answer,
    },
    /// It was not done, and never will be.
    Refused {
        /// When the refusal was there.
        at: Moment,
        /// What it says.
        refusal: Refusal,
    },
    /// Nobody knows: the connection broke, or the server could not tell.
    Unknown {
        /// What the client was told instead.
        error: String,
    },
}

/// Which keys a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keys {
    /// This one.
    One(String),
    /// Those that begin so.
    Prefix(String),
}

impl Keys {
    /// All keys there are.
    pub fn all() -> Self {
        Self::Prefix("/".to_owned())
    }

    /// Whether the key is one of them.
    pub fn contain(&self, key: &str) -> bool {
        match self {
            Self::One(one) => key == one,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A linearizable read.
    Range {
        /// Of these keys.
        keys: Keys,
        /// As they were then; `None` is now.
        revision: Option<Revision>,
        /// Not more than so many, of the first; zero is all.
        limit: i64,
    },
    /// Kubernetes' guarded write: the value of this key is replaced if the key is still at `guard`.
    Put {
        /// The key.
        key: String,
        /// No other write has the same.
        value: Value,
        /// What the key is attached to from now on.
        lease: LeaseId,
        /// The key's revision, zero if it must not exist; `None` writes in any case.
        guard: Option<Revision>,
        /// Whether a mismatch is answered with what the key is.
        or_read: bool,
    },
    /// Kubernetes' guarded delete: of the key if it is still at `guard`.
    Delete {
        /// The key.
        key: String,
        /// The key's revision.
        guard: Revision,
        /// Whether a mismatch is answered with what the key is.
        or_read: bool,
    },
    /// Forget what was before.
    Compact {
        /// The oldest revision to keep.
        revision: Revision,
        /// Whether to answer only when it is gone.
        physical: bool,
    },
    /// A new lease, for longer than any test lasts.
    Grant {
        /// Its number.
        lease: LeaseId,
    },
    /// End a lease and delete its keys.
    Revoke {
        /// Its number.
        lease: LeaseId,
    },
}

/// What an answer says. Each carries the revision of the store that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Of a range.
    Range {
        /// What the store was at.
        revision: Revision,
        /// In the order of keys.
        found: Vec<KeyValue>,
        /// How many there are without the limit.
        count: i64,
    },
    /// A put or delete was done, at this revision.
    Written {
        /// Its own.
        revision: Revision,
    },
    /// A guard did not hold.
    Mismatch {
        /// What the store was at.
        revision: Revision,
        /// What the key is, if that was asked.
        found: Option<Option<KeyValue>>,
    },
    /// Of what has no more to say.
    Done {
        /// What the store is at.
        revision: Revision,
    },
}

impl Answer {
    /// The revision that it is about.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Range { revision, .. }
            | Self::Written { revision }
            | Self::Mismatch { revision, .. }
            | Self::Done { revision } => *revision,
        }
    }
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The revision is compacted.
    Compacted,
    /// The revision is not there yet.
    Future,
    /// There is no room.
    NoSpace,
}

/// A value that names the write that it is from.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Value {
    /// Written by us.
    Ours {
        /// No other write has it.
        number: u64,
        /// What follows the number.
        padding: usize,
    },
    /// Anything else: nobody wrote it.
    Foreign(String),
}

impl Value {
    /// What is stored.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ours { number, padding } => format!("{number} {}", "=".repeat(*padding)).into_bytes(),
            Self::Foreign(text) => text.clone().into_bytes(),
        }
    }

    /// From what was stored.
    pub fn decode(stored: &[u8]) -> Self {
        let text = String::from_utf8_lossy(stored);
        let ours = text.split_once(' ').and_then(|(number, padding)| {
            let is_whole = padding.bytes().all(|byte| byte == b'=');
            number.parse().ok().filter(|_| is_whole).map(|number| Self::Ours { number, padding: padding.len() })
        });
        ours.unwrap_or_else(|| Self::Foreign(text.into_owned()))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours { number, .. } => write!(f, "#{number}"),
            Self::Foreign(text) => write!(f, "{:?}", text.chars().take(40).collect::<String>()),
        }
    }
}

/// A key as the store shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Revision of its first write since it was deleted last.
    pub created: Revision,
    /// Revision of its last write.
    pub modified: Revision,
    /// Number of writes since `created`.
    pub version: i64,
    /// What it is attached to.
    pub lease: LeaseId,
}

/// A watch and all that came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Watch {
    /// Of these keys.
    pub keys: Keys,
    /// The first revision that is wanted.
    pub start: Revision,
    /// Which kinds of events are wanted.
    pub wanted: Wanted,
    /// When it was sent.
    pub called: Moment,
    /// In the order of their arrival.
    pub messages: Vec<Message>,
}

/// Which kinds of events a watch is for. All of them come with the key's previous state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Puts and deletes.
    All,
    /// Puts only.
    Puts,
    /// Deletes only.
    Deletes,
}

impl Wanted {
    /// Whether this event is wanted.
    pub fn contains(self, event: &Event) -> bool {
        match self {
            Self::All => true,
            Self::Puts => matches!(event.change, Change::Put(_)),
            Self::Deletes => matches!(event.change, Change::Delete { .. }),
        }
    }
}

/// What a watch was told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    /// When it was there.
    pub at: Moment,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// What happened. Never empty.
    Events(Vec<Event>),
    /// Everything up to this revision was told.
    Progress(Revision),
    /// The watch is over: what it wants is compacted, up to this revision.
    Compacted(Revision),
}

/// Something that happened to a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// What the key was before, if it was and is not compacted.
    pub previous: Option<KeyValue>,
}

impl Event {
    /// The revision at which it happened.
    pub fn revision(&self) -> Revision {
        match &self.change {
            Change::Put(now) => now.modified,
            Change::Delete { revision, .. } => *revision,
        }
    }

    /// The key to which it happened.
    pub fn key(&self) -> &str {
        match &self.change {
            Change::Put(now) => &now.key,
            Change::Delete { key, .. } => key,
        }
    }
}

/// What can happen to a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It was written: this is what it is now.
    Put(KeyValue),
    /// It was deleted.
    Delete {
        /// The key.
        key: String,
        /// The delete's own.
        revision: Revision,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_by_its_number_and_only_when_it_is_whole() {
        let value = Value::Ours { number: 17, padding: 3 };
        assert_eq!(value.encode(), b"17 ===");
        assert_eq!(Value::decode(b"17 ==="), value);
        for torn in ["17", "17 =x=", "x ===", ""] {
            assert_eq!(Value::decode(torn.as_bytes()), Value::Foreign(torn.to_owned()));
        }
    }
}
