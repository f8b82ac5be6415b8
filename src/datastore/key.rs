//! Keys and ranges of keys, as etcd's requests name them.

use std::ops::Bound;

use bytes::Bytes;

/// A key: any bytes, in practice `/registry/…`. Cheap to clone; the index owns the bytes.
pub(crate) type Key = Bytes;

/// A range for an ordered map of keys.
pub(crate) type KeyBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a request means: etcd's `key` and `range_end`, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyRange {
    /// Just this key (`range_end` is empty).
    One(Key),
    /// `start ≤ key < end`; empty when `end ≤ start`.
    Between { start: Key, end: Key },
    /// `start ≤ key` (`range_end` is one zero byte).
    From(Key),
}

impl KeyRange {
    pub(crate) fn new(key: Key, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::One(key),
            [0] => Self::From(key),
            _ => Self::Between { start: key, end: range_end },
        }
    }

    /// The keys that begin with `prefix`.
    pub(crate) fn prefixed(prefix: &[u8]) -> Self {
        let start = Key::copy_from_slice(prefix);
        // The first key behind them all: the prefix without its trailing 0xff, the last byte one higher.
        match prefix.iter().rposition(|&byte| byte != u8::MAX) {
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                Self::Between { start, end: end.into() }
            }
            None => Self::From(start),
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => key == one,
            Self::Between { start, end } => start <= key && key < end.as_ref(),
            Self::From(start) => start <= key,
        }
    }

    /// Whether no key can ever be in the range.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Between { start, end } if end <= start)
    }

    /// Bounds for an ordered map; `None` when the range is empty, which the map would not accept.
    pub(crate) fn bounds(&self) -> Option<KeyBounds<'_>> {
        match self {
            Self::One(one) => Some((Bound::Included(one), Bound::Included(one))),
            Self::Between { start, end } if start < end => Some((Bound::Included(start), Bound::Excluded(end))),
            Self::Between { .. } => None,
            Self::From(start) => Some((Bound::Included(start), Bound::Unbounded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn range_end_has_etcds_meanings() {
        assert!(range("a", "").contains(b"a"));
        assert!(!range("a", "").contains(b"aa"));
        assert!(range("/pods/", "/pods0").contains(b"/pods/default/x"));
        assert!(!range("/pods/", "/pods0").contains(b"/pods0"));
        assert!(range("b", "\0").contains(b"zz"));
        assert!(!range("b", "\0").contains(b"a"));
        assert!(range("b", "a").is_empty());
        assert_eq!(range("b", "a").bounds(), None);
    }

    #[test]
    fn a_prefix_is_a_range() {
        assert_eq!(KeyRange::prefixed(b"/a/"), range("/a/", "/a0"));
        assert!(KeyRange::prefixed(b"a\xff").contains(b"a\xff\xff"));
        assert!(!KeyRange::prefixed(b"a\xff").contains(b"b"));
        assert_eq!(KeyRange::prefixed(b"\xff"), KeyRange::From(Key::from_static(b"\xff")));
    }
}
