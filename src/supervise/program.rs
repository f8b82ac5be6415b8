//! What a child is, as data: everything the supervisor needs to know to run one program and to tell how it does.

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;

use crate::capability::Capabilities;

/// One supervised program. Total: nothing in here can fail to make sense once it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The component's name, e.g. `kube-apiserver`: its log identifier, its cgroup leaf and its key in the graph and in `k3s status`.
    pub name: String,
    /// The file to execute.
    pub executable: PathBuf,
    /// The arguments after `argv[0]`, which is `name`: executables may be multi-call binaries.
    pub args: Vec<OsString>,
    /// Environment on top of the inherited one (which never carries the service manager's variables on).
    pub env: BTreeMap<OsString, OsString>,
    /// Working directory; the supervisor's own if `None`.
    pub working_dir: Option<PathBuf>,
    /// Names of programs and gates that have to be ready before this one starts; it stops before they do.
    pub after: Vec<String>,
    /// Says yes once the child is ready.
    pub readiness: Probe,
    /// Checked only once ready; `None` where exiting is the only way to fail.
    pub liveness: Option<Liveness>,
    /// How it is asked to end.
    pub stop: Stop,
    /// `cpu.weight` of its cgroup leaf, 1 to 10000, 100 is neutral; v1 gets `cpu.shares` from it.
    pub cpu_weight: u16,
    /// What it may take, wherever its cgroup is.
    pub limits: Limits,
    /// Written before exec; raising is always allowed, lowering needs CAP_SYS_RESOURCE and is skipped without it.
    pub oom_score_adj: Option<i16>,
    /// What it may do as root.
    pub capabilities: Capabilities,
    /// What becomes of processes that it started and that are still there once it has ended.
    pub descendants: Descendants,
    /// Also kept in this file, for components whose users expect one (containerd's `containerd.log`).
    pub log_file: Option<PathBuf>,
    /// Words in its log after which it quotes the data that it stores. What it quotes is left out: secrets are among it.
    pub quotes_after: &'static [&'static str],
}

/// A question to a running child whose answer is yes or no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Ready as soon as it runs.
    Started,
    /// `GET http://address/path` answers 2xx.
    Http {
        /// Where it listens; loopback.
        address: SocketAddr,
        /// Absolute path, e.g. `/healthz`.
        path: String,
    },
    /// `GET https://address/path` answers 2xx to this client certificate.
    Https {
        /// Where it listens; loopback.
        address: SocketAddr,
        /// Absolute path, e.g. `/readyz`.
        path: String,
        /// The bundle that the server's certificate must chain to.
        ca: PathBuf,
        /// Client certificate and key, PEM files.
        identity: Option<(PathBuf, PathBuf)>,
    },
    /// A unix socket accepts a connection and speaks HTTP/2 (gRPC health where the server has it).
    UnixSocket {
        /// The socket's path.
        path: PathBuf,
    },
}

/// When a child counts as stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Liveness {
    /// What is asked.
    pub probe: Probe,
    /// How often.
    pub interval: Duration,
    /// How long one answer may take.
    pub timeout: Duration,
    /// So many failures in a row of a ready child mean stuck: it is stopped and started anew.
    pub failures: u32,
    /// For how long a child that is not ready yet may answer no before it is stuck; twice as long after each such restart in a row, for
    /// machines that need it. `None`: for ever.
    pub start: Option<Duration>,
}

/// The end of a child's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The polite signal.
    pub signal: Signal,
    /// How long until SIGKILL.
    pub timeout: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: Signal::SIGTERM, timeout: Duration::from_secs(15) }
    }
}

/// The processes that a program leaves in its cgroup leaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Descendants {
    /// Killed: without their program they serve nobody (kube-proxy's `nft`).
    #[default]
    End,
    /// Kept, outside of whatever a stop or restart of ours touches: containerd's shims, a file system's daemon that kubelet mounted.
    Outlive,
}

/// What a process may take, in bytes; a program that takes more fails by itself (setrlimit(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory that it writes to; `None` for any.
    pub memory: Option<u64>,
    /// One file; `None` for any.
    pub file: Option<u64>,
}

impl Program {
    /// A program of this name: without arguments, ready as soon as it runs, restarted when it ends. What differs is set in its place, as in
    /// `Program { args, ..Program::new(name, executable) }`.
    pub fn new(name: &str, executable: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            executable: executable.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            working_dir: None,
            after: Vec::new(),
            readiness: Probe::Started,
            liveness: None,
            stop: Stop::default(),
            cpu_weight: 100,
            oom_score_adj: None,
            limits: Limits::default(),
            capabilities: Capabilities::default(),
            descendants: Descendants::End,
            log_file: None,
            quotes_after: &[],
        }
    }

    /// A shell script that is ready as soon as it runs.
    #[cfg(test)]
    pub(crate) fn example(name: &str, script: &str) -> Self {
        Self { args: vec!["-c".into(), script.into()], ..Self::new(name, "/bin/sh") }
    }
}
