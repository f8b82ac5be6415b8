//! etcd's hash of the keys, bit for bit: stores with the same history and the same compaction have the same hash, be they
//! ours or etcd's.
//!
//! It is CRC-32C over the name of etcd's bucket and then, in the order of revisions, over what etcd would have in it: the
//! revision as its key is written there, and the key with its value as a message.

use bytes::Bytes;
use prost::Message as _;

use super::messages;
use crate::error::RequestError;
use crate::index::Change;
use crate::key::{Key, KeyRange};
use crate::range::KeyValue;
use crate::revision::Revision;
use crate::store::Store;

/// Changes that are looked up at once; the writer waits meanwhile.
const CHANGES: usize = 1024;
/// Values that are in memory at once.
const VALUES: usize = 16;
/// The name of the bucket.
const BUCKET: &[u8] = b"key";

/// The hash of the keys up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeysHash {
    pub(super) hash: u32,
    /// The revision up to which it goes.
    pub(super) at: Revision,
    /// The compacted revision that it begins with.
    pub(super) compacted: Revision,
    /// The newest revision when it began.
    pub(super) head: Revision,
}

impl Store {
    /// Hashes the keys up to a revision; zero is the newest. Begins again if a compaction comes in between.
    pub(super) async fn hash_keys(&self, at: Revision) -> Result<KeysHash, RequestError> {
        loop {
            if let Some(hash) = self.try_hash_keys(at).await? {
                return Ok(hash);
            }
        }
    }

    async fn try_hash_keys(&self, at: Revision) -> Result<Option<KeysHash>, RequestError> {
        let (head, compacted) = {
            let state = self.state();
            (state.published, state.compacted)
        };
        let at = match at {
            at if at <= Revision::ZERO => head,
            at if at < compacted => return Err(RequestError::Compacted),
            at if at > head => return Err(RequestError::FutureRevision),
            at => at,
        };
        let mut crc = Crc32c::default();
        crc.update(BUCKET);
        let mut next = Some(Revision::ZERO);
        while let Some(from) = next {
            let changes = {
                let state = self.state();
                if state.compacted != compacted {
                    return Ok(None);
                }
                let mut changes = state.index.changes(&KeyRange::From(Key::new()), from, at, CHANGES);
                next = changes.last().filter(|_| changes.len() == CHANGES).map(|last| last.entry.modified.next());
                // Of what is compacted, only what is still there at the revision counts, whatever rows are left.
                changes.retain(|Change { key, entry, .. }| {
                    let live = || state.index.range(&KeyRange::One(key.clone()), at).any(|(_, live)| live == *entry);
                    entry.modified > compacted || live()
                });
                changes
            };
            for chunk in changes.chunks(VALUES) {
                let live = chunk.iter().filter(|change| !change.entry.is_tombstone());
                let rows = live.map(|change| (change.key.clone(), change.entry.modified)).collect();
                let mut values = self.values(rows).await?.into_iter();
                for Change { key, entry, .. } in chunk {
                    let value = if entry.is_tombstone() { Some(Bytes::new()) } else { values.next().flatten() };
                    match value {
                        Some(value) => crc.update(&row(KeyValue { key: key.clone(), entry: *entry, value })),
                        None if self.state().compacted != compacted => return Ok(None),
                        None => return Err(self.lost_row()),
                    }
                }
            }
        }
        Ok(Some(KeysHash { hash: crc.value(), at, compacted, head }))
    }
}

/// A row as etcd has it: revision, the place within its transaction, the mark of a tombstone, the message.
fn row(kv: KeyValue) -> Vec<u8> {
    let mut row = kv.entry.modified.0.to_be_bytes().to_vec();
    row.push(b'_');
    row.extend([0; 8]);
    let message = if kv.entry.is_tombstone() {
        row.push(b't');
        messages::KeyValue { key: kv.key, ..messages::KeyValue::default() }
    } else {
        kv.into()
    };
    row.extend(message.encode_to_vec());
    row
}

/// The CRC that etcd uses, of Castagnoli's polynomial.
#[derive(Default)]
struct Crc32c(u32);

impl Crc32c {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };

    fn update(&mut self, bytes: &[u8]) {
        let step = |crc: u32, byte: &u8| (crc >> 8) ^ Self::TABLE[usize::from(crc as u8 ^ byte)];
        self.0 = !bytes.iter().fold(!self.0, step);
    }

    fn value(&self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_castagnolis() {
        let mut crc = Crc32c::default();
        crc.update(b"12345");
        crc.update(b"6789");
        assert_eq!(crc.value(), 0xe306_9283);
    }
}
