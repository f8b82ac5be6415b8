//! Network policy: from the cluster's objects to one node's nftables rules.
//!
//! ```text
//! NetworkPolicies, pods, namespaces ──Event──► Compiler ──► Ruleset ──► Changes ──► text for `nft --file`
//! ```
//!
//! Nothing here does I/O. Rules name sets and maps, whose elements are what changes as pods come and go: what an event costs grows with
//! what it changes, and what a node holds with the pods on it, not with the cluster.
//!
//! The semantics are those of the API's own documentation; where that leaves a choice it is k3s' (kube-router's). See
//! `docs/network-policy.md` and `docs/adr/` for which.

mod compiler;
mod nft;
mod object;
mod pod;
mod policy;
mod ruleset;
mod selector;
#[cfg(test)]
mod tests;

pub use compiler::{Compiler, Event, Options};
pub use nft::{REMOVE, TABLE, closed};
pub use object::ObjectKey;
pub use pod::{NamedPort, Pod};
pub use policy::{Direction, InvalidPolicy, Policy, Protocol};
pub use ruleset::{Changes, Family};
pub use selector::{Labels, Selector};
