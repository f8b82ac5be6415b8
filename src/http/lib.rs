//! HTTP as every room of ours speaks it: what an answer is made of, how Kubernetes says that there is none, and how one is asked for.

mod body;
mod exchange;
mod status;

pub use body::{Body, BodyError, empty, full};
pub use exchange::{Answer, Unread, exchange};
pub use status::Status;
