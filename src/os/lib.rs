//! The operating system of an edge machine: an image that nobody logs into, which gets from a file what it is to be.
//!
//! ```text
//! first-boot.yaml on the ESP ──parse──▶ FirstBoot ──check──▶ files on the data partition ──▶ networkd, k3s
//!                            ◀── status.txt: taken, or the sentence that says what is wrong
//!
//! update ──▶ the free slot, and a kernel with three tries ──▶ Trial ──▶ good, or the other slot again, with the data of before where it
//!                                                              was written in another form
//! ```

mod boot_entry;
mod config_section;
mod data_fault;
mod esp;
mod first_boot;
mod kept_identity;
mod last_update;
mod machine;
mod manifest;
mod network;
mod news;
mod outcome;
mod slots;
mod status;
mod trial;
mod update;
mod update_set;
mod version;

pub use boot_entry::{Assessment, BootEntry, TRIES};
pub use esp::Esp;
pub use first_boot::{FirstBoot, Wrong};
pub use last_update::{Data, WayBack, Writer};
pub use machine::{Configured, Error, Machine};
pub use manifest::{Content, FORMAT, Manifest, ManifestError, Part, UpdateKey};
pub use news::News;
pub use outcome::Outcome;
pub use slots::{Partition, Slot, SlotPartitions, Slots, SlotsError};
pub use status::{SlotStatus, SystemStatus};
pub use trial::{Trial, Verdict};
pub use update::{Installed, UpdateError};
pub use update_set::{MANIFEST, SIGNATURE, SetError, UpdateSet};
pub use version::{NotAVersion, Version};
