//! Flags, environment and configuration files become one typed, checked value.

pub mod agent;
pub mod args;
pub mod network;
pub mod secret;
pub mod server;
