//! The server: datastore, control plane, the front on 6443 and, unless told otherwise, a node.

mod bootstrap;
mod controllers;
mod error;
pub mod front;
mod role;
pub mod routes;

pub use error::Error;
pub use role::{Package, run};
