//! Embedded etcd: this server's member of the cluster's own store.
//!
//! ```text
//! no data, --cluster-init ──────────────────────────────────► first member ─┐
//! SQLite, --cluster-init ────► moved, in the order of revisions ──► data    │
//! no data, --server ─► authorities, members, one more learner ─► learner ───┼─► member: it has a vote, kube-apiserver starts
//! data ─────────────────────────────────────────────────────► goes on ──────┘        │
//!   ▲                                                                               │ its node is deleted, or it is told to go
//!   └── joins again, its old data set aside ◄── tombstone: removed ◄─────────────────┘
//! ```
//! A server with `--disable-etcd` has none and asks those of others (`others.rs`).
//!
//! Files, names and rules are k3s' (`pkg/etcd`), so that either program can go on from the other's folder.

mod disk;
mod error;
mod folder;
mod join;
mod learners;
mod members_seen;
mod membership;
mod moving;
mod nodes;
mod others;
mod reset;
mod restore;
mod watch;

pub use error::EtcdError;
pub(crate) use folder::EtcdFolder;
pub(crate) use join::Join;
pub(crate) use members_seen::MembersSeen;
pub(crate) use membership::{Membership, Starting};
pub(crate) use nodes::EtcdNodes;
pub(crate) use others::OtherMembers;
pub use reset::{Reset, reset};
