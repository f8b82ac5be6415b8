//! What can be wrong with a configuration, and what is merely worth saying.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use sysexits::ExitCode;

use crate::{
    flags::{Refusal, Role},
    network::PortRange,
};

/// Why there is no configuration: one sentence that says where, what and what to do. None holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--help` was asked for; this is its text.
    #[error("{0}")]
    Help(String),
    /// `--version` was asked for.
    #[error("the version was asked for")]
    Version,
    /// The command line has a flag that does not exist.
    #[error("{flag} is not a flag of k3s {}; {}", role.verb(), suggestion(*nearest, "--", "see `--help` for all"))]
    UnknownFlag {
        /// As it was written, without its value.
        flag: String,
        /// The role that does not have it.
        role: Role,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// The command line has a flag of the other role.
    #[error("--{flag} is a flag of k3s {}, not of k3s {}; leave it out", role.other().verb(), role.verb())]
    FlagOfOtherRole {
        /// Its name.
        flag: &'static str,
        /// The role that does not have it.
        role: Role,
    },
    /// The command line has a word that belongs to no flag.
    #[error(
        "{} on the command line of k3s {} belongs to no flag; write switches as --flag=true and quote values that contain spaces",
        argument.as_deref().map_or("a word".to_owned(), |text| format!("`{text}`")),
        role.verb()
    )]
    StrayArgument {
        /// The role.
        role: Role,
        /// The word; `None` where it may be part of a secret.
        argument: Option<String>,
    },
    /// The command line ends, or goes on with a flag, where a value belongs.
    #[error("{flag} needs a value; write it as {flag}=VALUE")]
    MissingValue {
        /// As it was written.
        flag: String,
    },
    /// A configuration file has a key that is no flag; only a check refuses it.
    #[error(transparent)]
    UnknownKey(#[from] UnknownKey),
    /// A value asks for something that k3s has and this version does not.
    #[error("{place}: {} is not served by this version; {}", refusal.what, refusal.instead)]
    NotServed {
        /// Where it is asked for.
        place: Place,
        /// What it is, and what to do.
        refusal: Refusal,
    },
    /// A value is wrong.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where it stands.
        place: Place,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file or directory that was asked for cannot be read.
    #[error("{place}: {} cannot be read ({source}); check that it exists and may be read", path.display())]
    Unreadable {
        /// Who names it.
        place: Place,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A configuration file is not what a configuration file is.
    #[error("{} line {line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Error {
    /// The process's exit code, after sysexits.h: 64 where the command line is wrong, 78 where a file or the environment is.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Help(_) | Self::Version => ExitCode::Ok,
            Self::UnknownFlag { .. }
            | Self::FlagOfOtherRole { .. }
            | Self::StrayArgument { .. }
            | Self::MissingValue { .. } => ExitCode::Usage,
            Self::NotServed { place, .. } | Self::Invalid { place, .. } | Self::Unreadable { place, .. } => {
                match place.origin {
                    Origin::CommandLine => ExitCode::Usage,
                    Origin::Variable(_) | Origin::File { .. } | Origin::Hostname | Origin::Default => ExitCode::Config,
                }
            }
            Self::UnknownKey(_) | Self::Malformed { .. } => ExitCode::Config,
        }
    }
}

/// Something that does not stop a start; k3s goes on here too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A configuration file has a key that is no flag.
    #[error(
        "{} line {}: `{}` is not a key and is skipped; {}.",
        _0.path.display(),
        _0.line,
        _0.key,
        suggestion(_0.nearest, "", KEYS)
    )]
    UnknownKey(UnknownKey),
    /// A flag's name is out of date.
    #[error("{place} is deprecated; use {instead}.")]
    Deprecated {
        /// Where it is used.
        place: Place,
        /// What to use.
        instead: String,
    },
    /// The range of NodePorts contains a port of the node's own.
    #[error(
        "The NodePort range {}-{} contains {port}, where {owner} listens: a Service that gets it cuts the node off; choose ports apart.",
        range.first,
        range.last
    )]
    NodePortInUse {
        /// The range.
        range: PortRange,
        /// The first such port.
        port: u16,
        /// Who listens there.
        owner: &'static str,
    },
    /// `config` names a file twice.
    #[error("{place} has no effect, as the configuration is read from {}.", read.display())]
    ConfigNotRead {
        /// The one that is not heeded.
        place: Place,
        /// The file that is read.
        read: PathBuf,
    },
}

/// A key in a configuration file that is no flag of any role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} line {line}: `{key}` is not a key; {}", path.display(), suggestion(*nearest, "", KEYS))]
pub struct UnknownKey {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// As it was written.
    pub key: String,
    /// What was probably meant.
    pub nearest: Option<&'static str>,
}

/// A flag and where its value comes from, as people find it: `--token`, `K3S_TOKEN`, `/etc/…/config.yaml line 3, token`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The flag's name.
    pub flag: &'static str,
    /// Where the value comes from.
    pub origin: Origin,
}

/// The sources of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    CommandLine,
    /// The variable of this name.
    Variable(&'static str),
    /// A configuration file.
    File {
        /// Its path.
        path: Arc<Path>,
        /// The line, from 1.
        line: usize,
    },
    /// The host's name.
    Hostname,
    /// Nobody gave one.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dashes = if self.flag.len() == 1 { "-" } else { "--" };
        match &self.origin {
            Origin::CommandLine => write!(f, "{dashes}{}", self.flag),
            Origin::Variable(name) => f.write_str(name),
            Origin::File { path, line } => write!(f, "{} line {line}, {}", path.display(), self.flag),
            Origin::Hostname => f.write_str("the host's name"),
            Origin::Default => write!(f, "the default of {dashes}{}", self.flag),
        }
    }
}

fn suggestion(nearest: Option<&str>, dashes: &str, otherwise: &str) -> String {
    match nearest {
        Some(name) => format!("use {dashes}{name} if that is meant"),
        None => otherwise.to_owned(),
    }
}

const KEYS: &str = "keys are the names of flags without dashes";
