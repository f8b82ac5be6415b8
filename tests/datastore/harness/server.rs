//! A datastore under test, as a process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use etcd_client::Client;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    task::JoinHandle,
    time::{Duration, timeout},
};

use crate::{
    place::Place,
    vfs::{DISK_FAILED, Disk},
};

/// How long a server may take to start or to stop.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What etcd says beside its address, in JSON.
const ETCD_SERVES: &str = "serving client traffic insecurely";
/// What kine says before its address.
const KINE_SERVES: &str = "Kine available at ";
/// Its database is `db/state.db` in the folder where it runs, its log the standard error.
const KINE: &str = r#"cd "$0" && exec "$@" 2>&1"#;

/// Which datastore is tested.
#[derive(Clone, Debug)]
pub enum Datastore {
    /// Ours, by the `datastore-server` of this package.
    Store(PathBuf),
    /// etcd, by its program.
    Etcd(PathBuf),
    /// kine, by its program. It keeps its database where ours does.
    Kine(PathBuf),
}

impl Datastore {
    /// etcd as the components' cache has it, the newest if there are several.
    ///
    /// # Errors
    /// There is none.
    pub fn etcd() -> Result<Self> {
        component("etcd").map(Self::Etcd)
    }

    /// kine as the components' cache has it, the newest if there are several.
    ///
    /// # Errors
    /// There is none.
    pub fn kine() -> Result<Self> {
        component("kine").map(Self::Kine)
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Store(_) => "ours",
            Self::Etcd(_) => "etcd",
            Self::Kine(_) => "kine",
        }
    }
}

/// The program of a component of the same name.
fn component(name: &str) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from);
    let components = cache.join("k3s/components");
    let folders = fs::read_dir(&components).into_iter().flatten().filter_map(Result::ok);
    let builds = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with(&format!("{name}-")));
    let programs = builds.map(|build| build.path().join(name)).filter(|program| program.exists());
    let newest = programs.max_by_key(|program| fs::metadata(program).and_then(|program| program.modified()).ok());
    newest.with_context(|| format!("there is no {name} in {}: run cargo xtask components {name}", components.display()))
}

/// A running datastore. It is killed when this is dropped.
pub struct Server {
    child: Child,
    pid: Pid,
    address: String,
    /// Reads what the server says, so that it never waits for a reader, until its end. Whether its disk has failed.
    listening: JoinHandle<bool>,
}

impl Server {
    /// Starts the datastore on what the place holds, and waits until it serves.
    ///
    /// # Errors
    /// It ends, or says nothing in time: what it said last. etcd has honest disks only.
    pub async fn start(datastore: &Datastore, place: &Place, disk: Disk) -> Result<Self> {
        let mut command = match datastore {
            Datastore::Store(program) => {
                let mut command = place.command(program);
                command.arg(place.path().join("db/state.db")).arg(disk.to_string());
                command
            }
            Datastore::Etcd(program) => {
                let mut command = place.command(program);
                let any = "http://127.0.0.1:0";
                command.arg("--data-dir").arg(place.path().join("etcd"));
                for flag in ["listen-client-urls", "advertise-client-urls", "listen-peer-urls"] {
                    command.args([&format!("--{flag}"), any]);
                }
                command.args(["--initial-advertise-peer-urls", any, "--initial-cluster", &format!("default={any}")]);
                // Its timing is as it comes: with shorter elections it panics at times after a restart, since it scans entries that
                // it has compacted already ("error scanning unapplied entries").
                command.args(["--log-outputs", "stdout"]);
                ensure!(disk == Disk::Honest, "etcd cannot be given another disk");
                command
            }
            Datastore::Kine(program) => {
                ensure!(disk == Disk::Honest, "kine cannot be given another disk");
                let mut command = place.command(Path::new("sh"));
                command.args(["-c", KINE]).arg(place.path()).arg(program);
                command.args(["--listen-address", "127.0.0.1:0", "--metrics-bind-address", "0"]);
                // As much as it is asked to: it keeps a thousand revisions otherwise.
                command.args(["--compact-min-retain", "0"]);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.as_std()))?;
        let id = child.id().context("the server has ended")?;
        let mut lines = BufReader::new(child.stdout.take().context("the server says nothing")?).lines();
        let starting = timeout(PATIENCE, address(&mut lines));
        let started = starting.await.unwrap_or_else(|_| Err(anyhow!("nothing in {PATIENCE:?}")));
        let (address, mut has_failed) = started.with_context(|| format!("{} did not start", datastore.name()))?;
        let listening = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                has_failed |= line == DISK_FAILED;
            }
            has_failed
        });
        Ok(Self { child, pid: Pid::from_raw(i32::try_from(id)?), address, listening })
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn connect(&self) -> Result<Client> {
        Client::connect([&self.address], None).await.with_context(|| format!("cannot connect to {}", self.address))
    }

    /// Where it serves, as a URL.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops it as it is: none of its threads runs any more when this returns. One that waits for the disk still does.
    ///
    /// # Errors
    /// It is gone.
    pub async fn freeze(&self) -> Result<()> {
        kill(self.pid, Signal::SIGSTOP).context("cannot freeze the server")?;
        let standing = async {
            while !self.stands_still().context("the server is gone")? {
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        timeout(PATIENCE, standing).await.context("the server does not stand still")?
    }

    fn stands_still(&self) -> std::io::Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            // After the name, which is in parentheses: stopped, or in the kernel until the disk answers.
            if !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['T', 'D'])) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `kill -9`, also when it has ended by itself. Returns whether its disk had failed.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn kill(mut self) -> Result<bool> {
        self.child.kill().await.context("cannot kill the server")?;
        self.listening.await.context("reading what the server says failed")
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// It does not stop in time.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        kill(self.pid, Signal::SIGTERM).context("cannot stop the server")?;
        let status = timeout(PATIENCE, self.child.wait()).await.context("the server does not stop")??;
        self.listening.await.context("reading what the server says failed")?;
        Ok(status)
    }
}

/// Reads until the server says where it serves. Returns that, and whether its disk has failed by then.
async fn address(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<(String, bool)> {
    let mut has_failed = false;
    let mut last = String::new();
    while let Some(line) = lines.next_line().await? {
        if let Some(address) = line.strip_prefix("serving ") {
            return Ok((address.to_owned(), has_failed));
        }
        if let Some((_, address)) = line.split_once(KINE_SERVES) {
            return Ok((address.trim_end().to_owned(), has_failed));
        }
        if line.contains(ETCD_SERVES) {
            let said: serde_json::Value = serde_json::from_str(&line).context("etcd's log is no JSON")?;
            let address = said["address"].as_str().context("etcd does not say where it serves")?;
            return Ok((format!("http://{address}"), has_failed));
        }
        has_failed |= line == DISK_FAILED;
        last = line;
    }
    bail!("it ended with: {last}")
}
