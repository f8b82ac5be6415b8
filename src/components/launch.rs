//! A program together with the files it reads.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use k3s_config::{args::ComponentArgs, network::reached_at};
use k3s_files::{self as files, FileError};
use k3s_supervise::program::{Probe, Program};

/// Everything one component needs: files first, then the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Written before the program starts, and only where their content differs.
    pub files: Vec<File>,
    /// What the supervisor runs.
    pub program: Program,
}

impl Launch {
    /// Writes the files.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn install_files(&self) -> Result<(), FileError> {
        for file in &self.files {
            if let Some(dir) = file.path.parent() {
                files::create_directory(dir, 0o700)?;
            }
            files::write(&file.path, file.content.as_bytes(), files::PRIVATE)?;
        }
        Ok(())
    }
}

/// A configuration file of ours for a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it goes; its directory is made with mode 0700.
    pub path: PathBuf,
    /// The whole content.
    pub content: String,
}

/// A question after the health of a component that tells it at `bind` (an address, or one with a port), of course by loopback where it
/// listens everywhere. Port 0 tells nothing.
pub(crate) fn health_probe(bind: &str, port: u16, path: &str) -> Probe {
    let address = match (bind.parse::<SocketAddr>(), bind.parse::<IpAddr>()) {
        (Ok(address), _) => SocketAddr::new(reached_at(address.ip()), address.port()),
        (_, Ok(address)) => SocketAddr::new(reached_at(address), port),
        // What is no address the component refuses itself.
        _ => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    };
    match address.port() {
        0 => Probe::Started,
        _ => Probe::Http { address, path: path.into() },
    }
}

/// Default flags of a component, before the user's arguments.
#[derive(Debug, Default)]
pub(crate) struct Flags(BTreeMap<String, String>);

impl Flags {
    pub(crate) fn set(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// A list as Kubernetes' flags take it: with commas.
    pub(crate) fn list<T: ToString>(&mut self, name: &str, values: &[T]) -> &mut Self {
        self.set(name, values.iter().map(T::to_string).collect::<Vec<_>>().join(","))
    }

    pub(crate) fn path(&mut self, name: &str, value: PathBuf) -> &mut Self {
        self.set(name, value.display())
    }

    /// klog's verbosity, left out at its default.
    pub(crate) fn verbosity(&mut self, level: u8) -> &mut Self {
        if level > 0 {
            self.set("v", level);
        }
        self
    }

    /// Those that `is_meant`, taken out.
    pub(crate) fn take(&mut self, is_meant: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| is_meant(name));
        self.0 = left;
        taken
    }

    /// The command line: our defaults with the user's arguments merged in as k3s does.
    pub(crate) fn merged(self, user: &ComponentArgs) -> Vec<OsString> {
        user.merge(self.0).into_iter().map(OsString::from).collect()
    }
}
