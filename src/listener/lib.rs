//! A port that strangers can reach: who may connect, for how long they may be silent, and who they are by their certificates.
//!
//! ```text
//! accept ─► place ─► first byte ─► TLS handshake ─► certificate ─► [preface of HTTP/2] ─► requests ─► drain ─► end
//!           per source   └─────── 10 s ────────┘        once            10 s                clock       5 s
//!           and in total
//! ```
//!
//! What a connection may cost depends on whether its client has shown credentials ([`Peer::authenticate`]). Those who have not are
//! strangers: they displace each other, never anybody else.

mod accept;
mod budget;
mod clock;
mod connections;
mod drive;
mod handshake;
mod limits;
mod memory;
mod pace;
mod peer;
mod repeated;
mod requests;
mod source;
mod stream;
mod thread;
mod verification;

pub use accept::{Arrival, accept, accept_on_thread};
pub use budget::{Budget, Rate, Sources, network};
pub use connections::{Connections, Place};
pub use drive::{CutOff, drive};
pub use handshake::{Handshakes, Inbound, NoConnection, Protocol};
pub use limits::Limits;
pub use memory::{Held, Trimmer};
pub use peer::Peer;
pub use requests::{Requests, Running};
pub use stream::Stream;
pub use thread::OwnThread;
