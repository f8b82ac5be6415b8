//! The process around a role: alone on its directory, known to `k3s status` and to the service manager, and begun when the clock may be
//! right.
//!
//! ```text
//! lock ─► status socket ─► supervisor ─► clock ─► the role's own life ─► end
//!                          └──────── status, service manager, watchdog ──┘
//! ```

mod clock;
mod daemon;
mod error;
mod lock;
mod reload;
mod report;
mod resources;

pub use daemon::{Daemon, STOP};
pub use error::Error;
pub use lock::lock;
pub use reload::{ConfigSource, Reloads};
pub use resources::SettledProfile;
