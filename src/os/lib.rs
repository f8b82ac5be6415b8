//! The operating system of an edge machine: an image that nobody logs into, which gets from a file what it is to be.
//!
//! ```text
//! first-boot.yaml on the ESP ──parse──▶ FirstBoot ──check──▶ files on the data partition ──▶ networkd, k3s
//!                            ◀── status.txt: taken, or the sentence that says what is wrong
//! ```

mod config_section;
mod esp;
mod first_boot;
mod machine;
mod network;

pub use esp::Esp;
pub use first_boot::{FirstBoot, Wrong};
pub use machine::{Configured, Error, Machine};
