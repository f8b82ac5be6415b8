//! Whether a datastore keeps its promises through crashes: that no acknowledged write is lost and none is invented, and
//! that watches tell everything, once, in order.
//!
//! The method is that of etcd's robustness tests: clients record all that they ask and are told, the server is killed in the
//! midst of it, and a model judges the record. It is tried on etcd first, and the judges have to find mistakes that are put in.
//!
//! ```text
//!  campaign: cycles of traffic and crash ──────► history ──────► verdict
//!    server on place, disk   traffic ─► client      │               linearizability: requests in one order
//!    │           │                                  └─► faults ──►  promises: etcd's nine about watches
//!    etcd, ours  kill -9, power cut, I/O errors        mistakes         against the model
//! ```

mod campaign;
mod client;
mod faults;
pub mod history;
mod linearizability;
mod model;
mod place;
mod promises;
mod proof;
mod server;
mod traffic;
mod verdict;
pub mod vfs;

pub use campaign::{Broken, Campaign, Crash, Cycle, Tally};
pub use faults::Fault;
pub use model::{State, Timeline};
pub use place::Place;
pub use proof::Proof;
pub use server::{Datastore, PATIENCE, Server};
pub use verdict::{Promise, Verdict, Violation};
