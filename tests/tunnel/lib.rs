//! Tunnels between two programs, each of which is ours or the original, and what is sent through them.

mod bytes;
mod outcome;
mod tunnel;

pub use bytes::{Progress, receive, receive_in_bursts, send};
pub use outcome::Outcome;
pub use tunnel::{End, Program, Tunnel};
