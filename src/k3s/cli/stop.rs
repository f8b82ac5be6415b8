//! `k3s stop`: ends the k3s of this machine, and with `--all` everything that would outlive it.

use std::{fs::File, path::Path, process::ExitCode, time::Duration};

use k3s_components::Paths;
use k3s_config::Role;
use k3s_daemon::{Error, lock};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use tokio::{
    net::UnixStream,
    process::Command,
    time::{Instant, sleep},
};

use super::{
    Failure,
    failure::{IO_ERROR, NO_PERMISSION, OS_ERROR, UNAVAILABLE},
    globals::Globals,
    location::NodeFlags,
    output::line,
    runtime,
};

/// The longest grace period of pods, critical ones after the others, and then our own stop.
const PATIENCE: Duration = Duration::from_secs(12 * 60);
/// Between looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(100);

/// Without --all pods go on running, and the next start finds them.
///
/// With --all pods end first, by priority and within their grace periods, where k3s runs; what is left then is killed: no process, mount,
/// network namespace, rule, device or cgroup of the node stays. State on disk does, so that the next start is like one after a reboot.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// End pods, too, and leave nothing of the node but its state on disk
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    node: NodeFlags,
}

pub(super) fn run(options: Options, globals: Globals) -> Result<ExitCode, Failure> {
    // To others a node that runs looks like one that does not.
    if !Uid::effective().is_root() {
        return Err(Failure::new(NO_PERMISSION, "k3s runs as root, and only root can stop it: run this as root"));
    }
    let paths = Paths::new(options.node.locate(globals)?.data_dir, Paths::RUN);
    runtime::run(async {
        match (options.all, running(&paths).await) {
            (false, None) => line("k3s does not run.")?,
            (false, Some(pid)) => {
                stop(pid, &paths).await?;
                line("Stopped k3s. Pods go on running.")?;
            }
            (true, pid) => stop_all(pid, &paths).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn stop_all(pid: Option<Pid>, paths: &Paths) -> Result<(), Failure> {
    let asked = |error| Failure::new(IO_ERROR, format!("{} cannot be written: {error}", paths.run().display()));
    if let Some(pid) = pid {
        k3s_agent::ask_to_end_pods(paths, true).map_err(asked)?;
        let stopped = stop(pid, paths).await;
        k3s_agent::ask_to_end_pods(paths, false).map_err(asked)?;
        stopped?;
    }
    // Nothing starts meanwhile.
    let _locks = locks(paths)?;
    let found = k3s_agent::remove_leftovers(paths).await;
    if !found.remaining.is_empty() {
        let remaining = found.remaining.join("; ");
        return Err(Failure::new(
            OS_ERROR,
            format!("some of the node is still there: {remaining}; try again, or restart the host"),
        ));
    }
    line(format_args!(
        "Stopped k3s and its pods. Of what they had left, {} processes were killed and {} mounts taken away.",
        found.processes, found.mounts
    ))
}

/// The process that serves the status here.
async fn running(paths: &Paths) -> Option<Pid> {
    let stream = UnixStream::connect(paths.status_socket()).await.ok()?;
    stream.peer_cred().ok()?.pid().map(Pid::from_raw)
}

/// Ends it by its service manager, which would start it again otherwise, and waits until it has ended.
async fn stop(pid: Pid, paths: &Paths) -> Result<(), Failure> {
    match unit_of(pid).await {
        Some(unit) => {
            let stopped = Command::new("systemctl").args(["stop", &unit]).status().await;
            if !stopped.as_ref().is_ok_and(std::process::ExitStatus::success) {
                return Err(Failure::new(
                    UNAVAILABLE,
                    format!("`systemctl stop {unit}` failed: see `journalctl -u {unit}`"),
                ));
            }
        }
        None => match kill(pid, Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(Failure::new(OS_ERROR, format!("k3s (pid {pid}) cannot be stopped: {errno}"))),
        },
    }
    let deadline = Instant::now() + PATIENCE;
    while let Err(failure) = locks(paths) {
        if Instant::now() >= deadline {
            return Err(failure);
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// The unit whose main process this is, unless systemd is stopping it already and waits for us.
async fn unit_of(pid: Pid) -> Option<String> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let unit = service(&cgroup)?;
    let shown = Command::new("systemctl").args(["show", "--property=MainPID,ActiveState", unit]).output().await.ok()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let is_main = shown.lines().any(|line| line == format!("MainPID={pid}"));
    let is_stopping = shown.lines().any(|line| line == "ActiveState=deactivating");
    (is_main && !is_stopping).then(|| unit.to_owned())
}

/// The service in a `/proc/PID/cgroup`.
fn service(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.rsplit('/').find(|part| part.ends_with(".service")))
}

/// What a k3s that runs holds, of each role that this machine has had.
fn locks(paths: &Paths) -> Result<Vec<File>, Failure> {
    let roles = [(Role::Server, paths.server()), (Role::Agent, paths.agent())];
    let known = roles.iter().filter(|(_, dir)| dir.is_dir());
    known
        .map(|(role, _)| lock(*role, paths))
        .collect::<Result<_, Error>>()
        .map_err(|error| Failure::from_error(error.exit_code(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_in_either_kind_of_hierarchy() {
        assert_eq!(service("0::/system.slice/k3s.service/supervisor\n"), Some("k3s.service"));
        assert_eq!(
            service("4:memory:/user.slice\n1:name=systemd:/system.slice/k3s-agent.service\n"),
            Some("k3s-agent.service")
        );
        assert_eq!(service("0::/user.slice/session-1.scope\n"), None);
    }
}
