//! Asking a node's API from outside of the node, with one process for each question: curl polls or watches by itself, so that asking
//! costs the machine next to nothing.

use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Node, Wire};
use serde_json::Value;

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(180);

/// The API on a port of a node's loopback, for its administrator.
pub(super) struct Api<'a> {
    node: &'a Node,
    wire: Wire,
    port: u16,
}

/// A curl under way, and what it says line by line. It is killed on drop.
struct Curl {
    child: Child,
    says: PipeReader,
}

impl<'a> Api<'a> {
    /// The API need not be there yet.
    pub(super) fn of(node: &'a Node, port: u16) -> Self {
        Self { node, wire: node.wire(), port }
    }

    /// Waits until somebody listens and the administrator has a certificate: what curl needs to begin.
    pub(super) fn wait_until_reachable(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
        while !(self.tls("client-admin.key").exists() && self.wire.run(listens)) {
            ensure!(Instant::now() < deadline, "Nobody listens on port {} after {PATIENCE:?}", self.port);
            pass(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Repeats a request 20 times a second, and returns when it was first answered with `status`.
    pub(super) fn poll(&self, path: &str, status: u16, more: &[&str]) -> Result<Instant> {
        // A query that nobody reads tells the repetitions apart.
        let url = self.url(&format!("{path}?try=[1-{}]", PATIENCE.as_secs() * 20));
        // Standard output would come in blocks.
        let mut options = vec!["--rate", "20/s", "--output", "/dev/null", "--write-out", "%{stderr}%{http_code}\n"];
        options.extend(more);
        let mut curl = self.curl(&url, &options)?;
        curl.until(|line| line == status.to_string()).with_context(|| format!("{path} was not answered with {status}"))
    }

    /// Watches the objects of a list, and returns when one first was as it should be.
    pub(super) fn watch(&self, list: &str, done: impl Fn(&Value) -> bool) -> Result<Instant> {
        let url = self.url(&format!("{list}?watch=1&timeoutSeconds={}", PATIENCE.as_secs()));
        let done = |line: &str| serde_json::from_str(line).is_ok_and(|event: Value| done(&event["object"]));
        self.curl(&url, &["--no-buffer"])?.until(done).with_context(|| format!("{list} did not get as expected"))
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    fn tls(&self, name: &str) -> PathBuf {
        self.node.path("/var/lib/rancher/k3s/server/tls").join(name)
    }

    fn curl(&self, url: &str, options: &[&str]) -> Result<Curl> {
        let mut command = Command::new("curl");
        command.arg("--silent").args(["--max-time", &PATIENCE.as_secs().to_string()]).args(options);
        for (option, file) in
            [("--cacert", "server-ca.crt"), ("--cert", "client-admin.crt"), ("--key", "client-admin.key")]
        {
            command.arg(option).arg(self.tls(file));
        }
        let (says, end) = io::pipe().context("Cannot make a pipe")?;
        command.arg(url).stdin(Stdio::null()).stdout(end.try_clone()?).stderr(end);
        // What the thread starts is on the thread's network.
        let child = self.wire.run(|| command.spawn()).context("Cannot run curl: install it")?;
        Ok(Curl { child, says })
    }
}

impl Curl {
    fn until(&mut self, done: impl Fn(&str) -> bool) -> Result<Instant> {
        let mut last = None;
        for line in BufReader::new(&mut self.says).lines() {
            let line = line.context("Cannot read from curl")?;
            if done(&line) {
                return Ok(Instant::now());
            }
            last = Some(line);
        }
        match last {
            Some(last) => bail!("curl gave up after {last:.300}"),
            None => bail!("curl ended without a word (is it 7.84 or newer?)"),
        }
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets time pass.
#[expect(clippy::disallowed_methods, reason = "a window of time is measured, or another machine offers no event")]
pub(super) fn pass(time: Duration) {
    thread::sleep(time);
}
