//! Which connection carries the next stream.
//!
//! kube-apiserver allows 100 streams on a connection, and a watch holds one for ever. A connection is filled up to
//! [`LIMIT`], below that, since a stream that ended here may not have ended there yet. The fullest connection with room is
//! taken: so the others empty, and can be closed.
//!
//! ```text
//! open ──▶ in use ◀──▶ empty ──▶ retired
//!             └───────────┴─────▶ removed (it failed, or kube-apiserver said goodbye)
//! ```

use std::collections::BTreeMap;

/// Streams on one connection.
pub(super) const LIMIT: usize = 79;

/// A connection; younger ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64);

/// The connections that take streams, each with its handle.
#[derive(Debug)]
pub(super) struct Slots<H> {
    connections: BTreeMap<Id, Slot<H>>,
    next: u64,
}

#[derive(Debug)]
struct Slot<H> {
    handle: H,
    streams: usize,
}

impl<H: Clone> Slots<H> {
    /// No connections.
    pub(super) fn new() -> Self {
        Self { connections: BTreeMap::new(), next: 0 }
    }

    /// Takes a stream of the fullest connection with room that is younger than `than`; `None` asks for [`open`](Self::open).
    pub(super) fn take(&mut self, than: Option<Id>) -> Option<(Id, H)> {
        let with_room = self.connections.iter_mut().filter(|(id, slot)| slot.streams < LIMIT && Some(**id) > than);
        let (id, slot) = with_room.max_by_key(|(_, slot)| slot.streams)?;
        slot.streams += 1;
        Some((*id, slot.handle.clone()))
    }

    /// Adds a connection and takes its first stream.
    pub(super) fn open(&mut self, handle: H) -> Id {
        let id = Id(self.next);
        self.next += 1;
        self.connections.insert(id, Slot { handle, streams: 1 });
        id
    }

    /// A stream has ended; returns the connection if that leaves it empty.
    pub(super) fn give_back(&mut self, id: Id) -> Option<&H> {
        let slot = self.connections.get_mut(&id)?;
        slot.streams -= 1;
        (slot.streams == 0).then_some(&slot.handle)
    }

    /// Takes no more streams of this connection; those it has go on.
    pub(super) fn remove(&mut self, id: Id) {
        self.connections.remove(&id);
    }

    /// Removes the connection if it is empty.
    pub(super) fn retire(&mut self, id: Id) -> bool {
        let empty = self.connections.get(&id).is_some_and(|slot| slot.streams == 0);
        if empty {
            self.remove(id);
        }
        empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a stream, opening a connection if need be.
    fn stream(slots: &mut Slots<()>) -> Id {
        slots.take(None).map_or_else(|| slots.open(()), |(id, ())| id)
    }

    #[test]
    fn a_connection_is_filled_before_the_next_opens() {
        let mut slots = Slots::new();
        let ids: Vec<u64> = (0..2 * LIMIT + 1).map(|_| stream(&mut slots).0).collect();
        assert_eq!(ids.iter().filter(|id| **id == 0).count(), LIMIT);
        assert_eq!(ids.iter().filter(|id| **id == 1).count(), LIMIT);
        assert_eq!(ids.last(), Some(&2));
    }

    #[test]
    fn the_fullest_with_room_is_taken_so_that_others_empty() {
        let mut slots = Slots::new();
        let ids: Vec<Id> = (0..LIMIT + 2).map(|_| stream(&mut slots)).collect();
        let (full, fresh) = (ids[0], ids[LIMIT]);
        assert_eq!(stream(&mut slots), fresh, "the first one is full");
        slots.give_back(full);
        assert_eq!(stream(&mut slots), full, "room there again, and it is the fuller one");
    }

    #[test]
    fn an_empty_connection_is_retired_and_one_in_use_is_not() {
        let mut slots = Slots::new();
        let id = stream(&mut slots);
        stream(&mut slots);
        assert!(slots.give_back(id).is_none());
        assert!(!slots.retire(id));
        assert!(slots.give_back(id).is_some());
        assert!(slots.retire(id));
        assert!(!slots.retire(id), "it is gone");
        assert_ne!(stream(&mut slots), id);
    }

    #[test]
    fn after_a_failure_only_younger_connections_are_taken() {
        let mut slots = Slots::new();
        let failed = stream(&mut slots);
        assert_eq!(slots.take(Some(failed)), None);
        let fresh = slots.open(());
        assert_eq!(slots.take(Some(failed)), Some((fresh, ())), "all that failed share it");
    }

    #[test]
    fn streams_of_a_removed_connection_end_without_a_trace() {
        let mut slots = Slots::new();
        let id = stream(&mut slots);
        slots.remove(id);
        assert!(slots.give_back(id).is_none());
        assert_ne!(stream(&mut slots), id);
    }
}
