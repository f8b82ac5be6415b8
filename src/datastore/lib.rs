//! The datastore: etcd's v3 API over an append-only log in one SQLite file.
//!
//! It is what kube-apiserver talks to on a node with embedded SQLite, in the place of etcd or kine. The table is
//! kine's, so a database that k3s wrote opens as it is, and k3s can open it again.
//!
//! ```text
//!  gRPC ──► etcd/* ──► Store ──► Index (every key's revisions, in memory)
//!                        │  ▲         values by revision: ValueCache, else Readers ──► SQLite
//!                        │  └─ publish: revision, events, leases in one step
//!                        └─► Writer (one thread) ──► SqliteLog: one commit, one fsync for all that waits
//! ```
//!
//! - `index`, `range`, `txn`, `watch`, `lease`: what is true, without any I/O.
//! - `log`: the rows, and kine's way to write them.
//! - `store`, `readers`, `writer`, `follow`, `space`: who holds what, and in which order it changes.
//! - `snapshot`: the store as it was at one revision, in one file; `transfer`: all that it holds, moved to an etcd.
//! - `etcd`: messages and services on the wire.
//! - `listen`, `tls`, `datastore`, `client`, `remote`: how the rest of the program uses all that, or a store elsewhere.

mod cache;
mod client;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod crash;
mod datastore;
mod error;
mod etcd;
mod follow;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod index;
mod key;
mod lease;
mod listen;
mod log;
mod members;
mod metrics;
#[cfg(test)]
mod model;
mod range;
mod readers;
mod remote;
mod revision;
pub mod snapshot;
mod space;
mod store;
mod tls;
mod transfer;
mod txn;
mod watch;
mod writer;

pub use client::{Client, ClientError, Stored};
pub use datastore::{Datastore, Options, Serving, Status, serve};
pub use error::Error;
pub use listen::{Access, BoundEndpoint, Endpoint, Listener, TlsListener};
pub use log::sqlite::FORMAT;
pub use members::{EtcdCluster, Knowledge, Member, MemberStatus};
pub use remote::{RemoteOptions, RemoteServer, StreamError};
pub use revision::Revision;
pub use tls::ServerTls;
pub use transfer::{TransferError, Transferred};
