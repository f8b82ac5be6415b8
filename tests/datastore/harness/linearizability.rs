//! Whether the requests of a history can have happened one after the other, each between its call and its answer.
//!
//! Finding such an order is hard in general. Here it is given. The store's specification says that the writes are numbered
//! without gaps, and each answer carries a number: a write its own, a read that of the last write before it. So in every order that the
//! specification allows
//!
//! - the write of revision R is at *place* 2R, and a read, a guard that did not hold, or a lease request, answered at R, is at 2R + 1;
//! - requests at one place are reads of the same state: any order of them is as good as another.
//!
//! Hence the history is linearizable if and only if (1) replaying the writes by revision gives every answer that was given, and
//! (2) that order does not contradict time: no request was called after another was answered, and has an earlier place.
//! One sort and one pass decide (2): the largest place among all that was answered before a call must not exceed the call's own.
//!
//! A write without an answer either happened or did not. If it did, some watch has told its revision, since one of them has followed all
//! keys to the end: then it is a write of that revision whose answer came never, so that only its call bounds it. If no watch
//! has told it, it did not happen: dropping what was never answered is always allowed. A revision of which neither an answer nor an event is
//! known is a violation by itself. An event or a progress notification counts as an answer: what a watch was told stays.
//!
//! What is compacted is a second object, a number that only grows, and is checked beside: linearizability of two objects
//! is that of each (Herlihy and Wing, 1990).

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    history::{
        Answer, Body, Change, Event, History, KeyValue, Keys, LeaseId, Message, Moment, Operation, Outcome, Refusal,
        Request, Revision, Value,
    },
    model::{Effect, Timeline},
    verdict::{Promise, Violation},
};

/// Replays a history. Returns what happened, and what contradicts it.
pub(crate) fn check(history: &History) -> (Timeline, Vec<Violation>) {
    let mut replay = Replay::new(history);
    replay.writes(history);
    for operation in &history.operations {
        replay.answer(operation);
    }
    for watch in &history.watches {
        for message in &watch.messages {
            replay.message(message);
        }
    }
    replay.against_time();
    replay.compactions(history);
    (replay.timeline, replay.violations)
}

/// A request, or something told, at its place in the order.
#[derive(Clone, Copy, Debug)]
struct Placed<'a> {
    place: i64,
    /// It happened after this.
    called: Moment,
    /// It happened before this; never, if nobody knows.
    returned: Option<Moment>,
    what: What<'a>,
}

#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "read by Debug, to say what contradicts what")]
enum What<'a> {
    Operation(&'a Operation),
    Told(Revision),
}

struct Replay<'a> {
    timeline: Timeline,
    placed: Vec<Placed<'a>>,
    violations: Vec<Violation>,
    puts: HashMap<&'a Value, &'a Operation>,
    deletes: HashMap<(&'a str, Revision), Vec<&'a Operation>>,
    revokes: HashMap<LeaseId, &'a Operation>,
    /// Values that were written once, and must not be again.
    used: HashSet<&'a Value>,
}

impl<'a> Replay<'a> {
    fn new(history: &'a History) -> Self {
        let mut replay = Self {
            timeline: Timeline::new(&history.before),
            placed: Vec::new(),
            violations: Vec::new(),
            puts: HashMap::new(),
            deletes: HashMap::new(),
            revokes: HashMap::new(),
            used: HashSet::new(),
        };
        for operation in &history.operations {
            match &operation.request {
                Request::Put { value, .. } => drop(replay.puts.insert(value, operation)),
                Request::Delete { key, guard, .. } => {
                    replay.deletes.entry((key, *guard)).or_default().push(operation);
                }
                Request::Revoke { lease } => drop(replay.revokes.insert(*lease, operation)),
                Request::Compact { revision, .. } => {
                    let done = matches!(operation.outcome, Outcome::Answered { .. });
                    if !matches!(operation.outcome, Outcome::Refused { .. }) {
                        replay.timeline.compact(operation.called, *revision, done);
                    }
                }
                Request::Range { .. } | Request::Grant { .. } => {}
            }
        }
        replay
    }

    fn violation(&mut self, what: String) {
        self.violations.push(Violation::new(Promise::Linearizable, what));
    }

    /// Builds the timeline from answered writes and from events.
    fn writes(&mut self, history: &'a History) {
        let mut answered: BTreeMap<Revision, &Operation> = BTreeMap::new();
        let mut told: BTreeMap<Revision, BTreeMap<&str, &Event>> = BTreeMap::new();
        let mut last = history.before.revision;
        for operation in &history.operations {
            let Outcome::Answered { answer, .. } = &operation.outcome else { continue };
            last = last.max(answer.revision());
            if let Answer::Written { revision } = answer
                && let Some(other) = answered.insert(*revision, operation)
            {
                self.violation(format!("two writes were given revision {revision}: {other:?} and {operation:?}"));
            }
        }
        for message in history.watches.iter().flat_map(|watch| &watch.messages) {
            match &message.body {
                Body::Events(events) => {
                    for event in events {
                        last = last.max(event.revision());
                        told.entry(event.revision()).or_default().entry(event.key()).or_insert(event);
                    }
                }
                Body::Progress(revision) => last = last.max(*revision),
                Body::Compacted(_) => {}
            }
        }
        if let Some((revision, operation)) = answered.iter().find(|(revision, _)| **revision <= history.before.revision)
        {
            self.violation(format!("revision {revision} was used before: {operation:?}"));
        }
        for revision in history.before.revision + 1..=last {
            match (answered.get(&revision), told.get(&revision)) {
                (None, None) => self.violation(format!("nobody knows what happened at revision {revision}")),
                (Some(operation), _) => self.answered_write(revision, operation),
                (None, Some(events)) => events.values().for_each(|event| self.told_write(revision, event)),
            }
        }
    }

    /// A write whose answer came.
    fn answered_write(&mut self, revision: Revision, operation: &'a Operation) {
        let (key, guard, effect) = match &operation.request {
            Request::Put { key, value, lease, guard, .. } => {
                self.used.insert(value);
                (key, *guard, Effect::Put { value: value.clone(), lease: *lease })
            }
            Request::Delete { key, guard, .. } => (key, Some(*guard), Effect::Delete),
            _ => return self.violation(format!("{operation:?} is no write, and was answered as one")),
        };
        self.guard_holds(key, guard, revision, operation);
        self.timeline.push(key, revision, effect);
        self.place(operation, 2 * revision);
    }

    /// A write that is only known from an event.
    fn told_write(&mut self, revision: Revision, event: &'a Event) {
        let writer = match &event.change {
            Change::Put(now) => self.writer_of(now),
            Change::Delete { key, .. } => self.deleter_of(key, revision),
        };
        let Some(operation) = writer else {
            return self.violation(format!("nobody asked for {event:?}"));
        };
        match &operation.outcome {
            Outcome::Unknown { .. } => {}
            Outcome::Answered { .. } if matches!(operation.request, Request::Revoke { .. }) => {}
            outcome => self.violation(format!("{event:?} happened, although its request was answered {outcome:?}")),
        }
        let effect = match &event.change {
            Change::Put(now) => {
                if let Request::Put { guard, .. } = &operation.request {
                    self.guard_holds(&now.key, *guard, revision, operation);
                }
                Effect::Put { value: now.value.clone(), lease: now.lease }
            }
            Change::Delete { .. } => Effect::Delete,
        };
        self.timeline.push(event.key(), revision, effect);
        // An answered revocation has more to say than one place: `answer` sees to it.
        let what = What::Operation(operation);
        self.placed.push(Placed { place: 2 * revision, called: operation.called, returned: None, what });
    }

    /// The request that wrote a value.
    fn writer_of(&mut self, now: &'a KeyValue) -> Option<&'a Operation> {
        let operation = *self.puts.get(&now.value)?;
        if !self.used.insert(&now.value) {
            self.violation(format!("{now:?} was written a second time"));
        }
        let Request::Put { key, lease, .. } = &operation.request else { return None };
        (*key == now.key && *lease == now.lease).then_some(operation)
    }

    /// The request that deleted a key: of several that could have, the one that was called first leaves most freedom.
    fn deleter_of(&self, key: &str, revision: Revision) -> Option<&'a Operation> {
        let was = self.timeline.at(key, revision - 1)?;
        let unknown = |operation: &&&Operation| matches!(operation.outcome, Outcome::Unknown { .. });
        let guarded = self.deletes.get(&(key, was.modified)).into_iter().flatten().filter(unknown);
        let guarded = guarded.min_by_key(|operation| operation.called).copied();
        guarded.or_else(|| self.revokes.get(&was.lease).copied())
    }

    fn guard_holds(&mut self, key: &str, guard: Option<Revision>, revision: Revision, operation: &Operation) {
        let was = self.timeline.at(key, revision - 1).map_or(0, |was| was.modified);
        if guard.is_some_and(|guard| guard != was) {
            self.violation(format!("{operation:?} was done although the key was at {was}"));
        }
    }

    fn place(&mut self, operation: &'a Operation, place: i64) {
        let returned = match operation.outcome {
            Outcome::Answered { at, .. } | Outcome::Refused { at, .. } => Some(at),
            Outcome::Unknown { .. } => None,
        };
        self.placed.push(Placed { place, called: operation.called, returned, what: What::Operation(operation) });
    }

    /// What was answered is what the timeline has.
    fn answer(&mut self, operation: &'a Operation) {
        let answer = match (&operation.request, &operation.outcome) {
            (_, Outcome::Answered { answer, .. }) => answer,
            // The revision was not there yet at some moment; that says nothing about what comes after.
            (Request::Range { revision: Some(revision), .. }, Outcome::Refused { refusal: Refusal::Future, .. }) => {
                let what = What::Operation(operation);
                self.placed.push(Placed { place: 2 * revision - 1, called: operation.called, returned: None, what });
                return;
            }
            _ => return,
        };
        let at = answer.revision();
        let wrong = match (&operation.request, answer) {
            (_, Answer::Written { .. }) => return,
            (Request::Range { keys, revision, limit }, Answer::Range { found, count, .. }) => {
                self.wrong_range(keys, revision.unwrap_or(at), *limit, found, *count)
            }
            (
                Request::Put { key, guard: Some(guard), .. } | Request::Delete { key, guard, .. },
                Answer::Mismatch { found, .. },
            ) => self.wrong_mismatch(key, *guard, at, found.as_ref()),
            (Request::Revoke { lease }, Answer::Done { .. }) => {
                let kept = self.timeline.range(&Keys::all(), at).find(|now| now.lease == *lease);
                kept.map(|kept| format!("the lease of {kept:?} is revoked"))
            }
            (Request::Compact { .. } | Request::Grant { .. }, Answer::Done { .. }) => None,
            _ => Some("this is no answer to that".to_owned()),
        };
        if let Some(wrong) = wrong {
            self.violation(format!("{wrong}: {operation:?}"));
        }
        self.place(operation, 2 * at + 1);
    }

    fn wrong_range(
        &self,
        keys: &Keys,
        revision: Revision,
        limit: i64,
        found: &[KeyValue],
        count: i64,
    ) -> Option<String> {
        if !self.timeline.knows(revision) {
            // From before this history.
            return None;
        }
        let all: Vec<_> = self.timeline.range(keys, revision).collect();
        let shown =
            usize::try_from(limit).ok().filter(|&limit| limit > 0).map_or(all.len(), |limit| limit.min(all.len()));
        if usize::try_from(count) != Ok(all.len()) {
            return Some(format!("there were {} keys at {revision}", all.len()));
        }
        if found.len() != shown {
            return Some(format!("{shown} keys had to be shown"));
        }
        let wrong = found.iter().zip(all).find(|(found, was)| found != was)?;
        Some(format!("{:?} was {:?} at {revision}", wrong.0.key, wrong.1))
    }

    fn wrong_mismatch(
        &self,
        key: &str,
        guard: Revision,
        at: Revision,
        found: Option<&Option<KeyValue>>,
    ) -> Option<String> {
        if !self.timeline.knows(at) {
            return None;
        }
        let was = self.timeline.at(key, at);
        if was.map_or(0, |was| was.modified) == guard {
            return Some(format!("the key was at {guard}"));
        }
        match found {
            Some(found) if found.as_ref() != was => Some(format!("the key was {was:?} at {at}")),
            _ => None,
        }
    }

    /// What a watch was told has happened by then.
    fn message(&mut self, message: &'a Message) {
        let newest = match &message.body {
            Body::Events(events) => events.iter().map(Event::revision).max(),
            Body::Progress(revision) => Some(*revision),
            Body::Compacted(_) => None,
        };
        if let Some(revision) = newest {
            let what = What::Told(revision);
            self.placed.push(Placed { place: 2 * revision + 1, called: Moment(0), returned: Some(message.at), what });
        }
    }

    /// The order of places does not contradict time.
    fn against_time(&mut self) {
        let mut by_call = self.placed.clone();
        by_call.sort_by_key(|placed| placed.called);
        let mut by_return: Vec<_> = self.placed.iter().filter_map(|placed| Some((placed.returned?, *placed))).collect();
        by_return.sort_by_key(|(returned, _)| *returned);
        let mut returned = by_return.into_iter().peekable();
        let mut newest: Option<Placed<'_>> = None;
        for placed in by_call {
            while let Some((_, before)) = returned.next_if(|(returned, _)| *returned < placed.called) {
                if newest.is_none_or(|newest| newest.place < before.place) {
                    newest = Some(before);
                }
            }
            if let Some(newest) = newest.filter(|newest| newest.place > placed.place) {
                self.violation(format!("{:?} goes back behind {:?}", placed.what, newest.what));
            }
        }
    }

    /// What is compacted only grows, and is refused from then on.
    fn compactions(&mut self, history: &History) {
        let mut done = vec![(Moment(0), history.before.compacted)];
        done.extend(history.operations.iter().filter_map(|operation| match (&operation.request, &operation.outcome) {
            (Request::Compact { revision, .. }, Outcome::Answered { at, .. }) => Some((*at, *revision)),
            _ => None,
        }));
        let floor = |called: Moment| done.iter().filter(|(at, _)| *at < called).map(|(_, revision)| *revision).max();
        let mut wrong = Vec::new();
        for operation in &history.operations {
            let floor = floor(operation.called).unwrap_or_default();
            match (&operation.request, &operation.outcome) {
                (Request::Range { revision: Some(revision), .. }, Outcome::Answered { .. }) if *revision < floor => {
                    wrong.push(format!("revisions before {floor} are compacted: {operation:?}"));
                }
                (Request::Compact { revision, .. }, Outcome::Answered { .. }) if *revision <= floor => {
                    wrong.push(format!("revision {floor} was compacted already: {operation:?}"));
                }
                (
                    Request::Range { revision: Some(revision), .. } | Request::Compact { revision, .. },
                    Outcome::Refused { at, refusal: Refusal::Compacted },
                ) => {
                    // A compaction of a revision is refused again at that revision, a read before it.
                    let oldest = revision - i64::from(matches!(operation.request, Request::Compact { .. }));
                    if !self.timeline.may_forget(oldest, *at) {
                        wrong.push(format!("revision {revision} is not compacted: {operation:?}"));
                    }
                }
                _ => {}
            }
        }
        for watch in &history.watches {
            let floor = floor(watch.called).unwrap_or_default();
            for message in &watch.messages {
                match &message.body {
                    Body::Events(events) if watch.start < floor => {
                        wrong.push(format!("revisions before {floor} are compacted, and were told: {events:?}"));
                    }
                    Body::Compacted(revision) if !self.timeline.may_forget(watch.start, message.at) => {
                        wrong.push(format!("a watch from {} was told that {revision} is compacted", watch.start));
                    }
                    _ => {}
                }
            }
        }
        wrong.into_iter().for_each(|wrong| self.violation(wrong));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        history::{Wanted, Watch},
        model::State,
    };

    /// A put of `/a`, called and answered at these moments, with the revision it was given.
    fn put(number: u64, guard: Option<Revision>, called: u64, answered: Option<(u64, Revision)>) -> Operation {
        let value = Value::Ours { number, padding: 0 };
        let request = Request::Put { key: "/a".to_owned(), value, lease: 0, guard, or_read: false };
        let outcome = match answered {
            Some((at, revision)) => Outcome::Answered { at: Moment(at), answer: Answer::Written { revision } },
            None => Outcome::Unknown { error: "the connection broke".to_owned() },
        };
        Operation { request, called: Moment(called), outcome }
    }

    /// A read of `/a` that found the value of this number, as it was written at `revision`.
    fn read(found: Option<u64>, called: u64, at: u64, revision: Revision) -> Operation {
        let value = |number| Value::Ours { number, padding: 0 };
        let found = found.map(|number| KeyValue {
            key: "/a".to_owned(),
            value: value(number),
            created: 2,
            modified: revision,
            version: revision - 1,
            lease: 0,
        });
        let count = i64::from(found.is_some());
        let answer = Answer::Range { revision, found: found.into_iter().collect(), count };
        let request = Request::Range { keys: Keys::One("/a".to_owned()), revision: None, limit: 0 };
        Operation { request, called: Moment(called), outcome: Outcome::Answered { at: Moment(at), answer } }
    }

    /// What is wrong with a history in which a watch was told these puts of `/a`.
    fn wrong(operations: &[Operation], told: &[(u64, Revision)]) -> Vec<String> {
        let event = |&(number, revision): &(u64, Revision)| {
            let value = Value::Ours { number, padding: 0 };
            let now = KeyValue {
                key: "/a".to_owned(),
                value,
                created: 2,
                modified: revision,
                version: revision - 1,
                lease: 0,
            };
            Event { change: Change::Put(now), previous: None }
        };
        let messages = match told {
            [] => Vec::new(),
            told => vec![Message { at: Moment(1000), body: Body::Events(told.iter().map(event).collect()) }],
        };
        let watch = Watch { keys: Keys::all(), start: 2, wanted: Wanted::All, called: Moment(0), messages };
        let history = History { before: State::default(), operations: operations.to_vec(), watches: vec![watch] };
        check(&history).1.into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn requests_that_overlap_may_happen_in_any_order() {
        let overlapping =
            [put(1, Some(0), 10, Some((50, 2))), put(2, None, 20, Some((30, 3))), read(Some(1), 15, 60, 2)];
        assert_eq!(wrong(&overlapping, &[(1, 2), (2, 3)]), Vec::<String>::new());
        // Called after the second write was answered, the read comes too late for the first.
        let late = [overlapping[0].clone(), overlapping[1].clone(), read(Some(1), 35, 60, 2)];
        assert!(wrong(&late, &[])[0].contains("goes back"));
    }

    #[test]
    fn what_nobody_answered_happened_or_did_not() {
        let unknown = put(2, Some(2), 20, None);
        let first = put(1, Some(0), 10, Some((15, 2)));
        assert_eq!(wrong(&[first.clone(), unknown.clone(), read(Some(1), 30, 40, 2)], &[]), Vec::<String>::new());
        let seen = [first.clone(), unknown.clone(), read(Some(2), 30, 40, 3)];
        assert_eq!(wrong(&seen, &[(2, 3)]), Vec::<String>::new());
        assert!(wrong(&seen, &[])[0].contains("nobody knows what happened at revision 3"));
        // Once it was seen it stays.
        let undone = [first, unknown, read(Some(2), 30, 40, 3), read(Some(1), 50, 60, 2)];
        assert!(wrong(&undone, &[(2, 3)])[0].contains("goes back"));
    }

    #[test]
    fn lost_invented_and_unguarded_writes_are_seen() {
        let acknowledged = put(1, Some(0), 10, Some((15, 2)));
        assert!(wrong(&[acknowledged.clone(), read(None, 20, 30, 2)], &[])[0].contains("there were 1 keys"));
        assert!(wrong(&[acknowledged.clone(), read(None, 20, 30, 1)], &[])[0].contains("goes back"));
        assert!(wrong(&[], &[(7, 2)])[0].contains("nobody asked for"));
        let unguarded = put(2, Some(0), 20, Some((25, 3)));
        assert!(wrong(&[acknowledged.clone(), unguarded], &[])[0].contains("although the key was at 2"));
        let reused = put(2, None, 20, Some((25, 2)));
        assert!(wrong(&[acknowledged, reused], &[])[0].contains("two writes were given revision 2"));
    }
}
