//! One connection of a session: what waits to be read, and whether either side has to wait.
//!
//! ```text
//!       ┌─our CloseWrite────────▶ only read ────the peer's─┐
//! open ─┤                                                  ├─▶ ended: what has come can still be read ──▶ released
//!   │   └─the peer's CloseWrite─▶ only written ───────ours─┘ ▲
//!   └───────────an Error of either side, or a sweep──────────┘
//! ```

use crate::{message::Ending, unread::Unread};

/// Above this many unread bytes the peer is asked to pause.
pub(crate) const PAUSE_ABOVE: usize = 2 << 20;
/// Below this many it is asked to resume.
pub(crate) const RESUME_BELOW: usize = PAUSE_ABOVE / 8;
/// What writers may have waiting to be sent, bytes.
pub(crate) const WRITE_AHEAD: usize = 64 << 10;

/// A connection as one side sees it.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    unread: Unread,
    /// Nothing comes any more.
    incoming: Option<Ending>,
    /// Nothing may be written any more.
    outgoing: Option<Ending>,
    /// We asked the peer to pause.
    reading: Flow,
    /// The peer asked us to.
    writing: Flow,
    /// What it takes to hold what was written and not yet sent, bytes.
    unsent: usize,
    /// Whether the client is known to have it: it spoke of it, or named it in a list.
    pub(crate) confirmed: bool,
    /// Whether it was there when the client last sent a list.
    pub(crate) listed: bool,
}

/// Whether data goes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Flow {
    /// It does.
    #[default]
    Running,
    /// The reader has enough for now.
    Paused,
}

/// What becomes of data that has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// It waits to be read.
    Kept,
    /// The same, and the peer has to be told to pause.
    Pause,
    /// The peer did not heed that: there is no room.
    Excess,
}

impl Connection {
    /// At least one direction has not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.incoming.is_none() || self.outgoing.is_none()
    }

    /// How what comes ended.
    pub(crate) fn incoming_ending(&self) -> Option<&Ending> {
        self.incoming.as_ref()
    }

    /// How what is written ended.
    pub(crate) fn outgoing_ending(&self) -> Option<&Ending> {
        self.outgoing.as_ref()
    }

    /// Ends both directions. For each only its first reason counts.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.incoming.get_or_insert_with(|| ending.clone());
        self.outgoing.get_or_insert(ending);
    }

    /// The peer writes no more.
    pub(crate) fn end_incoming(&mut self) {
        self.incoming.get_or_insert(Ending::Eof);
    }

    /// Our side writes no more.
    pub(crate) fn end_outgoing(&mut self) {
        self.outgoing.get_or_insert(Ending::Eof);
    }

    /// Takes data of the peer's, where no more than `room` bytes are unread with it.
    pub(crate) fn receive(&mut self, bytes: &[u8], room: usize) -> Received {
        if self.unread.len() + bytes.len() > room {
            return Received::Excess;
        }
        self.unread.extend(bytes);
        if self.unread.len() > PAUSE_ABOVE && self.reading == Flow::Running {
            self.reading = Flow::Paused;
            return Received::Pause;
        }
        Received::Kept
    }

    /// The next bytes to read, as far as they lie side by side; none if all were.
    pub(crate) fn unread(&self) -> &[u8] {
        self.unread.next()
    }

    /// `count` of these bytes were read. Returns whether the peer has to be told to resume.
    pub(crate) fn consume(&mut self, count: usize) -> bool {
        self.unread.consume(count);
        let resumes = self.reading == Flow::Paused && self.unread.len() < RESUME_BELOW;
        if resumes {
            self.reading = Flow::Running;
        }
        resumes
    }

    /// What the peer asked for.
    pub(crate) fn set_writing(&mut self, flow: Flow) {
        self.writing = flow;
    }

    /// Whether more may be written now.
    pub(crate) fn may_write(&self) -> bool {
        self.writing == Flow::Running && self.unsent < WRITE_AHEAD
    }

    /// What takes `cost` bytes waits to be sent.
    pub(crate) fn wrote(&mut self, cost: usize) {
        self.unsent += cost;
    }

    /// It was sent.
    pub(crate) fn sent(&mut self, cost: usize) {
        self.unsent -= cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::LEAST as ROOM;

    static CHUNK: [u8; 32 << 10] = [7; 32 << 10];

    #[test]
    fn the_peer_pauses_above_2_mib_and_resumes_below_256_kib() {
        let mut connection = Connection::default();
        for _ in 0..64 {
            assert_eq!(connection.receive(&CHUNK, ROOM), Received::Kept);
        }
        assert_eq!(connection.receive(b"!", ROOM), Received::Pause);
        assert_eq!(connection.receive(&CHUNK, ROOM), Received::Kept, "it was told once");

        let mut left = (2 << 20) + CHUNK.len() + 1;
        while left >= 256 << 10 {
            let count = connection.unread().len().min(4096);
            left -= count;
            assert_eq!(connection.consume(count), left < 256 << 10, "{left}");
        }
        assert!(!connection.consume(1), "it was told once");
    }

    #[test]
    fn a_peer_that_does_not_heed_a_pause_is_given_up() {
        let mut connection = Connection::default();
        let taken = (0..).take_while(|_| connection.receive(&CHUNK, ROOM) != Received::Excess).count();
        assert_eq!(taken * CHUNK.len(), ROOM);
    }
}
