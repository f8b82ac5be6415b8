//! What etcd promises about watches, one function a promise.
//!
//! The list is etcd's (`tests/robustness/validate/watch.go` and the API guarantees in its documentation). Each function takes one watch
//! and what really happened, and says what is wrong.

use std::collections::HashSet;

use crate::{
    history::{Body, Change, Event, Message, Moment, Revision, Watch},
    model::Timeline,
    verdict::{Promise, Violation},
};

type Check = fn(&Watch, &Timeline) -> Option<String>;

const CHECKS: [(Promise, Check); 9] = [
    (Promise::Filter, filter),
    (Promise::Bookmarkable, bookmarkable),
    (Promise::Ordered, ordered),
    (Promise::Unique, unique),
    (Promise::Atomic, atomic),
    (Promise::Reliable, reliable),
    (Promise::Resumable, resumable),
    (Promise::PreviousValue, previous_value),
    (Promise::Creation, creation),
];

/// Holds a watch against all promises.
pub(crate) fn check(watch: &Watch, timeline: &Timeline) -> impl Iterator<Item = Violation> {
    CHECKS.into_iter().filter_map(move |(promise, check)| {
        let wrong = check(watch, timeline)?;
        let Watch { keys, start, wanted, .. } = watch;
        Some(Violation::new(promise, format!("{wrong} (watch of {keys:?}, {wanted:?}, from {start})")))
    })
}

/// Every event is of a key and of a kind that was asked for.
fn filter(watch: &Watch, _: &Timeline) -> Option<String> {
    let unwanted = events(watch).find(|(_, event)| !is_asked_for(watch, event))?;
    Some(format!("nobody asked for {:?}", unwanted.1))
}

/// A progress notification says that everything up to its revision was told: nothing of that is missing or comes later.
fn bookmarkable(watch: &Watch, timeline: &Timeline) -> Option<String> {
    let mut told = HashSet::new();
    let mut through = 0;
    for message in &watch.messages {
        match &message.body {
            Body::Events(events) => {
                if let Some(late) = events.iter().find(|event| event.revision() <= through) {
                    return Some(format!("{late:?} came after progress {through}"));
                }
                told.extend(events.iter().map(identity));
            }
            Body::Progress(revision) => {
                through = through.max(*revision);
                let missing = expected(watch, timeline, watch.start, through);
                if let Some(missing) = missing.into_iter().find(|event| !told.contains(&identity(event))) {
                    return Some(format!("progress {revision} came before {missing:?}"));
                }
            }
            Body::Compacted(_) => {}
        }
    }
    None
}

/// Revisions never go back.
fn ordered(watch: &Watch, _: &Timeline) -> Option<String> {
    let revisions: Vec<_> = events(watch).map(|(_, event)| event.revision()).collect();
    let back = revisions.windows(2).find(|pair| pair[0] > pair[1])?;
    Some(format!("revision {} came after {}", back[1], back[0]))
}

/// A revision of a key comes once.
fn unique(watch: &Watch, _: &Timeline) -> Option<String> {
    let mut told = HashSet::new();
    let again = events(watch).find(|(_, event)| !told.insert(identity(event)))?;
    Some(format!("{:?} came twice", again.1))
}

/// The events of a revision are in one message, and all of them.
fn atomic(watch: &Watch, timeline: &Timeline) -> Option<String> {
    watch.messages.iter().find_map(|message| {
        let Body::Events(events) = &message.body else { return None };
        let told: HashSet<_> = events.iter().map(identity).collect();
        let revisions: HashSet<_> = events.iter().map(Event::revision).collect();
        revisions.into_iter().find_map(|revision| {
            let missing = expected(watch, timeline, revision, revision);
            let missing = missing.into_iter().find(|event| !told.contains(&identity(event)))?;
            Some(format!("{missing:?} did not come with the others of its revision"))
        })
    })
}

/// From the first event to the last, and to the last progress, nothing is left out, and nothing else is there.
fn reliable(watch: &Watch, timeline: &Timeline) -> Option<String> {
    let told: Vec<_> = events(watch).map(|(_, event)| event).collect();
    let first = told.first()?.revision();
    let last = told.iter().map(|event| event.revision()).max()?;
    let wanted = expected(watch, timeline, first, last);
    let ids: HashSet<_> = told.iter().map(|event| identity(event)).collect();
    if let Some(missing) = wanted.iter().find(|event| !ids.contains(&identity(event))) {
        return Some(format!("{missing:?} was left out"));
    }
    let invented = told.iter().find(|event| {
        let happened = timeline.events(event.revision(), event.revision()).find(|other| other.key() == event.key());
        !happened.is_some_and(|happened| is_same_change(&happened.change, &event.change))
    })?;
    Some(format!("{invented:?} did not happen"))
}

/// The first event is the first that there is from the start on.
fn resumable(watch: &Watch, timeline: &Timeline) -> Option<String> {
    let (_, first) = events(watch).next()?;
    if first.revision() < watch.start {
        return Some(format!("{first:?} is from before the start"));
    }
    let missed = expected(watch, timeline, watch.start, first.revision() - 1);
    let missed = missed.first()?;
    Some(format!("{missed:?} was missed at the start; {} came first", first.revision()))
}

/// An event has what its key was before, unless that may be compacted.
fn previous_value(watch: &Watch, timeline: &Timeline) -> Option<String> {
    let wrong = events(watch).find(|(at, event)| {
        let before = event.revision() - 1;
        if !timeline.knows(before) {
            return false;
        }
        match (&event.previous, timeline.at(event.key(), before)) {
            (None, Some(_)) => !timeline.may_forget(before, *at),
            (shown, was) => shown.as_ref() != was,
        }
    })?;
    let was = timeline.at(wrong.1.key(), wrong.1.revision() - 1);
    Some(format!("{:?} should have had the previous {was:?}", wrong.1))
}

/// The create revision of an event is its own if the key was not there before, and older if it was.
fn creation(watch: &Watch, timeline: &Timeline) -> Option<String> {
    let wrong = events(watch).find(|(_, event)| {
        let Change::Put(now) = &event.change else { return false };
        let before = now.modified - 1;
        let was = timeline.at(&now.key, before);
        timeline.knows(before) && now.created != was.map_or(now.modified, |was| was.created)
    })?;
    Some(format!("{:?} has the wrong create revision", wrong.1))
}

/// All events, with the moment at which they came.
fn events(watch: &Watch) -> impl Iterator<Item = (Moment, &Event)> {
    watch.messages.iter().flat_map(|Message { at, body }| {
        let events = if let Body::Events(events) = body { events.as_slice() } else { &[] };
        events.iter().map(|event| (*at, event))
    })
}

/// What the watch has to tell of these revisions.
fn expected<'a>(watch: &Watch, timeline: &'a Timeline, from: Revision, to: Revision) -> Vec<&'a Event> {
    timeline.events(from, to).filter(|event| is_asked_for(watch, event)).collect()
}

fn is_asked_for(watch: &Watch, event: &Event) -> bool {
    watch.keys.contain(event.key()) && watch.wanted.contains(event)
}

fn identity(event: &Event) -> (Revision, &str) {
    (event.revision(), event.key())
}

/// Whether two events are of the same write; what they say about the creation is [`creation`]'s.
fn is_same_change(left: &Change, right: &Change) -> bool {
    match (left, right) {
        (Change::Put(left), Change::Put(right)) => {
            (&left.key, &left.value, left.modified, left.version, left.lease)
                == (&right.key, &right.value, right.modified, right.version, right.lease)
        }
        (left, right) => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        history::{Keys, Value, Wanted},
        model::{Effect, State},
    };

    /// `/a` is put at 2, `/b` at 3, `/a` at 4, and both are deleted at 5.
    fn timeline() -> Timeline {
        let mut timeline = Timeline::new(&State::default());
        for (revision, key) in [(2, "/a"), (3, "/b"), (4, "/a")] {
            let value = Value::Ours { number: 0, padding: 0 };
            timeline.push(key, revision, Effect::Put { value, lease: 0 });
        }
        timeline.push("/a", 5, Effect::Delete);
        timeline.push("/b", 5, Effect::Delete);
        timeline
    }

    /// A watch that was told these revisions, in these messages; a negative one is progress.
    fn watch(messages: &[&[Revision]]) -> Watch {
        let timeline = timeline();
        let body = |revisions: &&[Revision]| match revisions {
            [progress] if *progress < 0 => Body::Progress(-progress),
            _ => Body::Events(revisions.iter().flat_map(|&at| timeline.events(at, at)).cloned().collect()),
        };
        let message = |revisions| Message { at: Moment(0), body: body(revisions) };
        let messages = messages.iter().map(message).collect();
        Watch { keys: Keys::all(), start: 2, wanted: Wanted::All, called: Moment(0), messages }
    }

    fn broken(watch: &Watch) -> Vec<Promise> {
        check(watch, &timeline()).map(|violation| violation.promise).collect()
    }

    #[test]
    fn a_watch_that_tells_all_keeps_every_promise() {
        assert_eq!(broken(&watch(&[&[2, 3], &[-3], &[4, 5], &[-5]])), []);
        assert_eq!(broken(&watch(&[&[2]])), [], "the rest may still come");
        let of_one = Watch { keys: Keys::One("/b".to_owned()), ..watch(&[]) };
        let mut puts = Watch { wanted: Wanted::Puts, ..of_one };
        puts.messages = watch(&[&[3], &[-5]]).messages;
        assert_eq!(broken(&puts), []);
    }

    #[test]
    fn each_promise_is_broken_by_its_own_mistake() {
        let breaks = |promise, watch: &Watch| assert!(broken(watch).contains(&promise), "{promise:?}: {watch:?}");
        breaks(Promise::Filter, &Watch { keys: Keys::One("/b".to_owned()), ..watch(&[&[2, 3]]) });
        breaks(Promise::Bookmarkable, &watch(&[&[2, 3], &[-4], &[4]]));
        breaks(Promise::Bookmarkable, &watch(&[&[-2]]));
        breaks(Promise::Ordered, &watch(&[&[2, 4], &[3]]));
        breaks(Promise::Unique, &watch(&[&[2], &[2]]));
        breaks(Promise::Reliable, &watch(&[&[2, 4]]));
        breaks(Promise::Resumable, &watch(&[&[3]]));
        let mut halved = watch(&[&[2, 3, 4], &[5], &[5]]);
        for (message, keep) in [(1, "/a"), (2, "/b")] {
            let Body::Events(events) = &mut halved.messages[message].body else { unreachable!("it has events") };
            events.retain(|event| event.key() == keep);
        }
        assert_eq!(broken(&halved), [Promise::Atomic]);
    }

    #[test]
    fn an_event_shows_what_was_before() {
        let mut wrong = watch(&[&[2, 3, 4]]);
        let Body::Events(events) = &mut wrong.messages[0].body else { unreachable!("it has events") };
        events[2].previous = None;
        assert_eq!(broken(&wrong), [Promise::PreviousValue]);
        let mut wrong = watch(&[&[2, 3, 4]]);
        let Body::Events(events) = &mut wrong.messages[0].body else { unreachable!("it has events") };
        let Change::Put(now) = &mut events[2].change else { unreachable!("it is a put") };
        now.created = 4;
        assert_eq!(broken(&wrong), [Promise::Creation]);
    }
}
