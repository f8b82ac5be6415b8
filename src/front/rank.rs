//! What a connection to kube-apiserver may hold in this process, by its place among its party's.

/// Connections of one party: 4108 requests at a time. A kubelet has a watch for each Secret and ConfigMap of its pods and needs some
/// hundred; kube-apiserver takes tens of KiB for each.
pub(super) const CONNECTIONS_OF_PARTY: usize = 52;

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

    /// What kube-apiserver may send on one of its streams ahead of its client's reading, bytes. A thousand watches, a connection for each
    /// 79 of them, have room for a burst of events; beyond, it is bounded what a client holds that leaves its streams unread. Each stream
    /// goes on by itself, as none would if they shared a window.
    pub(super) fn stream_window(self) -> u32 {
        match self.0 {
            0 => 256 << 10,
            1..13 => 64 << 10,
            _ => 8 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::LIMIT;

    #[test]
    fn what_a_party_leaves_unread_is_bounded_and_each_stream_goes_on() {
        let windows = Vec::from_iter(Rank::all().map(Rank::stream_window));
        assert!(
            windows.is_sorted_by(|earlier, later| earlier >= later) && windows.iter().all(|window| *window >= 8 << 10)
        );
        let of_thousand_watches = &windows[..1000usize.div_ceil(LIMIT)];
        assert!(of_thousand_watches.iter().all(|window| *window >= 64 << 10));
        let unread = windows.iter().map(|window| *window as usize * LIMIT).sum::<usize>();
        assert!(unread <= 104 << 20, "{unread}");
    }
}
