//! A node, with the words of the NixOS test driver.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

use crate::{
    k3s::LOG,
    machine::{Blueprint, Machine},
    network::Network,
};

/// How long one command may take before it is killed and counts as failed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(180);

/// How many lines of `k3s`' output a failing test shows.
const TAIL: usize = 60;

/// A machine of namespaces on a [`Network`] that keeps its disk when it is switched off. Gone on drop, disk and all.
///
/// Its methods read and fail as those of the NixOS test driver: what does not go as said panics with the command and its output, and then
/// the end of `k3s`' output is shown.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    blueprint: Blueprint,
    /// `None` while switched off.
    machine: Option<Machine>,
    // Last: the network removes the disk when the last node has gone.
    network: Network,
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The exit code; 128 + signal for a killed command, 124 for one that took too long.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A node's network, which stays as long as this does, also when the node crashes.
#[derive(Debug)]
pub struct Wire {
    namespace: File,
}

impl Wire {
    /// Runs `client` in this process on a thread of its own: what it connects to, it reaches from the node. So do threads that it makes.
    #[track_caller]
    pub fn run<T: Send>(&self, client: impl FnOnce() -> T + Send) -> T {
        let ran = thread::scope(|scope| {
            scope.spawn(|| setns(&self.namespace, CloneFlags::CLONE_NEWNET).map(|()| client())).join()
        });
        match ran {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("cannot enter the network of a node: {error}."),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// A command that runs on in a node after [`Node::background`] has returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its shell's process id inside the node; the command's own if it begins with `exec`.
    pub pid: u32,
    /// The file inside the node that takes its output.
    pub output: PathBuf,
}

impl Node {
    /// Boots the node `name` with an empty disk. The name is its host name and the name of its port on the switch: 15 characters at most.
    #[track_caller]
    pub fn boot(network: &Network, name: &str) -> Self {
        Self::boot_as(network, name, None)
    }

    /// As [`Node::boot`], on a machine with so many bytes of memory and no swap. What it reads of the programs counts, once nobody else has it in
    /// memory: see [`Node::forget_programs`].
    #[track_caller]
    pub fn boot_with_memory(network: &Network, name: &str, memory: u64) -> Self {
        Self::boot_as(network, name, Some(memory))
    }

    #[track_caller]
    fn boot_as(network: &Network, name: &str, memory: Option<u64>) -> Self {
        let run = network.run();
        let shares = [("dist", "/opt/k3s"), ("dist-test", "/opt/k3s-test")]
            .map(|(from, to)| (crate::target().join(from), PathBuf::from(to)))
            .into_iter()
            .filter(|(from, _)| from.is_dir())
            .collect();
        let blueprint = Blueprint {
            host_name: name.to_owned(),
            cgroup: run.cgroup_of(name),
            memory,
            disk: run.disk_of(name),
            shares,
            mirror: None,
        };
        let address = network.lease();
        let mut node = Self { name: name.to_owned(), address, blueprint, machine: None, network: network.clone() };
        node.start();
        node
    }

    /// Switches the node on again, with the disk and the address that it had.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.machine.is_none(), "{} is on already", self.name);
        let booted = Machine::boot(&self.blueprint).and_then(|machine| {
            self.network.plug(&machine, &self.name, self.address)?;
            Ok(machine)
        });
        match booted {
            Ok(machine) => self.machine = Some(machine),
            Err(error) => panic!("{}: {error:#}.", self.name),
        }
    }

    /// Kills every process of the node at once, as when its power is cut, but for what the real machine still has to write to the disk.
    #[track_caller]
    pub fn crash(&mut self) {
        let Some(mut machine) = self.machine.take() else { panic!("{} is off", self.name) };
        if let Err(error) = machine.kill() {
            panic!("{}: {error:#}.", self.name);
        }
    }

    /// Asks every process to end, waits for `k3s`, and switches off.
    #[track_caller]
    pub fn shutdown(&mut self) {
        self.execute("trap '' TERM; pids=$(pgrep -x k3s); kill -TERM -1; for pid in $pids; do tail --pid=$pid -f /dev/null; done");
        self.crash();
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's address on the network.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A file of the node as the test sees it, while the node is on.
    #[track_caller]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.machine().path(inside)
    }

    /// Writes a file of the node, and makes its folders.
    #[track_caller]
    pub fn write(&self, inside: &str, content: &str) {
        let path = self.path(inside);
        let folder = path.parent().unwrap_or(&path);
        if let Err(error) = fs::create_dir_all(folder).and_then(|()| fs::write(&path, content)) {
            panic!("{}: cannot write {inside}: {error}.", self.name);
        }
    }

    /// Runs a shell command and returns how it ended.
    #[track_caller]
    pub fn execute(&self, command: &str) -> Finished {
        let limit = COMMAND_TIMEOUT.as_secs().to_string();
        let argv = ["timeout", "--kill-after=5", &limit, "sh", "-c", command];
        let output = self.machine().command(argv).and_then(|mut command| Ok(command.stdin(Stdio::null()).output()?));
        match output {
            Ok(output) => Finished::from(output),
            Err(error) => panic!("{}: `{command}` cannot be run: {error:#}.", self.name),
        }
    }

    /// Runs a shell command that has to end with 0, and returns its output.
    #[track_caller]
    pub fn succeed(&self, command: &str) -> String {
        let finished = self.execute(command);
        assert!(finished.code == 0, "{}: `{command}` failed with {finished}", self.name);
        finished.stdout
    }

    /// Runs a shell command that must not end with 0, and returns all its output.
    #[track_caller]
    pub fn fail(&self, command: &str) -> String {
        let finished = self.execute(command);
        assert!(finished.code != 0, "{}: `{command}` should have failed, but: {finished}", self.name);
        finished.stdout + &finished.stderr
    }

    /// Repeats a shell command until it ends with 0, and returns its output.
    #[track_caller]
    pub fn wait_until_succeeds(&self, command: &str, timeout: Duration) -> String {
        self.poll(command, timeout, |finished| finished.code == 0).stdout
    }

    /// Waits until something listens on a TCP port of the node.
    #[track_caller]
    pub fn wait_for_open_port(&self, port: u16, timeout: Duration) {
        self.poll(&format!("ss -Hltn 'sport = :{port}'"), timeout, |finished| !finished.stdout.is_empty());
    }

    /// Starts a shell command that runs on as a child of process 1, with its output in a file.
    #[track_caller]
    pub fn background(&self, command: &str) -> Job {
        let output = self.succeed("mktemp -p /var/log job.XXXXXX");
        self.background_into(command, output.trim())
    }

    /// As [`Node::background`], with the output appended to a given file.
    #[track_caller]
    pub fn background_into(&self, command: &str, output: &str) -> Job {
        let quoted = command.replace('\'', r"'\''");
        let pid = self.succeed(&format!("setsid sh -c '{quoted}' </dev/null >>'{output}' 2>&1 & echo $!"));
        match pid.trim().parse() {
            Ok(pid) => Job { pid, output: output.into() },
            Err(_) => panic!("{}: `{command}` has no process id: \"{pid}\"", self.name),
        }
    }

    /// Drops everything between this node and another one, until [`Network::unblock`].
    #[track_caller]
    pub fn block(&self, other: &Self) {
        if let Err(error) = self.network.block(&self.name, &other.name) {
            panic!("{error:#}.");
        }
    }

    /// The node's network, for clients that run in this process.
    #[track_caller]
    pub fn wire(&self) -> Wire {
        let path = format!("/proc/{}/ns/net", self.machine().init());
        match File::open(&path) {
            Ok(namespace) => Wire { namespace },
            Err(error) => panic!("{}: cannot open {path}: {error}.", self.name),
        }
    }

    #[track_caller]
    fn poll(&self, command: &str, timeout: Duration, done: impl Fn(&Finished) -> bool) -> Finished {
        let began = Instant::now();
        loop {
            let finished = self.execute(command);
            if done(&finished) {
                return finished;
            }
            let waited = began.elapsed();
            assert!(waited < timeout, "{}: gave up on `{command}` after {timeout:?}: {finished}", self.name);
            pause(waited);
        }
    }

    #[track_caller]
    fn machine(&self) -> &Machine {
        match &self.machine {
            Some(machine) => machine,
            None => panic!("{} is off", self.name),
        }
    }

    /// A file below `/var` as the test sees it, also while the node is off and when it was on again.
    pub(crate) fn path_on_disk(&self, inside: &str) -> PathBuf {
        self.blueprint.disk.join(inside.trim_start_matches('/'))
    }

    /// The end of `k3s`' output so far, from the disk.
    fn log_tail(&self) -> Option<String> {
        let log = fs::read(self.path_on_disk(LOG)).ok()?;
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        Some(lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }
}

/// The one place where the harness waits for time to pass: what happens inside a node sends it no event. It is asked again after a tenth
/// of what was `waited` for it: `kubectl` takes a processor for longer than that, away from what is waited for.
#[expect(clippy::disallowed_methods, reason = "polls another process that offers no event")]
pub(crate) fn pause(waited: Duration) {
    thread::sleep((waited / 10).clamp(Duration::from_millis(200), Duration::from_secs(1)));
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(tail) = self.log_tail()
        {
            eprintln!("--- the end of k3s' output on {} ---\n{tail}\n---", self.name);
        }
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            // `node-init enter` passes the code on; itself it is not killed.
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}\n{}\n{}", self.code, self.stdout.trim_end(), self.stderr.trim_end())
    }
}
