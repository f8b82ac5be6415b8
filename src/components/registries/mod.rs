//! registries.yaml: which registries have mirrors, and what each registry is shown, made into containerd's `certs.d`.
//!
//! ```text
//! registries.yaml ──file──► Registries ──hosts──► <certs.d>/<registry>/hosts.toml
//! ```
//!
//! containerd reads `hosts.toml` at each pull, so a change needs no restart. Credentials stand in it as a header, of which
//! `docs/adr/0027-registry-credentials.md` tells why.

mod endpoint;
mod file;
mod hosts;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use k3s_config::secret::Secret;
use k3s_files::FileError;

use endpoint::Endpoint;
pub use hosts::{CERTS_D, HEADLINE};

/// What registries.yaml says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    mirrors: BTreeMap<Registry, Vec<Endpoint>>,
    configs: BTreeMap<Registry, HostConfig>,
}

/// Whether an image is pulled from where its name says when no mirror has it (`--disable-default-registry-endpoint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultEndpoint {
    /// After the mirrors.
    Tried,
    /// Not where there are mirrors.
    LeftOut,
}

/// What the name of an image begins with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Registry {
    /// Each that has no entry of its own: `*`.
    Others,
    /// `HOST` or `HOST:PORT`, of characters that make the name of a folder.
    Named(String),
}

/// What a host is shown, and by what it is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct HostConfig {
    /// The header `Authorization`.
    authorization: Option<Secret>,
    tls: Tls,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tls {
    ca: Option<PathBuf>,
    /// A certificate, and its key where that is in a file of its own.
    client: Option<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
}

/// A registries.yaml that is not followed.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// It may not be read, or is too long.
    #[error(transparent)]
    File(#[from] FileError),
    /// It says what is not served, or what means nothing.
    #[error("{}{line}: {reason}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: Line,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// A line of a file, counted from 1, where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line(Option<u64>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " line {line}"))
    }
}

impl Registries {
    /// Reads `path`; a file that is not there says nothing, as in k3s.
    ///
    /// # Errors
    /// A file that cannot be read, and what in it cannot be followed, with its line. No error shows a secret.
    pub fn read(path: &Path) -> Result<Self, RegistriesError> {
        let Some(bytes) = k3s_files::read(path)? else { return Ok(Self::default()) };
        file::parse(&bytes).map_err(|file::Wrong { line, reason }| RegistriesError::Wrong {
            path: path.to_owned(),
            line: Line(line),
            reason,
        })
    }
}
