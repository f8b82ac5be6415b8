//! What a node leaves on the machine that it ran on, and how that is taken away.
//!
//! One list serves three questions: whether a machine is free for a node (nothing is found), what `down` has to remove, and
//! whether anything is left.

mod before;
mod cgroups;
mod files;
mod mounts;
mod network;

use std::{fmt, fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::Result;
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process::succeed;

pub(crate) use before::Before;
pub(crate) use cgroups::make_own as make_own_cgroups;

/// How often removing a kind of traces is tried, a moment apart: the kernel is done with a process, a namespace or a cgroup some time
/// after it was told, and a folder has to wait for what is in it.
const ATTEMPTS: u32 = 40;

/// One thing that a node left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trace {
    Process {
        pid: i32,
        name: String,
    },
    Mount(PathBuf),
    /// A network namespace that has a name.
    NetworkNamespace(PathBuf),
    Interface(String),
    /// The node's chains in the tables that this iptables program shows.
    Chains(&'static str),
    /// An nftables table, by family and name.
    Table(String),
    Cgroup(PathBuf),
    File(PathBuf),
    /// A kernel setting that had another value.
    Setting {
        path: PathBuf,
        value: String,
    },
}

/// How all traces of a kind are found.
type Find = fn(&Before) -> Result<Vec<Trace>>;

/// In the order in which they let go of each other.
const KINDS: [Find; 9] = [
    cgroups::processes,
    mounts::mounts,
    mounts::network_namespaces,
    network::interfaces,
    network::chains,
    network::tables,
    cgroups::cgroups,
    files::files,
    files::settings,
];

/// Everything that is here now and was not `before`.
pub(crate) fn find(before: &Before) -> Result<Vec<Trace>> {
    let mut found = Vec::new();
    for kind in KINDS {
        found.append(&mut kind(before)?);
    }
    Ok(found)
}

/// Removes everything that was not there `before`. Returns a line for each thing that cannot be removed.
pub(crate) fn remove(before: &Before) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in KINDS {
        for attempt in 1..=ATTEMPTS {
            let found = kind(before)?;
            if found.is_empty() {
                break;
            }
            for trace in found {
                let removed = trace.remove();
                if attempt == ATTEMPTS {
                    left.push(match removed {
                        Ok(()) => format!("{trace} comes back"),
                        Err(error) => format!("{trace}: {error:#}"),
                    });
                }
            }
            pause();
        }
    }
    Ok(left)
}

/// Lets a moment pass where nothing tells when to look again.
#[expect(clippy::disallowed_methods, reason = "the kernel and other processes are polled where they offer no event")]
pub(crate) fn pause() {
    thread::sleep(Duration::from_millis(100));
}

impl Trace {
    fn remove(&self) -> Result<()> {
        match self {
            Self::Process { pid, .. } => kill(Pid::from_raw(*pid), Signal::SIGKILL)?,
            Self::Mount(path) => umount2(path, MntFlags::MNT_DETACH)?,
            Self::NetworkNamespace(path) => {
                // Not a mount if its making was cut short.
                let _ = umount2(path, MntFlags::MNT_DETACH);
                fs::remove_file(path)?;
            }
            Self::Interface(name) => succeed(Command::new("ip").args(["link", "delete", name]))?,
            Self::Chains(program) => network::remove_chains(program)?,
            Self::Table(table) => succeed(Command::new("nft").args(["delete", "table"]).args(table.split(' ')))?,
            Self::Cgroup(path) => fs::remove_dir(path)?,
            Self::File(path) if path.is_dir() && !path.is_symlink() => fs::remove_dir_all(path)?,
            Self::File(path) => fs::remove_file(path)?,
            Self::Setting { path, value } => fs::write(path, value)?,
        }
        Ok(())
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::NetworkNamespace(path) => write!(f, "network namespace {}", path.display()),
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Chains(program) => write!(f, "chains of {program}"),
            Self::Table(table) => write!(f, "nftables table {table}"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Setting { path, value } => write!(f, "setting {}, which was {value}", path.display()),
        }
    }
}
