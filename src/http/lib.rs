//! HTTP as every room of ours speaks it: what an answer is made of, and how Kubernetes says that there is none.

mod body;
mod status;

pub use body::{Body, BodyError, empty, full};
pub use status::Status;
