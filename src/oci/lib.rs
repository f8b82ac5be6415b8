//! Container images as files: packing them reproducibly, and importing them into containerd without a registry.
//!
//! - [`Image`]: an image to be packed as an OCI archive.
//! - `Importer`: brings image archives (OCI layouts, `docker save`) into containerd's namespace `k8s.io`, as k3s does
//!   with `<data-dir>/agent/images`. Feature `import`, on by default.

mod archive;
mod digest;
mod layout;
mod name;

#[cfg(feature = "import")]
mod containerd;
#[cfg(feature = "import")]
mod contents;
#[cfg(feature = "import")]
mod import;

pub use archive::{Image, Node, PackError};
pub use digest::{Digest, InvalidDigest};
pub use name::{ImageName, InvalidName};
pub use oci_spec::image::{Config, Platform, PlatformBuilder};

#[cfg(feature = "import")]
pub use containerd::RpcError;
#[cfg(feature = "import")]
pub use contents::{ArchiveError, Excess};
#[cfg(feature = "import")]
pub use import::{Error, Importer, Report, import_dir, sources};
