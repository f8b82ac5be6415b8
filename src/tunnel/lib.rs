//! The websocket by which servers reach into nodes that they cannot dial: remotedialer's wire protocol, as k3s speaks it.
//!
//! ```text
//! kube-apiserver ──CONNECT──▶ server: Egress says where ──▶ Tunnels ══websocket══ Tunnel ──▶ node: Rules say whether ──▶ kubelet
//! ```
//!
//! kube-apiserver is told to in `src/components/kube_apiserver.rs`, and answered in `src/server/routes/connect.rs`; a node opens its tunnels in
//! `src/agent/tunnels.rs`.

mod client;
mod connection;
mod dialect;
mod driver;
mod egress;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod heartbeat;
mod link;
mod message;
mod rules;
mod server;
mod session;
mod stream;

#[cfg(test)]
mod tests;

pub use client::{ConnectError, Tunnel};
pub use dialect::Dialect;
pub use driver::SessionError;
pub use egress::{Destination, Egress, NoDestination, Node, Route};
pub use heartbeat::Gone;
pub use message::{Malformed, Target};
pub use rules::{Reach, Rules};
pub use server::{NoTunnel, NoUpgrade, Tunnels, upgrade};
pub use session::Violation;
pub use stream::TunnelStream;

/// Where servers take tunnels.
pub const PATH: &str = "/v1-k3s/connect";
