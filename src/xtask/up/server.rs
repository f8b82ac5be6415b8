//! The `k3s server` that `up` starts: a process that outlives `up`, known by its pid file.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Home;
use crate::{dist, traces};

/// Puts the shell into the cgroups named before `--` and becomes the program named after it.
const ENTER_CGROUPS: &str = r#"set -e
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done
shift
exec "$@""#;
/// How long it may take to end; it gives its components up to 90 s.
const STOP: Duration = Duration::from_secs(100);

pub(crate) struct Server {
    pid: i32,
    /// If this process started it: then the kernel keeps it as a zombie until we ask how it ended.
    child: Option<Child>,
    data: PathBuf,
}

impl Server {
    /// Starts it in a session and cgroups of its own, so that it stays when the terminal goes.
    pub(super) fn start(home: &Home) -> Result<Self> {
        let log = File::create(home.log()).with_context(|| format!("Cannot create {}", home.log().display()))?;
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", ENTER_CGROUPS, "sh"]).args(traces::make_own_cgroups()?).arg("--");
        command.arg(dist::folder().join("bin/k3s")).arg("server");
        command.arg("--data-dir").arg(home.data()).arg("--write-kubeconfig").arg(home.kubeconfig());
        // cargo's, for the programs that it runs.
        command.env_remove("LD_LIBRARY_PATH").current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("Cannot run setsid: install util-linux")?;
        let pid = i32::try_from(child.id())?;
        fs::write(home.pid(), pid.to_string()).with_context(|| format!("Cannot write {}", home.pid().display()))?;
        Ok(Self { pid, child: Some(child), data: home.data() })
    }

    /// The one that an earlier `up` started, if it runs.
    pub(crate) fn running(home: &Home) -> Result<Option<Self>> {
        let text = match fs::read_to_string(home.pid()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("Cannot read {}", home.pid().display())),
        };
        // A file that a power cut left empty names nobody.
        let server = text.trim().parse().ok().map(|pid| Self { pid, child: None, data: home.data() });
        Ok(server.filter(Self::is_running))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Fails if it ended.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            let ended = child.try_wait()?;
            ensure!(ended.is_none(), "k3s ended: {}", ended.unwrap_or_default());
        }
        ensure!(self.child.is_some() || self.is_running(), "k3s ended");
        Ok(())
    }

    /// Asks it to end and waits until it did; says whether it did in time.
    pub(crate) fn stop(mut self) -> Result<bool> {
        match kill(Pid::from_raw(self.pid), Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("Cannot stop k3s"),
        }
        let began = Instant::now();
        while self.ensure_running().is_ok() {
            if began.elapsed() > STOP {
                return Ok(false);
            }
            traces::pause();
        }
        Ok(true)
    }

    /// Whether the process of this pid is still the one: pids are used again.
    fn is_running(&self) -> bool {
        let arguments = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let data = self.data.as_os_str().as_encoded_bytes();
        arguments.split(|byte| *byte == 0).any(|argument| argument == data)
    }
}
