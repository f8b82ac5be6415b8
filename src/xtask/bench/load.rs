//! The client programs of the benches, `tests/load`, on a node's network.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use cluster_tests::{Node, Wire};
use serde::Deserialize;

use super::usage::Usage;
use crate::process::{cargo, succeed};
use crate::workspace;

/// A program, by what it asks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Program {
    /// A store that speaks etcd's API.
    Datastore,
    /// A Kubernetes API.
    Api,
    /// A Kubernetes API, as nodes do.
    Nodes,
    /// A Kubernetes API, which it harms as long as it runs.
    Attack,
}

/// The running program. Killed on drop.
pub(super) struct Load {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

/// What came of a phase.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Outcome {
    pub(super) operations: f64,
    /// Changes that were acknowledged.
    pub(super) writes: f64,
    /// How often one had to be repeated, since there were too many.
    #[serde(default)]
    pub(super) refused: f64,
    pub(super) seconds: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Builds the programs as fast as they get: they share the machine with what they ask.
pub(super) fn build() -> Result<()> {
    succeed(cargo().args(["build", "--release", "--quiet", "--package", "load"]))
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Datastore => "datastore-load",
            Self::Api => "api-load",
            Self::Nodes => "fake-nodes",
            Self::Attack => "attack",
        }
    }
}

impl Load {
    /// Starts it on a node's network; what it asks need not be there yet.
    pub(super) fn start<Arg: AsRef<OsStr>>(
        program: Program,
        wire: &Wire,
        args: impl IntoIterator<Item = Arg>,
    ) -> Result<Self> {
        let path = workspace::target().join("release").join(program.name());
        let mut command = match program {
            // Another host's processor does this: of this one's it gets what nobody wants.
            Program::Attack => {
                let mut command = Command::new("chrt");
                command.args(["--idle", "0"]).arg(path);
                command
            }
            Program::Datastore | Program::Api | Program::Nodes => Command::new(path),
        };
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        // What the thread starts is on the thread's network.
        let mut child = wire.run(|| command.spawn()).with_context(|| format!("Cannot run {}", program.name()))?;
        let says = child.stdout.take().context("The output of the client is not readable")?;
        Ok(Self { child, says: BufReader::new(says).lines() })
    }

    /// Starts it on `wire` with port `port` of a server at `address`, and with that server's certificate `client-NAME`.
    pub(super) fn of_api(
        program: Program,
        wire: &Wire,
        server: &Node,
        (address, port): (Ipv4Addr, u16),
        certificate: &str,
        more: &[&str],
    ) -> Result<Self> {
        let tls = server.path("/var/lib/rancher/k3s/server/tls");
        let files = [
            ("--ca", "server-ca.crt".to_owned()),
            ("--certificate", format!("client-{certificate}.crt")),
            ("--key", format!("client-{certificate}.key")),
        ];
        let files = files.into_iter().flat_map(|(option, file)| [OsString::from(option), tls.join(file).into()]);
        let more = more.iter().map(OsString::from);
        Self::start(program, wire, [format!("{address}:{port}").into()].into_iter().chain(files).chain(more))
    }

    /// Returns when it was answered for the first time.
    pub(super) fn wait_until_answered(&mut self) -> Result<()> {
        self.line().map(drop)
    }

    /// Runs a phase, as the `phase.rs` of the program spells it.
    pub(super) fn run(&mut self, phase: &str) -> Result<Outcome> {
        self.answer(phase).with_context(|| format!("The phase `{phase}` failed"))
    }

    fn answer(&mut self, phase: &str) -> Result<Outcome> {
        let to = self.child.stdin.as_mut().context("The client takes no phases")?;
        writeln!(to, "{phase}").context("The client ended")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("The client said {line:?}"))
    }

    /// Ends it, and returns the last thing it says.
    pub(super) fn end(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        self.line()
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
