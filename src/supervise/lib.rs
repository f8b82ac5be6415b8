//! Children and their lives: started in order, known to be ready, restarted alone, stopped in reverse, and the truth about them told.
//!
//! A [`Program`](program::Program) says what a child is. A [`Supervisor`] runs many: it starts one when the programs and
//! [`Gate`]s it is after have been ready once, and from then on one child's failure is that child's restart and nobody else's.
//! A child is ready once its [`readiness`](program::Program::readiness) has said yes (`until_answered` in `runner.rs`); from then on its
//! [`liveness`](program::Program::liveness) is asked, where it has one.
//! Work of our own process runs beside them as a [`Task`] each, whose panic or error is likewise its own restart. What does one thing
//! and ends is run by [`Supervisor::run_once`].
//! What all of them do is told to systemd by [`notify`], to people and programs by [`status`].
//!
//! No child outlives this process: see `spawn.rs`. What children leave behind on purpose (containers and their shims) is not touched.

pub mod capability;
pub mod cgroup;
pub mod log;
pub mod notify;
pub mod program;
pub mod status;

mod backoff;
mod gate;
mod graph;
mod one_shot;
mod probe;
mod runner;
mod spawn;
mod state;
mod status_store;
mod supervisor;
mod task;

pub use backoff::Backoff;
pub use gate::Gate;
pub use graph::GraphError;
pub use state::State;
pub use supervisor::{NotReady, Options, StopReport, Supervisor, UnknownProgram};
pub use task::{ObjectStatus, Problem, StatusLine, Task, TaskError, TaskFailure, TaskState, TaskStatus};
