//! When a connection has waited long enough for its client.
//!
//! ```text
//!          90 s without a request, or asked to            5 s without a request
//! serving ───────────────────────────────────▶ draining ────────────────────────▶ over
//!    │ 32 s for a head (HTTP/1.1); 60 s for a stranger's turn in a request          ▲
//!    └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The limits are kube-apiserver's. Requests of clients that have shown credentials have none here: watches and `exec` last for hours, and
//! pings tell whether somebody is there.

use std::time::Duration;

use tokio::time::Instant;

use crate::{handshake::Protocol, requests::Snapshot};

/// For the head of a request on HTTP/1.1: from its first byte, and for the first one from the beginning.
const HEAD: Duration = Duration::from_secs(32);
/// Without requests.
const IDLE: Duration = Duration::from_secs(90);
/// For a stranger to send the rest of a request, or to take the next piece of its answer: kube-apiserver's `--request-timeout`.
const STRANGERS_TURN: Duration = Duration::from_secs(60);
/// For the last answer to leave, and for a client on HTTP/2 to hear that it is to go.
const FAREWELL: Duration = Duration::from_secs(5);

/// A connection's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    protocol: Protocol,
    draining_since: Option<Instant>,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing before then; `None`: nothing as things stand.
    Nothing(Option<Instant>),
    /// The client is to be told to go.
    Drain,
    /// The connection is over.
    End,
}

impl Clock {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, draining_since: None }
    }

    /// The client was told to go.
    pub(crate) fn drain(&mut self, now: Instant) {
        self.draining_since.get_or_insert(now);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining_since.is_some()
    }

    pub(crate) fn due(&self, requests: &Snapshot, is_stranger: bool, now: Instant) -> Due {
        let (deadline, then) = match (requests.running, self.draining_since) {
            (0, Some(since)) => (since.max(requests.quiet_since) + FAREWELL, Due::End),
            (0, None) => self.without_requests(requests),
            _ if !is_stranger => return Due::Nothing(None),
            // That it becomes the client's turn is not told: whether it is has to be looked at again.
            _ => (requests.waiting_since.unwrap_or(now) + STRANGERS_TURN, Due::End),
        };
        if now < deadline { Due::Nothing(Some(deadline)) } else { then }
    }

    fn without_requests(&self, requests: &Snapshot) -> (Instant, Due) {
        match (self.protocol, requests.reading_since) {
            (Protocol::Http1, Some(since)) => (since + HEAD, Due::End),
            (Protocol::Http1, None) if requests.is_new => (requests.quiet_since + HEAD, Due::End),
            _ => (requests.quiet_since + IDLE, Due::Drain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A connection on which a request ended just now.
    fn quiet(now: Instant) -> Snapshot {
        Snapshot { running: 0, is_new: false, quiet_since: now, reading_since: None, waiting_since: None }
    }

    /// What comes when nothing changes: after how many seconds, and what.
    fn next(clock: &Clock, requests: &Snapshot, is_stranger: bool, now: Instant) -> Option<(u64, Due)> {
        let Due::Nothing(deadline) = clock.due(requests, is_stranger, now) else { panic!("nothing is due yet") };
        let deadline = deadline?;
        Some(((deadline - now).as_secs(), clock.due(requests, is_stranger, deadline)))
    }

    #[test]
    fn clients_have_as_long_as_kube_apiserver_gives_them() {
        let now = Instant::now();
        let (http1, http2) = (Clock::new(Protocol::Http1), Clock::new(Protocol::Http2));
        let new = Snapshot { is_new: true, ..quiet(now) };
        let reading = Snapshot { reading_since: Some(now), ..quiet(now - 80 * SECOND) };
        for (clock, requests, expected) in [
            (&http1, new, (32, Due::End)),
            (&http1, quiet(now), (90, Due::Drain)),
            (&http1, reading, (32, Due::End)),
            (&http2, new, (90, Due::Drain)),
            (&http2, reading, (10, Due::Drain)),
        ] {
            assert_eq!(next(clock, &requests, true, now), Some(expected));
            assert_eq!(next(clock, &requests, false, now), Some(expected));
        }
    }

    #[test]
    fn requests_last_as_long_as_they_like_unless_a_stranger_holds_them_up() {
        let now = Instant::now();
        let clock = Clock::new(Protocol::Http2);
        let running = Snapshot { running: 2, ..quiet(now) };
        assert_eq!(next(&clock, &running, false, now), None);
        let Due::Nothing(Some(later)) = clock.due(&running, true, now) else { panic!("looked at again") };
        assert_eq!(clock.due(&running, true, later), Due::Nothing(Some(later + STRANGERS_TURN)), "it was our turn");
        let held_up = Snapshot { waiting_since: Some(now - 50 * SECOND), ..running };
        assert_eq!(next(&clock, &held_up, true, now), Some((10, Due::End)));
        assert_eq!(next(&clock, &held_up, false, now), None);
    }

    #[test]
    fn a_client_that_was_told_to_go_has_gone_soon_after_its_last_answer() {
        let now = Instant::now();
        let mut clock = Clock::new(Protocol::Http2);
        clock.drain(now);
        assert_eq!(next(&clock, &Snapshot { running: 1, ..quiet(now) }, false, now), None);
        assert_eq!(next(&clock, &quiet(now - 9 * SECOND), false, now), Some((5, Due::End)));
        assert_eq!(next(&clock, &quiet(now + 9 * SECOND), false, now + 9 * SECOND), Some((5, Due::End)));
    }
}
