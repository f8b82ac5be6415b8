//! The truth about all children, as one document: for `k3s status`, its socket, and whoever reads JSON.

mod memory;
mod socket;
mod table;
mod timeline;

use serde::{Deserialize, Serialize};

use crate::{State, TaskStatus};

pub(crate) use memory::memory_of;
pub use socket::{PATIENCE, StatusError, bind, fetch, serve};
pub use table::WithProblems;
pub use timeline::Timeline;

/// Everything there is to know at one moment. [`Display`](std::fmt::Display) writes it as a table for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How all of it does.
    pub health: Health,
    /// The same in a sentence, with what is waited for.
    pub headline: String,
    /// When the supervisor started, in milliseconds of Unix time.
    pub started_at: u64,
    /// How long ago that was.
    pub uptime_ms: u64,
    /// The programs, by name.
    pub components: Vec<Component>,
    /// The work in our own process, by name.
    #[serde(default)]
    pub tasks: Vec<TaskStatus>,
    /// The conditions in our own process, by name.
    pub gates: Vec<GateStatus>,
    /// What was settled at the start by what the machine is like, by name.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// What the user should know or do, a sentence each.
    pub warnings: Vec<String>,
    /// State changes until each was ready for the first time.
    pub timeline: Vec<Moment>,
    /// Where components' cgroups are, or why there are none.
    pub cgroups: String,
}

impl Status {
    /// Whether all is well here, and what is not ready waits for what another machine has never brought yet.
    pub fn waits_for_others(&self) -> bool {
        let runs_or_waits = |component: &Component| component.state.is_ready() || component.state == State::Waiting;
        self.health == Health::Starting
            && self.gates.iter().any(|gate| gate.elsewhere)
            && self.components.iter().all(runs_or_waits)
    }
}

/// How a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Something has not been ready yet.
    Starting,
    /// Everything is ready.
    Ready,
    /// Something that was ready is not, or something cannot be done.
    Degraded,
    /// The end has begun.
    Stopping,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// Its process, if one runs.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u64,
    /// How its last process ended.
    pub last_exit: Option<LastExit>,
    /// How long it has been in this state.
    pub in_state_ms: u64,
    /// When its process started, in milliseconds of Unix time.
    pub started_at: Option<u64>,
    /// When its process was ready, in milliseconds of Unix time.
    pub ready_at: Option<u64>,
    /// Its process' memory in bytes: its share of all pages (PSS).
    pub memory: Option<u64>,
    /// What keeps it from being ready.
    pub waiting_for: Option<String>,
    /// The programs and conditions that have to be ready before it starts.
    #[serde(default)]
    pub after: Vec<String>,
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// How it ended.
    #[serde(flatten)]
    pub how: ExitKind,
    /// When, in milliseconds of Unix time.
    pub at: u64,
    /// Its last error, or else its last line.
    pub last_words: Option<String>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal, e.g. `SIGKILL`.
    Signal(String),
    /// It did not even start, for this reason.
    NotStarted(String),
    /// Its status went to somebody else.
    Unknown(()),
}

/// A condition in our own process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// Its name.
    pub name: String,
    /// Whether what is after it may start.
    pub open: bool,
    /// What keeps it closed.
    pub waiting_for: Option<String>,
    /// Whether another machine has to bring that, and has never done so yet.
    #[serde(default)]
    pub elsewhere: bool,
}

/// A setting that depends on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Its flag, without dashes.
    pub name: String,
    /// What it was settled to.
    pub value: String,
    /// By what.
    pub why: String,
}

/// What a [`Moment`] says of a gate that lets through what is after it.
pub(crate) const OPEN: &str = "open";

/// A point of the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since the supervisor started.
    pub at_ms: u64,
    /// The program or gate.
    pub name: String,
    /// Its new state.
    pub what: String,
}

impl std::fmt::Display for LastExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.how {
            ExitKind::Code(code) => write!(f, "exited with {code}")?,
            ExitKind::Signal(signal) => write!(f, "ended by {signal}")?,
            ExitKind::NotStarted(why) => write!(f, "could not be started: {why}")?,
            ExitKind::Unknown(()) => write!(f, "ended")?,
        }
        match &self.last_words {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
impl Status {
    /// A server that starts.
    pub(crate) fn example() -> Self {
        use crate::{ObjectStatus, TaskFailure, TaskState};
        let component = |name: &str, state| Component {
            name: name.to_owned(),
            state,
            pid: None,
            restarts: 0,
            last_exit: None,
            in_state_ms: 0,
            started_at: None,
            ready_at: None,
            memory: None,
            waiting_for: None,
            after: Vec::new(),
        };
        let task = |name: &str, state| TaskStatus {
            name: name.to_owned(),
            state,
            restarts: 0,
            in_state_ms: 0,
            last_failure: None,
            line: None,
            problems: Vec::new(),
            objects: Vec::new(),
        };
        Self {
            health: Health::Degraded,
            headline: "Degraded: kube-scheduler (exited with 1: E1121 no such file).".into(),
            started_at: 1_795_000_000_000,
            uptime_ms: 754_000,
            components: vec![
                Component {
                    pid: Some(101),
                    restarts: 1,
                    in_state_ms: 750_300,
                    memory: Some(219 << 20),
                    last_exit: Some(LastExit {
                        how: ExitKind::Signal("SIGKILL".into()),
                        at: 1_795_000_003_000,
                        last_words: None,
                    }),
                    ..component("kube-apiserver", State::Ready)
                },
                Component {
                    in_state_ms: 900,
                    last_exit: Some(LastExit {
                        how: ExitKind::Code(1),
                        at: 1_795_000_753_000,
                        last_words: Some("E1121 no such file".into()),
                    }),
                    waiting_for: Some("exited with 1: E1121 no such file".into()),
                    ..component("kube-scheduler", State::Backoff)
                },
                Component {
                    waiting_for: Some("images".into()),
                    in_state_ms: 754_000,
                    ..component("kubelet", State::Waiting)
                },
            ],
            tasks: vec![
                TaskStatus {
                    in_state_ms: 750_000,
                    line: Some("1 of 2 manifests is applied".into()),
                    objects: [("coredns.yaml", "applied", None), ("mine.yaml", "waits", Some("it is not YAML"))]
                        .map(|(object, state, why)| ObjectStatus {
                            object: object.into(),
                            state: state.into(),
                            why: why.map(str::to_owned),
                        })
                        .into(),
                    ..task("addons", TaskState::Running)
                },
                TaskStatus {
                    restarts: 3,
                    in_state_ms: 1_200,
                    last_failure: Some(TaskFailure {
                        at: 1_795_000_753_000,
                        why: "it panicked: index out of bounds".into(),
                    }),
                    ..task("node-hosts", TaskState::Backoff)
                },
            ],
            gates: vec![
                GateStatus { name: "datastore".into(), open: true, waiting_for: None, elsewhere: false },
                GateStatus {
                    name: "images".into(),
                    open: false,
                    waiting_for: Some("importing coredns.tar".into()),
                    elsewhere: false,
                },
            ],
            decisions: vec![Decision {
                name: "resource-profile".into(),
                value: "small".into(),
                why: "the machine has 512 MiB".into(),
            }],
            warnings: vec!["The FORWARD chain's policy is DROP: pods cannot reach other nodes.".into()],
            timeline: vec![Moment { at_ms: 3, name: "datastore".into(), what: "open".into() }],
            cgroups: "none: not delegated".into(),
        }
    }
}
