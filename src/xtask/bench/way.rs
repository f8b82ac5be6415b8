/// A way to kube-apiserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// Its own port, which is on loopback alone.
    Direct,
    /// Port 6443.
    Front,
}

impl Way {
    /// Where the way begins.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Direct => 6444,
            Self::Front => 6443,
        }
    }

    /// The program that listens there.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Direct => "kube-apiserver",
            Self::Front => "k3s",
        }
    }

    /// The way as it is called in a report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Front => "front",
        }
    }
}
