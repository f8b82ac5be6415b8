//! When to ping, when to send the list of connections, and when the peer counts as gone.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::Role;

/// How often a client pings, and how often it sends its list; servers only answer.
const PING: Duration = Duration::from_secs(5);
const SYNC: Duration = Duration::from_secs(60);
/// How long a peer may say nothing, and how long it may take nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clocks of a session. remotedialer's, but for one thing: there only pings and pongs show that a peer lives, here all
/// that it says, since on a slow line a ping waits behind data.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    own: Option<Own>,
    heard: Instant,
    /// Since when the peer takes nothing.
    blocked: Option<Instant>,
}

/// What a client does by itself.
#[derive(Debug)]
struct Own {
    ping: Instant,
    sync: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    Ping,
    Sync,
    /// The peer is gone.
    Gone(Gone),
}

/// How it is known that a peer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// It said nothing.
    #[error("the peer has said nothing for {} s", PATIENCE.as_secs())]
    Silent,
    /// It took nothing of what waits to be sent.
    #[error("the peer has taken nothing for {} s", PATIENCE.as_secs())]
    Deaf,
}

impl Heartbeat {
    pub(crate) fn new(role: Role, now: Instant) -> Self {
        let own = (role == Role::Client).then(|| Own { ping: now + PING, sync: now + SYNC });
        Self { own, heard: now, blocked: None }
    }

    /// The peer said something.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// The peer takes nothing now.
    pub(crate) fn blocked(&mut self, now: Instant) {
        self.blocked.get_or_insert(now);
    }

    /// The peer took something.
    pub(crate) fn unblocked(&mut self) {
        self.blocked = None;
    }

    /// When [`beat`](Self::beat) has something to say, unless the peer is heard before.
    pub(crate) fn due(&self) -> Instant {
        let own = self.own.iter().flat_map(|own| [own.ping, own.sync]);
        let blocked = self.blocked.map(|since| since + PATIENCE);
        own.chain(blocked).fold(self.heard + PATIENCE, Instant::min)
    }

    /// The first thing that is due.
    pub(crate) fn beat(&mut self, now: Instant) -> Option<Beat> {
        if now >= self.heard + PATIENCE {
            return Some(Beat::Gone(Gone::Silent));
        }
        if self.blocked.is_some_and(|since| now >= since + PATIENCE) {
            return Some(Beat::Gone(Gone::Deaf));
        }
        let own = self.own.as_mut()?;
        if now >= own.sync {
            own.sync = now + SYNC;
            return Some(Beat::Sync);
        }
        (now >= own.ping).then(|| {
            own.ping = now + PING;
            Beat::Ping
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// What is due within `seconds`, and after how many.
    fn beats(heartbeat: &mut Heartbeat, start: Instant, within: u64) -> Vec<(u64, Beat)> {
        let mut beats = Vec::new();
        while heartbeat.due() <= start + seconds(within) {
            let now = heartbeat.due();
            while let Some(beat) = heartbeat.beat(now) {
                beats.push(((now - start).as_secs(), beat));
                if matches!(beat, Beat::Gone(_)) {
                    return beats;
                }
                heartbeat.heard(now);
            }
        }
        beats
    }

    #[test]
    fn a_client_pings_every_five_seconds_and_lists_every_minute() {
        let start = Instant::now();
        let mut client = Heartbeat::new(Role::Client, start);
        let beats = beats(&mut client, start, 120);
        let pings: Vec<u64> = beats.iter().filter(|(_, beat)| *beat == Beat::Ping).map(|(at, _)| *at).collect();
        assert_eq!(pings, (1..=24).map(|n| 5 * n).collect::<Vec<_>>());
        let syncs: Vec<u64> = beats.iter().filter(|(_, beat)| *beat == Beat::Sync).map(|(at, _)| *at).collect();
        assert_eq!(syncs, [60, 120]);
    }

    #[test]
    fn a_server_only_waits() {
        let start = Instant::now();
        let mut server = Heartbeat::new(Role::Server, start);
        server.heard(start + seconds(30));
        assert_eq!(server.due(), start + seconds(90));
        assert_eq!(server.beat(start + seconds(89)), None);
        assert_eq!(server.beat(start + seconds(90)), Some(Beat::Gone(Gone::Silent)));
    }

    #[test]
    fn a_peer_that_talks_and_takes_nothing_is_gone_too() {
        let start = Instant::now();
        let mut server = Heartbeat::new(Role::Server, start);
        server.blocked(start + seconds(1));
        server.blocked(start + seconds(20));
        server.heard(start + seconds(50));
        assert_eq!(server.due(), start + seconds(61));
        server.unblocked();
        assert_eq!(server.beat(start + seconds(61)), None);
        server.blocked(start + seconds(70));
        server.heard(start + seconds(129));
        assert_eq!(server.beat(start + seconds(130)), Some(Beat::Gone(Gone::Deaf)));
    }
}
