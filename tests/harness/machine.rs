//! A machine made of namespaces: its own network, mounts, host name, IPC, cgroups and process ids.
//!
//! Three processes carry it. The *warden* lives outside, makes the cgroups and namespaces, and removes the cgroups when the machine has
//! ended. *Init* is process 1 inside: it builds the root file system, then only reaps. Init ends, and with it everything inside, when
//! the pipe that the harness holds is closed, so no machine outlives its test, however that ends. *Enter* runs one command inside.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// What a machine is made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Blueprint {
    /// The host name.
    pub(crate) host_name: String,
    /// The name of its root below the common parent of each cgroup hierarchy.
    pub(crate) cgroup: String,
    /// How many bytes of memory it may have, the pages of its files among them; `None` for any.
    pub(crate) memory: Option<u64>,
    /// The folder that keeps `/etc`, `/var` and the like when the machine is switched off.
    pub(crate) disk: PathBuf,
    /// Folders of the real machine that are seen inside, read-only: from, to.
    pub(crate) shares: Vec<(PathBuf, PathBuf)>,
    /// Where init answers HTTP requests with the address that they came from.
    pub(crate) mirror: Option<SocketAddr>,
}

/// A running machine. Switched off on drop.
#[derive(Debug)]
pub(crate) struct Machine {
    cgroup: String,
    warden: Child,
    init: Pid,
}

/// What [`Machine::command`] hands to `node-init enter`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Door {
    pub(crate) init: i32,
    pub(crate) cgroup: String,
}

impl Machine {
    /// Boots a machine and waits until commands can run in it.
    pub(crate) fn boot(blueprint: &Blueprint) -> Result<Self> {
        let mut warden = Command::new(node_init()?)
            .arg("boot")
            .arg(serde_json::to_string(blueprint)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start node-init")?;
        let mut line = String::new();
        if let Some(stdout) = warden.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("cannot read from node-init")?;
        }
        match line.trim().parse() {
            Ok(init) => Ok(Self { cgroup: blueprint.cgroup.clone(), warden, init: Pid::from_raw(init) }),
            Err(_) => {
                let status = warden.wait().context("cannot wait for node-init")?;
                bail!("the machine {} did not boot: node-init ended with {status}", blueprint.host_name)
            }
        }
    }

    /// Process 1 as the real machine numbers it.
    pub(crate) fn init(&self) -> Pid {
        self.init
    }

    /// A path inside as seen from outside.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// `argv`, to be run inside with a clean environment.
    pub(crate) fn command(&self, argv: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Command> {
        let door = Door { init: self.init.as_raw(), cgroup: self.cgroup.clone() };
        let mut command = Command::new(node_init()?);
        command.arg("enter").arg(serde_json::to_string(&door)?).args(argv.into_iter().map(Into::into));
        Ok(command)
    }

    /// Runs a setup command inside that has no reason to fail.
    pub(crate) fn setup(&self, script: &str) -> Result<()> {
        let output = self.command(["sh", "-ec", script])?.output().context("cannot start node-init")?;
        if !output.status.success() {
            bail!("`{script}` failed with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Kills process 1 and so everything inside at once, and waits until all of it has gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        // Until the warden has been waited for, nobody else can have the number: it holds init as a child.
        if self.warden.try_wait().context("cannot ask for node-init")?.is_none() {
            let _ = kill(self.init, Signal::SIGKILL);
        }
        let status = self.warden.wait().context("cannot wait for node-init")?;
        if !status.success() {
            bail!("a machine's end left something behind: node-init ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}.");
        }
    }
}

/// `node-init`, which Cargo builds one folder above test programs and beside others.
fn node_init() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("node-init"))
        .find(|path| path.is_file())
        .with_context(|| format!("no node-init near {}: build it with `cargo build -p cluster-tests`", own.display()))
}
