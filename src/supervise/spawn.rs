//! Starting processes and holding on to them.
//!
//! PDEATHSIG fires when the *thread* that forked ends, not its process (prctl(2)): so one thread forks all children and lives as
//! long as the last handle to it. A process is held by its pidfd: it cannot be mistaken for another one with the same id.
//!
//! The one module with unsafe code: between fork and exec only raw system calls are allowed, and the pidfd calls have no safe wrapper here.
#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, PipeWriter},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, process::CommandExt},
    },
    process::{Command, Stdio},
    sync::{Arc, mpsc},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
};

use crate::program::{Limits, Program};

/// What the service manager told us and nobody else: a child that saw it would speak in our name (`sd_notify(3)`,
/// `sd_listen_fds(3)`, `systemd.exec(5)`).
const NOT_INHERITED: [&str; 12] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
    "MANAGERPID",
];
/// Of variables that are ours: tokens are among them, and no child reads any.
const OURS: &[u8] = b"K3S_";

/// One start of a program.
#[derive(Debug)]
pub(crate) struct SpawnRequest {
    pub(crate) program: Arc<Program>,
    /// Its standard output and error.
    pub(crate) output: PipeWriter,
    /// The `cgroup.procs` files of the cgroups it goes into.
    pub(crate) cgroups: Vec<File>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(Signal),
    /// Something else took its status, or the kernel told a signal without a name.
    Unknown,
}

/// The thread that forks; it ends, and its children with it, when the last clone of this is gone. Each process holds one.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
struct Order {
    launch: SpawnRequest,
    reply: oneshot::Sender<io::Result<ChildHandle>>,
}

impl Spawner {
    pub(crate) fn start() -> io::Result<Self> {
        let (orders, received) = mpsc::channel::<Order>();
        std::thread::Builder::new().name("fork".into()).stack_size(128 * 1024).spawn(move || {
            for order in received {
                // Whoever asked may be gone: then the process is killed as it is dropped.
                let _ = order.reply.send(fork(order.launch));
            }
        })?;
        Ok(Self { orders })
    }

    /// Starts a process; an error is about the executable, the working directory or the limits of the machine.
    /// Needs to be called inside a runtime with I/O.
    pub(crate) async fn spawn(&self, launch: SpawnRequest) -> io::Result<Process> {
        let (reply, held) = oneshot::channel();
        let gone = || io::Error::other("the forking thread has ended");
        self.orders.send(Order { launch, reply }).map_err(|_| gone())?;
        let held = held.await.map_err(|_| gone())??;
        // SAFETY: `ChildHandle` owns one descriptor, always gives that one, and is not taken out again.
        let pidfd = unsafe { AsyncFd::register_with_interest(held, Interest::READABLE)? };
        Ok(Process { pidfd, _forker: self.clone() })
    }
}

/// A child process. Dropping it before its end kills it.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: AsyncFd<ChildHandle>,
    /// Its end would be the child's.
    _forker: Spawner,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pidfd.get_ref().pid
    }

    /// Sends a signal to this one process; nothing if it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.pidfd.get_ref().signal(signal)
    }

    /// Waits for the end and reaps it. Cancel-safe; call it no more once it came back.
    pub(crate) async fn exited(&mut self) -> io::Result<Exit> {
        loop {
            let mut ready = self.pidfd.readable_mut().await?;
            if let Some(exit) = ready.get_inner_mut().reap() {
                return Ok(exit);
            }
            ready.clear_ready();
        }
    }
}

#[derive(Debug)]
struct ChildHandle {
    pid: u32,
    pidfd: OwnedFd,
    reaped: bool,
}

impl AsRawFd for ChildHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl AsFd for ChildHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl ChildHandle {
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is a pidfd that we own, a null siginfo is allowed, and the call writes no memory.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal as i32, no_info, 0_u32)
        };
        match Errno::result(result) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn reap(&mut self) -> Option<Exit> {
        let exit = match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return None,
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal),
            Ok(_) | Err(_) => Exit::Unknown,
        };
        self.reaped = true;
        Some(exit)
    }
}

impl Drop for ChildHandle {
    fn drop(&mut self) {
        if !self.reaped {
            // It has ended already, or it will: SIGKILL cannot be refused to a parent.
            let _ = self.signal(Signal::SIGKILL);
            self.reap();
        }
    }
}

fn fork(launch: SpawnRequest) -> io::Result<ChildHandle> {
    let program = &launch.program;
    let mut command = Command::new(&program.executable);
    command
        .arg0(&program.name)
        .args(&program.args)
        .stdin(Stdio::null())
        .stdout(launch.output.try_clone()?)
        .stderr(launch.output);
    for name in std::env::vars_os().map(|(name, _)| name).filter(|name| is_withheld(name)) {
        command.env_remove(name);
    }
    command.envs(&program.env);
    if let Some(dir) = &program.working_dir {
        command.current_dir(dir);
    }

    let parent = nix::unistd::getpid().as_raw();
    let oom_score_adj = program.oom_score_adj.map(|score| score.to_string().into_bytes());
    let dropped = program.capabilities.dropped();
    let limits = program.limits;
    let cgroups = launch.cgroups;
    // SAFETY: `prepare_child` makes system calls only: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || prepare_child(parent, &cgroups, oom_score_adj.as_deref(), limits, &dropped)) };
    let mut child = command.spawn()?;

    let pid = child.id();
    // SAFETY: takes two integers. Nobody but us reaps the child, so the id is still its own.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
    let opened =
        Errno::result(opened).map_err(io::Error::from).and_then(|fd| RawFd::try_from(fd).map_err(io::Error::other));
    match opened {
        // SAFETY: the kernel has just given this descriptor (close-on-exec, as pidfds are), and nobody else knows it.
        Ok(fd) => Ok(ChildHandle { pid, pidfd: unsafe { OwnedFd::from_raw_fd(fd) }, reaped: false }),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

fn is_withheld(name: &OsStr) -> bool {
    NOT_INHERITED.iter().any(|withheld| name == *withheld) || name.as_bytes().starts_with(OURS)
}

/// The child between fork and exec: system calls only. What only costs a preference if it fails is not looked at.
fn prepare_child(
    parent: libc::pid_t,
    cgroups: &[File],
    oom_score_adj: Option<&[u8]>,
    limits: Limits,
    dropped: &[libc::c_ulong],
) -> io::Result<()> {
    // SAFETY: async-signal-safe calls (signal-safety(7)) with descriptors, constants and buffers that outlive them.
    unsafe {
        for procs in cgroups {
            libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1);
        }
        if let Some(score) = oom_score_adj {
            // Lowering needs CAP_SYS_RESOURCE.
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, score.as_ptr().cast(), score.len());
                libc::close(file);
            }
        }
        for (resource, limit) in [(libc::RLIMIT_DATA, limits.memory), (libc::RLIMIT_FSIZE, limits.file)] {
            if let Some(limit) = limit {
                let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                if libc::setrlimit(resource, &raw const limit) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        // Root's exec takes its capabilities from this set.
        for capability in dropped {
            if libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // A terminal's ^C is for the supervisor alone.
        libc::setsid();
        // Exec resets handlers, but what is ignored stays ignored.
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        // What whoever started us left open; our own files are close-on-exec anyway.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        // Last, since the kernel forgets it when credentials change; then the parent may have died before.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;
    use crate::capability::{self, Capabilities, Capability};

    fn launch(script: &str) -> (SpawnRequest, io::PipeReader) {
        let (read, output) = io::pipe().unwrap();
        let program = Arc::new(Program::example("child", script));
        (SpawnRequest { program, output, cgroups: Vec::new() }, read)
    }

    async fn output_of(launch: SpawnRequest, mut output: io::PipeReader) -> String {
        let mut process = Spawner::start().unwrap().spawn(launch).await.unwrap();
        assert_eq!(process.exited().await.unwrap(), Exit::Code(0));
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn exit_codes_and_signals_are_told_apart() {
        let spawner = Spawner::start().unwrap();
        let (ends, _output) = launch("exit 7");
        assert_eq!(spawner.spawn(ends).await.unwrap().exited().await.unwrap(), Exit::Code(7));
        let (sleeps, _output) = launch("exec sleep 1000");
        let mut process = spawner.spawn(sleeps).await.unwrap();
        process.signal(Signal::SIGTERM).unwrap();
        assert_eq!(process.exited().await.unwrap(), Exit::Signal(Signal::SIGTERM));
        process.signal(Signal::SIGTERM).unwrap();
    }

    #[tokio::test]
    async fn what_a_child_takes_is_limited() {
        let (mut limited, output) = launch("ulimit -d; ulimit -f");
        Arc::make_mut(&mut limited.program).limits = Limits { memory: Some(1 << 30), file: Some(1 << 20) };
        assert_eq!(
            output_of(limited, output).await,
            format!("{}\n{}\n", 1 << 20, 2 << 10),
            "in KiB, and in half of them"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_why() {
        let (mut missing, _output) = launch("");
        Arc::make_mut(&mut missing.program).executable = "/nonexistent".into();
        let error = Spawner::start().unwrap().spawn(missing).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_child_gets_its_own_session_environment_and_nothing_else_of_ours() {
        // ChildHandle open across the exec, and not close-on-exec: what a careless parent might have left us.
        let stray = File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&stray, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let (mut shows, output) = launch("ls /proc/self/fd | tr '\\n' ' '; cut -d' ' -f6 /proc/$$/stat; echo $$; env");
        Arc::make_mut(&mut shows.program).env.insert("COLOUR".into(), "green".into());
        let text = output_of(shows, output).await;
        let mut lines = text.lines();
        // ls itself opens 3.
        let descriptors = lines.next().unwrap();
        assert!(descriptors.starts_with("0 1 2 3 "), "{descriptors}");
        let (mut fields, pid) = (descriptors.trim_start_matches("0 1 2 3 ").split(' '), lines.next().unwrap());
        assert_eq!(fields.next(), Some(pid), "the session is its own");
        let env: Vec<_> = lines.collect();
        assert!(env.contains(&"COLOUR=green"));
        let leaked = |name: &&str| env.iter().any(|line| line.starts_with(&format!("{name}=")));
        assert_eq!(NOT_INHERITED.iter().copied().find(leaked), None);
    }

    #[test]
    fn tokens_are_withheld() {
        for name in ["K3S_TOKEN", "K3S_AGENT_TOKEN", "K3S_DATASTORE_ENDPOINT", "K3S_VPN_AUTH", "NOTIFY_SOCKET"] {
            assert!(is_withheld(OsStr::new(name)), "{name}");
        }
        assert!(!["PATH", "HTTPS_PROXY", "NOTIFY"].iter().any(|name| is_withheld(OsStr::new(name))));
    }

    #[tokio::test]
    async fn oom_score_is_set() {
        let (mut shows, output) = launch("cat /proc/self/oom_score_adj");
        Arc::make_mut(&mut shows.program).oom_score_adj = Some(321);
        assert_eq!(output_of(shows, output).await, "321\n");
    }

    #[tokio::test]
    async fn dropping_a_process_kills_it() {
        let (sleeps, mut output) = launch("echo up; exec sleep 1000");
        let process = Spawner::start().unwrap().spawn(sleeps).await.unwrap();
        drop(process);
        // Ends once nobody holds the other end any more.
        output.read_to_end(&mut Vec::new()).unwrap();
    }

    /// The thread and the runtime that asked for a child have ended: it lives on, as the forking thread does.
    #[tokio::test]
    async fn a_child_has_no_capability_that_it_does_not_keep() {
        let (mut looks, output) = launch("grep CapEff /proc/self/status");
        let kept = Capabilities::Only(vec![Capability::CAP_NET_ADMIN]);
        Arc::make_mut(&mut looks.program).capabilities = kept;
        let text = output_of(looks, output).await;
        let effective = u64::from_str_radix(text.trim_start_matches("CapEff:").trim(), 16).unwrap();
        if capability::has(Capability::CAP_SETPCAP).unwrap() && capability::has(Capability::CAP_NET_ADMIN).unwrap() {
            assert_eq!(effective, Capability::CAP_NET_ADMIN.bitmask());
        } else {
            println!("skipped: this process may not drop capabilities; run the test as root");
        }
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let spawner = Spawner::start().unwrap();
        let (input, mut writer) = io::pipe().unwrap();
        let (mut echoes, output) = launch("read line < $INPUT; echo got $line");
        let path = format!("/proc/{}/fd/{}", std::process::id(), input.as_raw_fd());
        Arc::make_mut(&mut echoes.program).env.insert("INPUT".into(), path.into());
        let ask = || {
            let (reply, held) = oneshot::channel();
            spawner.orders.send(Order { launch: echoes, reply }).unwrap();
            held.blocking_recv().unwrap().unwrap()
        };
        let held = std::thread::scope(|scope| scope.spawn(ask).join().unwrap());
        io::Write::write_all(&mut writer, b"it\n").unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "got it\n");
        drop(held);
    }

    /// Runs only as a process of its own, started by the test below: a supervisor with one child.
    #[test]
    #[ignore = "is the other process of a_child_ends_with_a_supervisor_that_is_killed"]
    fn a_supervisor_of_one_child() {
        if std::env::var_os("K3S_TEST_OTHER_PROCESS").is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sleeps, _output) = launch("exec sleep 1000");
            let mut process = Spawner::start().unwrap().spawn(sleeps).await.unwrap();
            println!("pid={}", process.pid());
            process.exited().await.unwrap();
        });
    }

    #[tokio::test]
    async fn a_child_ends_with_a_supervisor_that_is_killed() {
        let mut supervisor = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "spawn::tests::a_supervisor_of_one_child"])
            .env("K3S_TEST_OTHER_PROCESS", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(supervisor.stdout.take().unwrap()).lines().map(Result::unwrap);
        let pid = lines.find_map(|line| line.split_once("pid=").map(|(_, pid)| pid.to_owned())).unwrap();
        // SAFETY: takes two integers; the child lives as long as its supervisor, which only we end.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.parse::<i32>().unwrap(), 0) };
        // SAFETY: fresh from the kernel, and owned by nobody else.
        let pidfd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap()) };
        let held = ChildHandle { pid: pid.parse().unwrap(), pidfd, reaped: true };
        // SAFETY: as in `Spawner::spawn`.
        let child = unsafe { AsyncFd::register(held).unwrap() };
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        let _ = child.readable().await.unwrap();
    }
}
