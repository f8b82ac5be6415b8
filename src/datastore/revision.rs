//! Numbers of the log: revisions and lease ids.

use std::fmt;

/// The number of one change: each change of the store gets the next one, and none is ever given out twice. It is etcd's
/// revision, Kubernetes' `resourceVersion`, and the row id in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// Before every change; also what etcd's messages say for "none given".
    pub const ZERO: Self = Self(0);

    /// The revision of the change that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a lease. Keys attached to a lease go when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaseId(pub(crate) i64);

impl LeaseId {
    /// No lease: the key stays until it is deleted.
    pub(crate) const NONE: Self = Self(0);

    /// Whether this names no lease.
    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}
