//! How pod traffic travels between nodes.

mod vxlan;

pub use vxlan::{Device, OverlayError, Vxlan, remove};
