//! What a connection to kube-apiserver may hold in this process, by its place among its party's.

/// Connections of one party: 4108 requests at a time. A kubelet has a watch for each Secret and ConfigMap of its pods and needs some
/// hundred; kube-apiserver takes tens of KiB for each.
pub(super) const CONNECTIONS_OF_PARTY: usize = 52;

/// What kube-apiserver may send on a stream of a party's first connection ahead of its client's reading, bytes.
const STREAM_WINDOW: u32 = 256 << 10;

/// Which of its party's connections one is; the lower one is taken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u32);

impl Rank {
    /// All that one party's connections have, from the first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..CONNECTIONS_OF_PARTY as u32).map(Self)
    }

    /// Whether it is the one that serves the party in quiet times.
    pub(super) fn is_first(self) -> bool {
        self.0 == 0
    }

    /// What kube-apiserver may send on one of its streams ahead of its client's reading, bytes: on the second connection half as much as on
    /// the first, on the third a third. However many streams a client leaves unread, all together hold less than five times what those of
    /// the first do; and still no stream stops another one, as it would if streams shared a window.
    pub(super) fn stream_window(self) -> u32 {
        STREAM_WINDOW / (self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::LIMIT;

    #[test]
    fn what_a_party_leaves_unread_is_bounded_and_each_stream_goes_on() {
        let windows = Vec::from_iter(Rank::all().map(Rank::stream_window));
        assert_eq!(windows[..4], [256 << 10, 128 << 10, 87_381, 64 << 10]);
        assert!(windows.iter().all(|window| *window >= 4 << 10));
        let unread = windows.iter().map(|window| *window as usize * LIMIT).sum::<usize>();
        assert!(unread <= 92 << 20, "{unread}");
    }
}
