//! The process that holds a machine from outside, and the one that goes in to run a command.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{
    cgroup::Cgroup,
    init,
    machine::{Blueprint, Door},
};

const PATH: &str = "/opt/k3s/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program `node-init`: `boot`, `init` and `enter`, each with its task as JSON. Returns the exit code.
///
/// It has one thread, as entering another mount namespace demands.
///
/// # Errors
/// The task is not understood, or a step of it fails.
pub fn node_init(args: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    let text = |index: usize| args.get(index).and_then(|arg| arg.to_str()).unwrap_or_default();
    match text(0) {
        "boot" => boot(text(1)),
        "init" => init::run(&serde_json::from_str(text(1))?),
        "enter" => enter(&serde_json::from_str(text(1))?, args.get(2..).unwrap_or_default()),
        other => bail!("node-init knows boot, init and enter, not \"{other}\": it is started by the test harness"),
    }
}

/// Carries a machine from its cgroups to their removal. Says init's process id on standard output once the machine is up.
fn boot(blueprint: &str) -> Result<u8> {
    let Blueprint { cgroup, memory, .. } = serde_json::from_str(blueprint)?;
    let cgroup = Cgroup::new(&cgroup)?;
    cgroup.create_and_join(memory)?;
    let held = hold(blueprint, &cgroup);
    cgroup.leave()?;
    cgroup.remove()?;
    held.map(|()| 0)
}

fn hold(blueprint: &str, cgroup: &Cgroup) -> Result<()> {
    // The cgroup namespace begins at the cgroup that we are in now.
    unshare(
        CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("cannot make namespaces")?;
    cgroup.settle()?;
    // The mount namespace is init's own: the warden needs the real cgroup mounts to clean up.
    let mut init = Command::new(std::env::current_exe()?)
        .args(["init", blueprint])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start init")?;
    let mut ready = String::new();
    if let Some(stdout) = init.stdout.take() {
        BufReader::new(stdout).read_line(&mut ready).context("cannot read from init")?;
    }
    if ready == init::READY {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", init.id()).and_then(|()| stdout.flush()).context("cannot tell init's process id")?;
    }
    let status = init.wait().context("cannot wait for init")?;
    if ready != init::READY {
        bail!("init ended with {status} before the machine was up");
    }
    Ok(())
}

/// Runs `argv` inside the machine and returns its exit code.
fn enter(door: &Door, argv: &[OsString]) -> Result<u8> {
    let Some((program, args)) = argv.split_first() else { bail!("enter needs a command") };
    Cgroup::new(&door.cgroup)?.join()?;
    // All are opened before the mount namespace changes what /proc shows.
    let namespaces = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ]
    .map(|(name, kind)| {
        let path = format!("/proc/{}/ns/{name}", door.init);
        File::open(&path).with_context(|| format!("cannot open {path}")).map(|file| (file, kind))
    });
    for namespace in namespaces {
        let (file, kind) = namespace?;
        setns(file, kind).context("cannot enter a namespace")?;
    }
    let status = Command::new(program)
        .args(args)
        .current_dir("/root")
        .env_clear()
        .envs(
            [("PATH", PATH), ("HOME", "/root"), ("TERM", "dumb"), ("LANG", "C.UTF-8")].map(|(k, v)| (k, OsStr::new(v))),
        )
        .status()
        .with_context(|| format!("cannot run {} inside", program.display()))?;
    Ok(code(status))
}

/// The exit code as a shell tells it: 128 + signal for a killed process.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
