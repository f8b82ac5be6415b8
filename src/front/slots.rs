//! Which connection carries the next stream.
//!
//! Each [`Party`] has connections of its own: what happens to them, nobody else feels.
//!
//! kube-apiserver allows 100 streams on a connection, and a watch holds one for ever. A connection is filled up to
//! [`LIMIT`], below that, since a stream that ended here may not have ended there yet. The connection of the lowest [`Rank`] with room is
//! taken: so the others empty, and can be closed.
//!
//! ```text
//! open ──▶ in use ◀──▶ empty ──▶ retired (nobody came, or the room was needed)
//!             └───────────┴─────▶ removed (it failed, or kube-apiserver sent GOAWAY)
//! ```
//!
//! A stream that its client reset before it was answered rests: it keeps its slot for a while, since kube-apiserver still works on it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{party::Party, rank::Rank};

/// Streams on one connection.
pub(super) const LIMIT: usize = 79;
/// Connections of all parties: kube-apiserver takes some 100 KiB for each, we half of that.
const CONNECTIONS: usize = 4096;
/// Streams of one party that rest. Go's HTTP/2 server ends a connection when 400 are waiting behind its 100.
const RESTING: usize = 4 * LIMIT;

/// A connection; younger ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64);

/// The connections that take streams, each with its handle.
#[derive(Debug)]
pub(super) struct Slots<H> {
    parties: HashMap<Arc<Party>, Connections<H>>,
    next: u64,
    connections: usize,
}

/// A party's.
#[derive(Debug)]
struct Connections<H> {
    slots: BTreeMap<Id, Slot<H>>,
    resting: usize,
}

#[derive(Debug)]
struct Slot<H> {
    handle: H,
    rank: Rank,
    streams: usize,
}

/// Why there is no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exhausted {
    /// All connections are in use.
    #[error("the server has as many connections to kube-apiserver as it may")]
    Connections,
    /// All that this party may have are in use.
    #[error("the client has as many requests running as it may")]
    OfParty,
    /// kube-apiserver still works on what this party no longer waits for.
    #[error("too many requests were given up before they were answered")]
    Resting,
}

/// Whether a stream that ends has rested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It was in use.
    Used,
    /// It was reset some time ago.
    Rested,
}

impl<H: Clone> Slots<H> {
    /// No connections.
    pub(super) fn new() -> Self {
        Self { parties: HashMap::new(), next: 0, connections: 0 }
    }

    /// Takes a stream of the party's first connection with room that is younger than `than`; `None` asks for [`open`](Self::open).
    pub(super) fn take(&mut self, party: &Party, than: Option<Id>) -> Result<Option<(Id, H)>, Exhausted> {
        let Some(connections) = self.parties.get_mut(party) else { return Ok(None) };
        if connections.resting >= RESTING {
            return Err(Exhausted::Resting);
        }
        let with_room = connections.slots.iter_mut().filter(|(id, slot)| slot.streams < LIMIT && Some(**id) > than);
        Ok(with_room.min_by_key(|(_, slot)| slot.rank).map(|(id, slot)| {
            slot.streams += 1;
            (*id, slot.handle.clone())
        }))
    }

    /// Which rank the party's next connection has.
    pub(super) fn next_rank(&self, party: &Party) -> Result<Rank, Exhausted> {
        let is_free = |rank: &Rank| {
            let connections = self.parties.get(party);
            connections.is_none_or(|connections| connections.slots.values().all(|slot| slot.rank != *rank))
        };
        Rank::all().find(is_free).ok_or(Exhausted::OfParty)
    }

    /// Adds a connection and takes its first stream.
    pub(super) fn open(&mut self, party: &Arc<Party>, rank: Rank, handle: H) -> Id {
        let id = Id(self.next);
        self.next += 1;
        self.connections += 1;
        self.of(party).slots.insert(id, Slot { handle, rank, streams: 1 });
        id
    }

    /// Makes room for one more connection: removes an empty one if there are as many as may be, and returns what is to be closed.
    pub(super) fn make_room(&mut self) -> Result<Option<H>, Exhausted> {
        if self.connections < CONNECTIONS {
            return Ok(None);
        }
        let empty = self.parties.iter().find_map(|(party, connections)| {
            let (id, slot) = connections.slots.iter().find(|(_, slot)| slot.streams == 0)?;
            Some((party.clone(), *id, slot.handle.clone()))
        });
        let (party, id, handle) = empty.ok_or(Exhausted::Connections)?;
        self.remove(&party, id);
        Ok(Some(handle))
    }

    /// A stream was reset, and begins to rest.
    pub(super) fn rest(&mut self, party: &Arc<Party>) {
        self.of(party).resting += 1;
    }

    /// A stream has ended; returns the connection if that leaves it empty.
    pub(super) fn give_back(&mut self, party: &Party, id: Id, ending: Ending) -> Option<&H> {
        let connections = self.parties.get_mut(party)?;
        if ending == Ending::Rested {
            connections.resting = connections.resting.saturating_sub(1);
        }
        if let Some(slot) = connections.slots.get_mut(&id) {
            slot.streams -= 1;
        }
        self.forget_if_unused(party);
        let slot = self.parties.get(party)?.slots.get(&id)?;
        (slot.streams == 0).then_some(&slot.handle)
    }

    /// Takes no more streams of this connection; those it has go on.
    pub(super) fn remove(&mut self, party: &Party, id: Id) {
        let Some(connections) = self.parties.get_mut(party) else { return };
        if connections.slots.remove(&id).is_some() {
            self.connections -= 1;
        }
        self.forget_if_unused(party);
    }

    /// Removes the connection if it is empty.
    pub(super) fn retire(&mut self, party: &Party, id: Id) -> bool {
        let slot = self.parties.get(party).and_then(|connections| connections.slots.get(&id));
        let empty = slot.is_some_and(|slot| slot.streams == 0);
        if empty {
            self.remove(party, id);
        }
        empty
    }

    fn of(&mut self, party: &Arc<Party>) -> &mut Connections<H> {
        let none = || Connections { slots: BTreeMap::new(), resting: 0 };
        self.parties.entry(party.clone()).or_insert_with(none)
    }

    fn forget_if_unused(&mut self, party: &Party) {
        let unused = |connections: &Connections<H>| connections.slots.is_empty() && connections.resting == 0;
        if self.parties.get(party).is_some_and(unused) {
            self.parties.remove(party);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::CONNECTIONS_OF_PARTY;

    fn party(name: &str) -> Arc<Party> {
        Arc::new(Party::Certificate(name.to_owned()))
    }

    /// Opens a connection, and takes its first stream.
    fn open(slots: &mut Slots<()>, party: &Arc<Party>) -> Id {
        let rank = slots.next_rank(party).unwrap();
        slots.open(party, rank, ())
    }

    /// Takes a stream, opening a connection if need be.
    fn stream(slots: &mut Slots<()>, party: &Arc<Party>) -> Id {
        slots.take(party, None).unwrap().map_or_else(|| open(slots, party), |(id, ())| id)
    }

    #[test]
    fn a_connection_is_filled_before_the_next_opens() {
        let (mut slots, jane) = (Slots::new(), party("jane"));
        let ids: Vec<u64> = (0..2 * LIMIT + 1).map(|_| stream(&mut slots, &jane).0).collect();
        assert_eq!(ids.iter().filter(|id| **id == 0).count(), LIMIT);
        assert_eq!(ids.iter().filter(|id| **id == 1).count(), LIMIT);
        assert_eq!(ids.last(), Some(&2));
    }

    #[test]
    fn parties_share_no_connection() {
        let (mut slots, jane, john) = (Slots::new(), party("jane"), party("john"));
        let hers = stream(&mut slots, &jane);
        assert_ne!(stream(&mut slots, &john), hers);
        assert_eq!(stream(&mut slots, &jane), hers);
    }

    #[test]
    fn the_first_with_room_is_taken_so_that_others_empty() {
        let (mut slots, jane) = (Slots::new(), party("jane"));
        let ids: Vec<Id> = (0..LIMIT + 2).map(|_| stream(&mut slots, &jane)).collect();
        let (full, fresh) = (ids[0], ids[LIMIT]);
        assert_eq!(stream(&mut slots, &jane), fresh, "the first one is full");
        slots.give_back(&jane, full, Ending::Used);
        assert_eq!(stream(&mut slots, &jane), full, "room there again, and it is the first");
    }

    #[test]
    fn a_rank_is_free_again_when_its_connection_is_gone() {
        let (mut slots, jane) = (Slots::new(), party("jane"));
        let ids = Vec::from_iter((0..3).map(|_| open(&mut slots, &jane)));
        let ranks = Vec::from_iter(Rank::all().take(4));
        assert_eq!(slots.next_rank(&jane), Ok(ranks[3]));
        slots.remove(&jane, ids[1]);
        assert_eq!(slots.next_rank(&jane), Ok(ranks[1]));
    }

    #[test]
    fn a_party_has_so_many_connections_and_others_have_theirs() {
        let (mut slots, jane, john) = (Slots::new(), party("jane"), party("john"));
        for _ in 0..LIMIT * CONNECTIONS_OF_PARTY {
            stream(&mut slots, &jane);
        }
        assert_eq!(slots.take(&jane, None), Ok(None));
        assert_eq!(slots.next_rank(&jane), Err(Exhausted::OfParty));
        stream(&mut slots, &john);
        slots.give_back(&jane, Id(7), Ending::Used);
        assert_eq!(stream(&mut slots, &jane), Id(7));
    }

    #[test]
    fn an_empty_connection_is_retired_and_one_in_use_is_not() {
        let (mut slots, jane) = (Slots::new(), party("jane"));
        let id = stream(&mut slots, &jane);
        stream(&mut slots, &jane);
        assert!(slots.give_back(&jane, id, Ending::Used).is_none());
        assert!(!slots.retire(&jane, id));
        assert!(slots.give_back(&jane, id, Ending::Used).is_some());
        assert!(slots.retire(&jane, id));
        assert!(!slots.retire(&jane, id), "it is gone");
        assert!(slots.parties.is_empty() && slots.connections == 0);
        assert_ne!(stream(&mut slots, &jane), id);
    }

    #[test]
    fn after_a_failure_only_younger_connections_are_taken() {
        let (mut slots, jane) = (Slots::new(), party("jane"));
        let failed = stream(&mut slots, &jane);
        assert_eq!(slots.take(&jane, Some(failed)), Ok(None));
        let fresh = open(&mut slots, &jane);
        assert_eq!(slots.take(&jane, Some(failed)), Ok(Some((fresh, ()))), "all that failed share it");
    }

    #[test]
    fn streams_of_a_removed_connection_end_without_a_trace() {
        let (mut slots, jane) = (Slots::new(), party("jane"));
        let id = stream(&mut slots, &jane);
        slots.remove(&jane, id);
        slots.remove(&jane, id);
        assert!(slots.give_back(&jane, id, Ending::Used).is_none());
        assert_eq!(slots.connections, 0);
        assert_ne!(stream(&mut slots, &jane), id);
    }

    #[test]
    fn a_party_that_gives_too_much_up_waits_and_others_do_not() {
        let (mut slots, jane, john) = (Slots::new(), party("jane"), party("john"));
        let mut ids = Vec::new();
        for _ in 0..RESTING {
            ids.push(stream(&mut slots, &jane));
            slots.rest(&jane);
        }
        assert_eq!(slots.connections, RESTING / LIMIT, "their slots are not free");
        assert_eq!(slots.take(&jane, None), Err(Exhausted::Resting));
        stream(&mut slots, &john);
        ids.iter().for_each(|id| slots.remove(&jane, *id));
        assert_eq!(slots.take(&jane, None), Err(Exhausted::Resting), "new connections do not help");
        for id in ids {
            slots.give_back(&jane, id, Ending::Rested);
        }
        assert!(!slots.parties.contains_key(&jane));
        stream(&mut slots, &jane);
    }

    #[test]
    fn room_is_made_of_what_is_empty() {
        let mut slots = Slots::new();
        let parties: Vec<_> = (0..CONNECTIONS).map(|number| party(&number.to_string())).collect();
        for (number, party) in parties.iter().enumerate() {
            assert_eq!(slots.make_room(), Ok(None));
            let rank = slots.next_rank(party).unwrap();
            slots.open(party, rank, number);
        }
        assert_eq!(slots.make_room(), Err(Exhausted::Connections));
        assert_eq!(slots.give_back(&parties[7], Id(7), Ending::Used), Some(&7));
        assert_eq!(slots.make_room(), Ok(Some(7)));
        assert_eq!(slots.make_room(), Ok(None));
    }
}
