//! The life of one child, as a pure function: what happened goes in, what to do comes out.

use serde::{Deserialize, Serialize};

/// Where a child is in its life.
///
/// ```text
///          cleared             answered
/// Waiting ─────────▶ Starting ──────────▶ Ready
///                     ▲ ▲  │ exited        │ │ stuck,
///              retry  │ │  ▼               │ │ restart asked (from Starting too)
///               due   │ └─ Backoff ◀───────┘ │
///                     │              exited  ▼
///                     └────── exited ── Restarting
///
/// stop asked, from anywhere ──▶ Stopping ── exited ──▶ Stopped     (at once where nothing runs)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Something that it is after has not been ready yet.
    Waiting,
    /// It runs and does not answer yet.
    Starting,
    /// It runs and has answered.
    Ready,
    /// It has exited on its own and is started anew after a pause.
    Backoff,
    /// It was asked to end, to be started anew.
    Restarting,
    /// It was asked to end.
    Stopping,
    /// It has ended for good.
    Stopped,
}

/// What can happen to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// All that it is after has been ready once.
    Cleared,
    /// Its readiness probe said yes.
    Answered,
    /// Its liveness probe said no too often.
    Stuck,
    /// Its process has ended, or could not be started.
    Exited,
    /// The pause before the next start is over.
    RetryDue,
    /// The time it was given to end by itself is over.
    GraceOver,
    /// Somebody wants it started anew.
    RestartAsked,
    /// The supervisor stops.
    StopAsked,
}

/// What has to be done about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start its process.
    Spawn,
    /// Send the polite signal; [`Event::GraceOver`] follows if the process is still there when its time is over.
    Terminate,
    /// Send SIGKILL.
    Kill,
}

impl State {
    /// The next state, and what to do. Events that mean nothing in a state change nothing.
    pub(crate) fn on(self, event: Event) -> (Self, Option<Action>) {
        match (self, event) {
            (Self::Waiting, Event::Cleared) => (Self::Starting, Some(Action::Spawn)),
            (Self::Waiting | Self::Backoff, Event::StopAsked) => (Self::Stopped, None),

            (Self::Starting, Event::Answered) => (Self::Ready, None),
            (Self::Starting | Self::Ready, Event::Exited) => (Self::Backoff, None),
            (Self::Starting | Self::Ready, Event::Stuck | Event::RestartAsked) => {
                (Self::Restarting, Some(Action::Terminate))
            }
            (Self::Starting | Self::Ready, Event::StopAsked) => (Self::Stopping, Some(Action::Terminate)),

            (Self::Backoff, Event::RetryDue | Event::RestartAsked) => (Self::Starting, Some(Action::Spawn)),

            (Self::Restarting | Self::Stopping, Event::GraceOver) => (self, Some(Action::Kill)),
            (Self::Restarting, Event::Exited) => (Self::Starting, Some(Action::Spawn)),
            (Self::Restarting, Event::StopAsked) => (Self::Stopping, None),
            (Self::Stopping, Event::Exited) => (Self::Stopped, None),

            (state, _) => (state, None),
        }
    }

    /// Whether it answers now.
    pub fn is_ready(self) -> bool {
        self == Self::Ready
    }

    /// Whether a process may be there.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Restarting | Self::Stopping)
    }

    /// Whether its life is over.
    pub fn is_stopped(self) -> bool {
        self == Self::Stopped
    }

    /// Its name, as `k3s status` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Backoff => "backoff",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const EVENTS: [Event; 8] = [
        Event::Cleared,
        Event::Answered,
        Event::Stuck,
        Event::Exited,
        Event::RetryDue,
        Event::GraceOver,
        Event::RestartAsked,
        Event::StopAsked,
    ];

    fn walk(events: &[Event]) -> (State, Vec<Action>) {
        let mut actions = Vec::new();
        let state = events.iter().fold(State::Waiting, |state, event| {
            let (next, action) = state.on(*event);
            actions.extend(action);
            next
        });
        (state, actions)
    }

    #[test]
    fn a_good_life() {
        use Event::{Answered, Cleared, Exited, StopAsked};
        assert_eq!(
            walk(&[Cleared, Answered, StopAsked, Exited]),
            (State::Stopped, vec![Action::Spawn, Action::Terminate])
        );
    }

    #[test]
    fn an_exit_is_followed_by_a_pause_and_another_start() {
        use Event::{Answered, Cleared, Exited, RetryDue};
        assert_eq!(walk(&[Cleared, Answered, Exited]).0, State::Backoff);
        assert_eq!(walk(&[Cleared, Answered, Exited, RetryDue]), (State::Starting, vec![Action::Spawn, Action::Spawn]));
    }

    #[test]
    fn a_stuck_child_is_ended_first_and_by_force_if_need_be() {
        use Event::{Answered, Cleared, Exited, GraceOver, Stuck};
        assert_eq!(
            walk(&[Cleared, Answered, Stuck, GraceOver, Exited]),
            (State::Starting, vec![Action::Spawn, Action::Terminate, Action::Kill, Action::Spawn])
        );
    }

    #[test]
    fn stop_overrules_restart() {
        use Event::{Cleared, Exited, RestartAsked, StopAsked};
        assert_eq!(
            walk(&[Cleared, RestartAsked, StopAsked, Exited]),
            (State::Stopped, vec![Action::Spawn, Action::Terminate])
        );
    }

    proptest! {
        /// Whatever happens in whatever order: never two processes at once, no signal to none, and an end that is the end.
        #[test]
        fn one_process_at_most(events in vec(select(&EVENTS[..]), 0..40)) {
            let mut state = State::Waiting;
            let mut alive = false;
            let mut stop_asked = false;
            for event in events {
                if event == Event::Exited && !alive {
                    continue;
                }
                alive &= event != Event::Exited;
                stop_asked |= event == Event::StopAsked;
                let (next, action) = state.on(event);
                match action {
                    Some(Action::Spawn) => {
                        prop_assert!(!alive && !stop_asked);
                        alive = true;
                    }
                    Some(Action::Terminate | Action::Kill) => prop_assert!(alive),
                    None => {}
                }
                prop_assert_eq!(next.is_running(), alive);
                prop_assert!(!state.is_stopped() || next.is_stopped());
                state = next;
            }
        }

        /// From anywhere, stop and an exit lead to the end.
        #[test]
        fn stop_always_ends(events in vec(select(&EVENTS[..]), 0..40)) {
            let (state, _) = walk(&events).0.on(Event::StopAsked);
            prop_assert!(state.on(Event::Exited).0.is_stopped());
        }
    }
}
