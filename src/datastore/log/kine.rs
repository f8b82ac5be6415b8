//! The table format of kine (0.16), the datastore shim of k3s, and how etcd's keys lie in it.
//!
//! `id` is the revision, `name` the key, `created` and `deleted` are flags. `create_revision` is zero on creates and
//! tombstones. `prev_revision` is the id of the key's row before, zero if the table has none; no two rows share name
//! and `prev_revision`. `lease` is the time to live in seconds. Our own columns `version` and `lease_id` follow
//! behind; kine leaves them null.
//!
//! Two kinds of rows are not keys: [`COMPACT_ROW`], and the tombstones named `gap-N` with which kine fills ids that
//! were given out and never written.

use bytes::Bytes;

use crate::key::Key;

/// Name of the row whose `prev_revision` is the compacted revision.
pub(crate) const COMPACT_ROW: &str = "compact_rev_key";

/// kube-apiserver's key of the same name. kine keeps it under another name, with its version before the value since
/// kine's table has none: `version|value`.
const COMPACT_KEY: &[u8] = b"compact_rev_key";
const COMPACT_KEY_ROW: &[u8] = b"compact_rev_key_apiserver";

/// Whether a key is kube-apiserver's note of what it has compacted, which says nothing of another store.
pub(crate) fn is_of_compaction(key: &[u8]) -> bool {
    key == COMPACT_KEY
}

/// Whether a key cannot be written because its name in the table stands for another.
pub(crate) fn is_reserved(key: &[u8]) -> bool {
    key == COMPACT_KEY_ROW
}

/// The name in the table of a key.
pub(crate) fn name_of(key: &[u8]) -> &[u8] {
    if key == COMPACT_KEY { COMPACT_KEY_ROW } else { key }
}

/// The key behind a name in the table.
pub(crate) fn key_of(name: &[u8]) -> Key {
    Key::copy_from_slice(if name == COMPACT_KEY_ROW { COMPACT_KEY } else { name })
}

/// Whether a row only fills a gap. The id in the name and the missing predecessor tell it from a client's key that is
/// called the same: its tombstone follows a row.
pub(crate) fn is_gap(id: i64, name: &[u8], deleted: bool, prev_revision: i64) -> bool {
    deleted && prev_revision == 0 && name.strip_prefix(b"gap-") == Some(id.to_string().as_bytes())
}

/// The value column for a value.
pub(crate) fn encode_value(key: &[u8], version: i64, value: &Bytes) -> Bytes {
    if key != COMPACT_KEY {
        return value.clone();
    }
    [version.to_string().as_bytes(), b"|", value].concat().into()
}

/// The value in a value column.
pub(crate) fn decode_value(key: &[u8], stored: &[u8]) -> Bytes {
    if key != COMPACT_KEY {
        return Bytes::copy_from_slice(stored);
    }
    // Before Kubernetes 1.34 kine stored the version alone.
    split_version(stored).map_or(Bytes::from_static(b"0"), |(_, value)| Bytes::copy_from_slice(value))
}

/// The version that kine kept in the value column of this key, if it is that key.
pub(crate) fn version_in_value(key: &[u8], stored: &[u8]) -> Option<i64> {
    if key != COMPACT_KEY {
        return None;
    }
    let version = split_version(stored).map_or(stored, |(version, _)| version);
    std::str::from_utf8(version).ok()?.parse().ok()
}

fn split_version(stored: &[u8]) -> Option<(&[u8], &[u8])> {
    let bar = stored.iter().position(|&byte| byte == b'|')?;
    Some((&stored[..bar], &stored[bar + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apiservers_compact_key_has_kines_form() {
        let stored = encode_value(COMPACT_KEY, 7, &Bytes::from_static(b"1234"));
        assert_eq!(stored, "7|1234");
        assert_eq!(decode_value(COMPACT_KEY, &stored), "1234");
        assert_eq!(version_in_value(COMPACT_KEY, &stored), Some(7));
        assert_eq!(version_in_value(COMPACT_KEY, b"3"), Some(3));
        assert_eq!(decode_value(COMPACT_KEY, b"3"), "0");
        assert_eq!(key_of(name_of(COMPACT_KEY)), COMPACT_KEY);
    }

    #[test]
    fn other_keys_are_stored_as_they_are() {
        let value = Bytes::from_static(b"1|2");
        assert_eq!(encode_value(b"/a", 7, &value), value);
        assert_eq!(decode_value(b"/a", b"1|2"), value);
        assert_eq!(version_in_value(b"/a", b"1|2"), None);
    }

    #[test]
    fn gap_rows_are_told_from_keys() {
        assert!(is_gap(7, b"gap-7", true, 0));
        assert!(!is_gap(8, b"gap-7", true, 0));
        assert!(!is_gap(7, b"gap-7", false, 0));
        assert!(!is_gap(7, b"gap-7", true, 5));
    }
}
