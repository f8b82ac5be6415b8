//! Mistakes that a store could make, put into a history that is free of them: each has to be found.

use std::collections::HashSet;

use fastrand::Rng;

use crate::{
    history::{
        Answer, Body, Change, Event, History, KeyValue, Keys, Message, Operation, Outcome, Request, Revision, Value,
    },
    verdict::Promise,
};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An acknowledged write is gone after the crash.
    LostWrite,
    /// Two writes have one revision.
    ReusedRevision,
    /// A read shows what was before something that had been answered by then.
    TimeTravel,
    /// A read shows what was compacted by then.
    Uncompacted,
    /// Two events change places.
    Reordered,
    /// An event comes twice.
    Duplicated,
    /// An event does not come.
    Dropped,
    /// The first event of a watch does not come.
    MissedAtStart,
    /// An event of another key comes.
    Unasked,
    /// An event has a value that nobody wrote.
    Invented,
    /// Events come after the progress notification that includes them.
    OvertakingProgress,
    /// One event of a revision comes later than the others. Only where a revision can have several: in etcd.
    TornRevision,
    /// An event shows another previous value.
    WrongPrevious,
    /// An event shows another create revision.
    WrongCreation,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::LostWrite,
        Self::ReusedRevision,
        Self::TimeTravel,
        Self::Uncompacted,
        Self::Reordered,
        Self::Duplicated,
        Self::Dropped,
        Self::MissedAtStart,
        Self::Unasked,
        Self::Invented,
        Self::OvertakingProgress,
        Self::TornRevision,
        Self::WrongPrevious,
        Self::WrongCreation,
    ];

    /// The promise that it breaks.
    pub const fn breaks(self) -> Promise {
        match self {
            Self::LostWrite | Self::ReusedRevision | Self::TimeTravel | Self::Uncompacted => Promise::Linearizable,
            Self::Reordered => Promise::Ordered,
            Self::Duplicated => Promise::Unique,
            Self::Dropped | Self::Invented => Promise::Reliable,
            Self::MissedAtStart => Promise::Resumable,
            Self::Unasked => Promise::Filter,
            Self::OvertakingProgress => Promise::Bookmarkable,
            Self::TornRevision => Promise::Atomic,
            Self::WrongPrevious => Promise::PreviousValue,
            Self::WrongCreation => Promise::Creation,
        }
    }

    /// The history with this mistake at a random place; `None` if it has no place for it.
    pub fn inject(self, history: &History, rng: &mut Rng) -> Option<History> {
        let mut history = history.clone();
        let disturb: fn(&mut Vec<Message>, &mut Rng) -> Option<()> = match self {
            Self::LostWrite => return lose_write(history, rng),
            Self::ReusedRevision => return reuse_revision(history, rng),
            Self::TimeTravel => return travel_in_time(history, rng),
            Self::Uncompacted => return read_compacted(history, rng),
            Self::Unasked => return tell_unasked(history, rng),
            Self::Dropped => {
                return drop_event(history, rng, |at, told| told[0] < told[at] && told[at] < told[told.len() - 1]);
            }
            Self::MissedAtStart => {
                return drop_event(history, rng, |at, told| at == 0 && told[0] < told[told.len() - 1]);
            }
            Self::Reordered => |messages, rng| reorder(messages, rng),
            Self::Duplicated => duplicate,
            Self::Invented => |messages, rng| invent(messages, rng),
            Self::OvertakingProgress => hurry_progress,
            Self::TornRevision => tear,
            Self::WrongPrevious => |messages, rng| change_previous(messages, rng),
            Self::WrongCreation => |messages, rng| change_creation(messages, rng),
        };
        // The first watch that has a place for it.
        rng.shuffle(&mut history.watches);
        history.watches.iter_mut().find_map(|watch| disturb(&mut watch.messages, rng))?;
        Some(history)
    }
}

/// A write that the last list still had is gone from then on, and no watch has told it.
fn lose_write(mut history: History, rng: &mut Rng) -> Option<History> {
    let last = history.operations.iter_mut().rev().find(|operation| is_list(operation))?;
    let Outcome::Answered { answer: Answer::Range { found, count, .. }, .. } = &mut last.outcome else { return None };
    let before = history.before.revision;
    let lost = pick(found.len(), rng, |at| found[at].modified > before && found[at].version == 1)?;
    let lost = found.remove(lost).modified;
    *count -= 1;
    history.watches.iter_mut().for_each(|watch| remove(&mut watch.messages, lost));
    Some(history)
}

fn reuse_revision(mut history: History, rng: &mut Rng) -> Option<History> {
    let mut revisions: Vec<_> = history.operations.iter_mut().filter_map(written).collect();
    rng.shuffle(&mut revisions);
    match &mut revisions[..] {
        [one, other, ..] => **one = **other,
        _ => return None,
    }
    Some(history)
}

/// A list is answered as one before it was, although something newer had been answered since.
fn travel_in_time(mut history: History, rng: &mut Rng) -> Option<History> {
    let operations = &mut history.operations;
    let lists: Vec<_> = (0..operations.len()).filter(|&at| is_list(&operations[at])).collect();
    let newest_before = |called| {
        let answered = operations.iter().filter_map(|operation| match &operation.outcome {
            Outcome::Answered { at, answer } if *at < called => Some(answer.revision()),
            _ => None,
        });
        answered.max()
    };
    let later = lists[pick(lists.len(), rng, |later| {
        let newest = newest_before(operations[lists[later]].called);
        lists.iter().any(|&earlier| revision_of(&operations[earlier]) < newest)
    })?];
    let newest = newest_before(operations[later].called);
    let earlier = *lists.iter().find(|&&earlier| revision_of(&operations[earlier]) < newest)?;
    let old = operations[earlier].clone();
    let (Outcome::Answered { answer, .. }, Outcome::Answered { answer: old, .. }) =
        (&mut operations[later].outcome, old.outcome)
    else {
        return None;
    };
    *answer = old;
    operations[later].request = operations[earlier].request.clone();
    Some(history)
}

/// A read of the past goes behind a compaction that had been answered.
fn read_compacted(mut history: History, rng: &mut Rng) -> Option<History> {
    let done = history.operations.iter().filter_map(|operation| match (&operation.request, &operation.outcome) {
        (Request::Compact { revision, .. }, Outcome::Answered { at, .. }) => Some((*at, *revision)),
        _ => None,
    });
    let (at, compacted) = done.min_by_key(|(at, _)| *at)?;
    let mut reads: Vec<_> = history
        .operations
        .iter_mut()
        .filter(|operation| operation.called > at && matches!(operation.outcome, Outcome::Answered { .. }))
        .filter_map(|operation| match &mut operation.request {
            Request::Range { revision: Some(revision), .. } => Some(revision),
            _ => None,
        })
        .collect();
    **rng.choice(&mut reads)? = compacted - 1;
    Some(history)
}

/// A watch is told what happened to a key that it is not about.
fn tell_unasked(mut history: History, rng: &mut Rng) -> Option<History> {
    let all: Vec<_> = history.watches.iter().flat_map(|watch| &watch.messages).flat_map(events).cloned().collect();
    let event = rng.choice(&all)?;
    let others = history.watches.iter_mut().filter(|watch| !watch.keys.contain(event.key()));
    let message = others.flat_map(|watch| &mut watch.messages).find(|message| !events(message).is_empty())?;
    message.body = Body::Events(vec![event.clone()]);
    Some(history)
}

/// A watch is not told of a write that was answered, so that it is known to have happened. The revisions that it was
/// told decide which will do.
fn drop_event(mut history: History, rng: &mut Rng, will_do: impl Fn(usize, &[Revision]) -> bool) -> Option<History> {
    let answered: HashSet<_> = history.operations.iter_mut().filter_map(written).map(|revision| *revision).collect();
    rng.shuffle(&mut history.watches);
    history.watches.iter_mut().find_map(|watch| {
        let told: Vec<_> = watch.messages.iter().flat_map(events).map(Event::revision).collect();
        let dropped = pick(told.len(), rng, |at| answered.contains(&told[at]) && will_do(at, &told))?;
        remove(&mut watch.messages, told[dropped]);
        Some(())
    })?;
    Some(history)
}

fn reorder(messages: &mut [Message], rng: &mut Rng) -> Option<()> {
    let mut told: Vec<_> = messages.iter_mut().flat_map(events_mut).collect();
    let first = pick(told.len().checked_sub(1)?, rng, |at| told[at].revision() < told[at + 1].revision())?;
    let (left, right) = told.split_at_mut(first + 1);
    std::mem::swap(left[first], right[0]);
    Some(())
}

fn duplicate(messages: &mut Vec<Message>, rng: &mut Rng) -> Option<()> {
    let at = pick(messages.len(), rng, |at| !events(&messages[at]).is_empty())?;
    messages.insert(at, messages[at].clone());
    Some(())
}

fn invent(messages: &mut [Message], rng: &mut Rng) -> Option<()> {
    let mut puts: Vec<_> = messages.iter_mut().flat_map(events_mut).filter_map(put).collect();
    rng.choice(&mut puts)?.value = Value::Foreign("nobody's".to_owned());
    Some(())
}

fn hurry_progress(messages: &mut Vec<Message>, rng: &mut Rng) -> Option<()> {
    let at = pick(messages.len(), rng, |at| !events(&messages[at]).is_empty())?;
    let (revision, at_once) = (events(&messages[at]).last()?.revision(), messages[at].at);
    messages.insert(at, Message { at: at_once, body: Body::Progress(revision) });
    Some(())
}

fn tear(messages: &mut Vec<Message>, rng: &mut Rng) -> Option<()> {
    let torn = |message: &Message| events(message).windows(2).position(|pair| pair[0].revision() == pair[1].revision());
    let at = pick(messages.len(), rng, |at| torn(&messages[at]).is_some())?;
    let first = torn(&messages[at])?;
    let Body::Events(told) = &mut messages[at].body else { return None };
    let late = Message { body: Body::Events(told.split_off(first + 1)), at: messages[at].at };
    messages.insert(at + 1, late);
    Some(())
}

fn change_previous(messages: &mut [Message], rng: &mut Rng) -> Option<()> {
    let mut previous: Vec<_> =
        messages.iter_mut().flat_map(events_mut).filter_map(|event| event.previous.as_mut()).collect();
    rng.choice(&mut previous)?.value = Value::Foreign("another".to_owned());
    Some(())
}

fn change_creation(messages: &mut [Message], rng: &mut Rng) -> Option<()> {
    let mut puts: Vec<_> = messages.iter_mut().flat_map(events_mut).filter_map(put).collect();
    let now = rng.choice(&mut puts)?;
    now.created = if now.created == now.modified { now.modified - 1 } else { now.modified };
    Some(())
}

/// One of the numbers below `count` that will do.
fn pick(count: usize, rng: &mut Rng, will_do: impl Fn(usize) -> bool) -> Option<usize> {
    let all: Vec<_> = (0..count).filter(|&at| will_do(at)).collect();
    rng.choice(all)
}

/// Takes a revision out of what a watch was told.
fn remove(messages: &mut Vec<Message>, revision: Revision) {
    messages.retain_mut(|message| {
        let Body::Events(told) = &mut message.body else { return true };
        told.retain(|event| event.revision() != revision);
        !told.is_empty()
    });
}

fn events(message: &Message) -> &[Event] {
    if let Body::Events(events) = &message.body { events } else { &[] }
}

fn events_mut(message: &mut Message) -> &mut [Event] {
    if let Body::Events(events) = &mut message.body { events } else { &mut [] }
}

fn put(event: &mut Event) -> Option<&mut KeyValue> {
    if let Change::Put(now) = &mut event.change { Some(now) } else { None }
}

/// Whether it is an answered list of the present, of all that it is about.
fn is_list(operation: &Operation) -> bool {
    matches!(operation.request, Request::Range { keys: Keys::Prefix(_), revision: None, limit: 0 })
        && revision_of(operation).is_some()
}

fn revision_of(operation: &Operation) -> Option<Revision> {
    if let Outcome::Answered { answer, .. } = &operation.outcome { Some(answer.revision()) } else { None }
}

/// The revision that a write was given.
fn written(operation: &mut Operation) -> Option<&mut Revision> {
    match &mut operation.outcome {
        Outcome::Answered { answer: Answer::Written { revision }, .. } => Some(revision),
        _ => None,
    }
}
