//! What has come through a connection and waits to be read.

use std::collections::VecDeque;

/// The most that one allocation holds, bytes.
const CHUNK: usize = 32 << 10;

/// Bytes in chunks, which are freed one by one as they are read. One growing buffer would be moved to twice the room each time it is full,
/// and what an allocator keeps of the smaller ones is as much again as what waits.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    /// None is empty, and each but the last is full.
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were read.
    read: usize,
    /// Bytes that were not.
    len: usize,
}

impl Unread {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds what has come.
    pub(crate) fn extend(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let last = match self.chunks.back_mut() {
                Some(last) if last.len() < CHUNK => last,
                _ => self.chunks.push_back_mut(Vec::new()),
            };
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - last.len()));
            last.extend_from_slice(now);
            bytes = later;
        }
    }

    /// The next bytes, as far as they lie side by side; none if all were read.
    pub(crate) fn next(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |first| &first[self.read..])
    }

    /// `count` of [`Self::next`] were read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.read += count;
        self.len -= count;
        if self.chunks.front().is_some_and(|first| first.len() == self.read) {
            self.chunks.pop_front();
            self.read = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_read_in_order() {
        let all: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        let mut unread = Unread::default();
        let mut read = Vec::new();
        for (number, message) in all.chunks(7919).enumerate() {
            unread.extend(message);
            for _ in 0..number % 3 {
                let count = unread.next().len().min(5000);
                read.extend_from_slice(&unread.next()[..count]);
                unread.consume(count);
            }
            assert_eq!(read.len() + unread.len(), number * 7919 + message.len());
        }
        while !unread.next().is_empty() {
            read.extend_from_slice(unread.next());
            unread.consume(unread.next().len());
        }
        assert_eq!(read, all);
        assert_eq!(unread.len(), 0);
    }

    #[test]
    fn what_was_read_is_given_back() {
        let mut unread = Unread::default();
        unread.extend(&[7; 3 * CHUNK]);
        unread.consume(CHUNK);
        unread.consume(CHUNK - 1);
        assert_eq!(unread.chunks.len(), 2);
        unread.consume(1);
        unread.consume(CHUNK);
        assert!(unread.chunks.is_empty());
    }

    #[test]
    fn many_small_messages_share_a_chunk() {
        let mut unread = Unread::default();
        for _ in 0..CHUNK {
            unread.extend(b"!");
        }
        assert_eq!(unread.chunks.len(), 1);
    }
}
