//! A port that strangers can reach: who is at the other end, and what that may cost us before they have shown credentials.

mod peer;
mod verification;

pub use peer::Peer;
pub use verification::Verification;
