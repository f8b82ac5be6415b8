//! The client program of the datastore benches, `tests/load`, on a node's network.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use cluster_tests::Node;
use serde::Deserialize;

use super::store::ENDPOINT;
use super::usage::Usage;
use crate::process::{cargo, succeed};
use crate::workspace;

const PROGRAM: &str = "datastore-load";

/// The running program. Killed on drop.
pub(super) struct Load {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

/// What came of a phase.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Outcome {
    pub(super) operations: f64,
    /// Changes that the store acknowledged.
    pub(super) writes: f64,
    pub(super) seconds: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Builds the program as fast as it gets: it shares the machine with the store.
pub(super) fn build() -> Result<()> {
    succeed(cargo().args(["build", "--release", "--quiet", "--package", PROGRAM]))
}

fn program() -> PathBuf {
    workspace::target().join("release").join(PROGRAM)
}

impl Load {
    /// Starts it; the store need not be there yet.
    pub(super) fn start(node: &Node, value_bytes: u32) -> Result<Self> {
        let mut command = Command::new(program());
        command
            .args([ENDPOINT, "--value-bytes", &value_bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // What the thread starts is on the thread's network.
        let mut child = node.wire().run(|| command.spawn()).with_context(|| format!("Cannot run {PROGRAM}"))?;
        let says = child.stdout.take().context("The output of the client is not readable")?;
        Ok(Self { child, says: BufReader::new(says).lines() })
    }

    /// Returns when the store has answered it.
    pub(super) fn wait_until_answered(&mut self) -> Result<()> {
        self.line().map(drop)
    }

    /// Runs a phase, as `tests/load/phase.rs` spells it.
    pub(super) fn run(&mut self, phase: &str) -> Result<Outcome> {
        self.answer(phase).with_context(|| format!("The phase `{phase}` failed"))
    }

    fn answer(&mut self, phase: &str) -> Result<Outcome> {
        let to = self.child.stdin.as_mut().context("The client takes no phases")?;
        writeln!(to, "{phase}").context("The client ended")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("The client said {line:?}"))
    }

    /// What it has taken so far.
    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::read(&Path::new("/proc").join(self.child.id().to_string())).context("The client ended")
    }

    fn line(&mut self) -> Result<String> {
        self.says.next().context("The client ended")?.context("Cannot read from the client")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
