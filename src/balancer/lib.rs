//! A node's way to the servers: a TCP forwarder on loopback that sticks to one healthy server and remembers the others.
//!
//! [`Pool`] decides which server a client gets and when it is let go, as k3s' client-side load balancer does; [`Balancer`] is the pool
//! with sockets and the file that outlives restarts. TLS goes through untouched. A server's health is told by whoever holds its tunnel.

mod address;
mod metrics;
mod pool;
mod serve;
mod server;
mod state_file;

pub use address::{Address, InvalidAddress};
pub use k3s_files::FileError;
pub use pool::{Connection, Pool, Snapshot};
pub use serve::{Balancer, Link, NoServer, Options};
pub use server::{Health, State};
