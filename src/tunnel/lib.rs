//! The websocket by which servers reach into nodes that they cannot dial: remotedialer's wire protocol, as k3s speaks it.
//!
//! ```text
//! kube-apiserver     egress_selector        src/components/kube_apiserver.rs    told to go through the front
//!    │ CONNECT
//!    ▼
//! server             Routes::connect        src/server/routes/connect.rs        who may
//!    │               NodeDialer::dial       src/server/node_dialer.rs           by which way
//!    │               Egress::route          egress.rs                           to which node
//!    ▼               Tunnels::dial          server.rs
//!    ║ websocket, opened by the node: src/agent/tunnels.rs
//!    ▼
//! node               Tunnel::serve          client.rs
//!    │               Rules::address_for     rules.rs                            whether servers may
//!    ▼
//! kubelet
//! ```

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
mod room;
mod rules;
mod server;
mod session;
mod stream;
mod unread;

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
