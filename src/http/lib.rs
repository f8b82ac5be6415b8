//! HTTP as every room of ours speaks it: what an answer is made of, how Kubernetes says that there is none, how one is asked for,
//! and by which headers kube-apiserver is told who asks.

mod body;
mod exchange;
mod request_header;
mod status;

pub use body::{Body, BodyError, empty, full};
pub use exchange::{Answer, Unread, exchange, exchange_with};
pub use request_header::{CREDENTIAL_ID, REMOTE_GROUP, REMOTE_USER, remove_forged_identity};
pub use status::Status;
