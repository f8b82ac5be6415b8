//! Snapshots: the store as it was at one revision, in one file.
//!
//! ```text
//! <folder>/<name>-<node>-<unix time>[.zst]
//!
//!   the database, as it is or as one zstd frame
//!   a zstd skippable frame: label (JSON) │ SHA-256 of everything before it │ length of the label │ "k3s1"
//! ```
//! So `sqlite3` reads the one and `zstd -d` the other without knowing of the label, and no second file can get lost. The
//! cluster's authorities are in the database, sealed by the server token: a restore needs the file and the token.
//! A snapshot of etcd is the file that etcd's own client saves, with the same label: `zstd -d` makes that file of a compressed one.
//!
//! ```text
//! save:     copy (online) ─► check ─► label ─► fsync ─► rename
//! restore:  checksum ─► unpack ─► check ─► leap ─► fsync ─► the database moves aside ─► rename
//! ```

mod error;
mod etcd;
mod folder;
mod label;
mod restore;
mod save;

pub use error::SnapshotError;
pub use etcd::{is_of_etcd, save_etcd};
pub use folder::{Listed, SnapshotFolder, is_scheduled, scheduled_at};
pub use label::{Label, Snapshot, SnapshotStore};
pub(crate) use restore::finish_interrupted;
pub use restore::{Restored, Staged, is_lost};
pub use save::Save;
pub(crate) use save::save;
