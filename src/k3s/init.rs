//! The process with id 1 of a container that runs `k3s` alone.
//!
//! Whoever has that id inherits every orphan and has to await it, and the kernel keeps signals from it that it does not
//! handle. `k3s` awaits its own children only, so it runs itself as a child and leaves both to this loop.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitCode},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

/// What is passed on to `k3s`: what ends it, and what has it read its configuration again.
const FORWARDED: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Runs `k3s` with `args`, its name first, under a loop that awaits every process, if this is the process with id 1. The code
/// is that of the child; 128 and the signal's number if one ended it. `None` for any other process, which goes on itself.
///
/// # Errors
///
/// The program cannot be started again.
pub(crate) fn run_if_first(args: &[OsString]) -> io::Result<Option<ExitCode>> {
    if getpid() != Pid::from_raw(1) {
        // A child inherits what its parent holds back.
        SigSet::all().thread_unblock()?;
        return Ok(None);
    }
    // Before there is a child that could end.
    let signals: SigSet = FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect();
    signals.thread_block()?;
    let mut again = Command::new(env::current_exe()?);
    if let Some((name, rest)) = args.split_first() {
        again.arg0(name).args(rest);
    }
    let child = again.spawn()?;
    supervise(&child, &signals).map(|code| Some(ExitCode::from(code)))
}

fn supervise(child: &Child, signals: &SigSet) -> io::Result<u8> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(pid)? {
                    return Ok(code);
                }
            }
            // It may have ended just now: its SIGCHLD comes next.
            signal => match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
}

/// Awaits all that have ended, since one SIGCHLD may stand for several; the exit code once `main` is among them.
#[expect(clippy::disallowed_methods, reason = "whoever is orphaned in the container is this process' to await")]
fn reap(main: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(status) if status.pid() == Some(main) => code = exit_code(status).or(code),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn exit_code(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => u8::try_from(code).ok(),
        WaitStatus::Signaled(_, signal, _) => u8::try_from(128 + signal as i32).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_the_childs_or_tells_its_signal() {
        let pid = Pid::from_raw(7);
        assert_eq!(exit_code(WaitStatus::Exited(pid, 78)), Some(78));
        assert_eq!(exit_code(WaitStatus::Signaled(pid, Signal::SIGKILL, false)), Some(137));
        assert_eq!(exit_code(WaitStatus::StillAlive), None);
    }

    #[test]
    fn only_the_first_process_is_an_init() {
        assert!(run_if_first(&[]).unwrap().is_none());
    }
}
