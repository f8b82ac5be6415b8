//! Which of root's capabilities we have, and which a child keeps.

use caps::{CapSet, CapsHashSet};
pub use caps::{Capability, errors::CapsError};
use nix::libc::c_ulong;

/// Whether this process has `capability`: root in a container lacks some. An error means that the kernel does not tell.
///
/// # Errors
/// The kernel does not tell.
pub fn has(capability: Capability) -> Result<bool, CapsError> {
    caps::has_cap(None, CapSet::Effective, capability)
}

/// The capabilities of a child, on top of being root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Capabilities {
    /// All that we have: what starts containers gives them theirs.
    #[default]
    Inherited,
    /// Of those only these; the rest is out of reach for its own children too.
    Only(Vec<Capability>),
}

impl Capabilities {
    /// What is to be taken out of the child's bounding set (capabilities(7)), by the kernel's numbers. Nothing where we may not.
    pub(crate) fn dropped(&self) -> Vec<c_ulong> {
        let Self::Only(kept) = self else { return Vec::new() };
        let is_allowed = has(Capability::CAP_SETPCAP).unwrap_or(false);
        let bounding = if is_allowed { caps::read(None, CapSet::Bounding) } else { Ok(CapsHashSet::new()) };
        // Without an answer the child keeps what it would have had.
        let bounding = bounding.unwrap_or_default();
        bounding
            .iter()
            .filter(|capability| !kept.contains(capability))
            .map(|capability| capability.index().into())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_dropped() {
        assert!(Capabilities::Inherited.dropped().is_empty());
        let kept = Capabilities::Only(vec![Capability::CAP_NET_ADMIN]).dropped();
        assert!(!kept.contains(&Capability::CAP_NET_ADMIN.index().into()));
        let may_drop = has(Capability::CAP_SETPCAP).unwrap();
        assert_eq!(kept.contains(&Capability::CAP_CHOWN.index().into()), may_drop);
    }
}
