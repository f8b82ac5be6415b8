//! All children together.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::{
    Gate, GraphError,
    cgroup::{CgroupPlace, Cgroups},
    graph::Graph,
    log::Target,
    program::Program,
    runner::{Command, Runner, RunnerContext},
    spawn::Spawner,
    status::{Decision, Status, memory_of},
    status_store::{Facts, StatusStore},
    task::{Task, Tasks},
};

/// Commands are few; a runner that does not take them is stuck.
const COMMANDS: usize = 16;

/// What a supervisor works with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where children's lines go.
    pub log: Target,
    /// Where children's cgroups go.
    pub cgroups: CgroupPlace,
}

impl Default for Options {
    /// Logs and cgroups where this process finds them.
    fn default() -> Self {
        Self { log: Target::detect(), cgroups: CgroupPlace::default() }
    }
}

/// Runs programs. Clones are handles to the same one; children end when the last is dropped, and in good order by [`Supervisor::stop`].
#[derive(Debug, Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: Arc<RunnerContext>,
    registry: Mutex<Registry>,
    runners: TaskTracker,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Registry {
    graph: Graph,
    commands: BTreeMap<String, mpsc::Sender<Command>>,
    /// Stopped alone, for good.
    stopped: BTreeSet<String>,
    is_stopping: bool,
}

/// Why something will not be ready by waiting.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotReady {
    /// Nothing by this name was started or declared.
    #[error("{0} is neither a program nor a gate")]
    Unknown(String),
    /// A gate's condition cannot be met.
    #[error("{name} failed: {why}")]
    Failed {
        /// The gate.
        name: String,
        /// What was told.
        why: String,
    },
    /// The supervisor stops before it is ready.
    #[error("the supervisor is stopping")]
    Stopping,
}

/// A program that is not there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no program is called {0}")]
pub struct UnknownProgram(pub String);

/// How the stop went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopReport {
    /// Programs that at one time did not end in the time they had, and got SIGKILL.
    pub killed: Vec<String>,
}

impl Supervisor {
    /// Starts the thread that forks and looks for cgroups. An error means that no thread can be started.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(options: Options) -> io::Result<Self> {
        let cgroups = Cgroups::open(&options.cgroups);
        match &cgroups {
            Cgroups::None(why) => info!(why, "Components get no cgroups of their own."),
            found => info!(cgroups = %found, "Components get cgroups of their own."),
        }
        let context = RunnerContext {
            store: Arc::new(StatusStore::new()),
            spawner: Spawner::start()?,
            cgroups,
            target: options.log,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                context: Arc::new(context),
                registry: Mutex::default(),
                runners: TaskTracker::new(),
                tasks: Tasks::default(),
            }),
        })
    }

    /// The gate of this name: declared now, or the one that is there.
    ///
    /// # Errors
    /// A program has the name, or it can name nothing.
    pub fn gate(&self, name: &str) -> Result<Gate, GraphError> {
        self.registry(|registry| registry.graph.add_gate(name))?;
        self.store().add_gate(name);
        Ok(Gate::new(name, self.store().clone()))
    }

    /// Starts each of `programs` as soon as all that it is after has been ready once. What they are after has to be among them, or
    /// there already; on an error none is started. Needs a runtime with time and I/O.
    ///
    /// # Errors
    /// Two have one name, one is after something that nothing makes, some are after each other, or the supervisor is stopping.
    pub fn start(&self, programs: impl IntoIterator<Item = Program>) -> Result<(), GraphError> {
        let programs: Vec<_> = programs.into_iter().collect();
        self.registry(|registry| {
            if registry.is_stopping {
                return Err(GraphError::Stopping);
            }
            registry.graph.add(&programs)?;
            programs.iter().for_each(|program| self.store().add_program(program));
            for program in programs {
                let (commands, received) = mpsc::channel(COMMANDS);
                registry.commands.insert(program.name.clone(), commands);
                self.inner.runners.spawn(Runner::new(program, self.inner.context.clone(), received).run());
            }
            Ok(())
        })
    }

    /// Waits until the program or gate `name` has been ready once.
    ///
    /// # Errors
    /// It is not known, its condition cannot be met, or the supervisor is stopping.
    pub async fn ready(&self, name: &str) -> Result<(), NotReady> {
        self.until_ready(|facts| {
            if facts.contains(name) { Ok(vec![name.to_owned()]) } else { Err(NotReady::Unknown(name.to_owned())) }
        })
        .await
    }

    /// Waits until everything that is there by then has been ready once.
    ///
    /// # Errors
    /// The condition of a gate cannot be met, or the supervisor is stopping.
    pub async fn all_ready(&self) -> Result<(), NotReady> {
        self.until_ready(|facts| Ok(facts.names().cloned().collect())).await
    }

    /// Ends the program and starts it anew, with nobody else touched. While it waits for something there is nothing to do.
    ///
    /// # Errors
    /// There is no such program.
    pub async fn restart(&self, name: &str) -> Result<(), UnknownProgram> {
        let commands = self.commands(name)?;
        // A runner that has ended has nothing to restart.
        let _ = commands.send(Command::Restart).await;
        Ok(())
    }

    /// As [`Supervisor::restart`], as `program` from then on: the one of the same name, with other arguments. What it is after stays.
    ///
    /// # Errors
    /// There is no program of its name.
    pub async fn replace(&self, program: Program) -> Result<(), UnknownProgram> {
        let commands = self.commands(&program.name)?;
        // A runner that has ended has nothing to replace.
        let _ = commands.send(Command::Replace(Box::new(program))).await;
        Ok(())
    }

    /// As [`Supervisor::replace`] for whenever the program starts again; what runs goes on as it is.
    ///
    /// # Errors
    /// There is no program of its name.
    pub async fn amend(&self, program: Program) -> Result<(), UnknownProgram> {
        let commands = self.commands(&program.name)?;
        // A runner that has ended starts nothing again.
        let _ = commands.send(Command::Amend(Box::new(program))).await;
        Ok(())
    }

    /// Stops the program for good, with nobody else touched, and comes back when it has ended.
    ///
    /// # Errors
    /// There is no such program.
    pub async fn stop_program(&self, name: &str) -> Result<(), UnknownProgram> {
        let commands = self.registry(|registry| {
            let commands = registry.commands.get(name).cloned()?;
            registry.stopped.insert(name.to_owned());
            Some(commands)
        });
        let commands = commands.ok_or_else(|| UnknownProgram(name.to_owned()))?;
        // A runner that has ended needs no telling.
        let _ = commands.send(Command::Stop).await;
        // The store is ours, so that it does not go away.
        let _ = self.store().watch().wait_for(|facts| facts.stopped().contains(name)).await;
        Ok(())
    }

    /// A task of this process, which is in the status from the first time that it runs or waits.
    pub fn task(&self, name: &str) -> Task {
        Task::new(self.clone(), name)
    }

    /// Shows in the status what was settled by what the machine is like; a decision of the same name is replaced.
    pub fn decided(&self, decision: Decision) {
        self.store().decided(decision);
    }

    /// Adds a sentence to the status that tells what the user should know or do; one of the same key is replaced.
    pub fn warn(&self, key: &str, sentence: impl Into<String>) {
        self.store().warn(key, sentence.into());
    }

    /// Takes back the warning of this key.
    pub fn clear(&self, key: &str) {
        self.store().clear(key);
    }

    /// What the program `name` has said is wrong since it was started, or ended with: a program that never becomes ready tells why nowhere
    /// else.
    pub fn last_error(&self, name: &str) -> Option<String> {
        self.store().watch().borrow().last_error(name).map(str::to_owned)
    }

    /// The truth at this moment; memory is looked up now.
    pub async fn status(&self) -> Status {
        let mut status = self.store().watch().borrow().status(&self.inner.context.cgroups.to_string());
        status.tasks = self.tasks().status();
        // The kernel walks each process' page tables for this.
        let looked_up = tokio::task::spawn_blocking(move || {
            for component in &mut status.components {
                component.memory = component.pid.and_then(memory_of);
            }
            status
        });
        match looked_up.await {
            Ok(status) => status,
            // Only while the runtime shuts down.
            Err(_) => self.store().watch().borrow().status(&self.inner.context.cgroups.to_string()),
        }
    }

    /// The cgroup for processes that are to outlive this one, where there is one: for containerd's `ShimCgroup`, a path from the root of
    /// what is mounted at `/sys/fs/cgroup`.
    pub fn survivors_cgroup(&self) -> Option<PathBuf> {
        self.inner.context.cgroups.of_survivors()
    }

    /// The status in one line, as it changes: for systemd's STATUS.
    pub fn subscribe(&self) -> watch::Receiver<String> {
        self.store().watch_headline()
    }

    /// Comes back once each runner has shown that it advances, with one that never will since a bug ended it.
    pub(crate) async fn pulse(&self) -> Option<String> {
        let runners = self.registry(|registry| {
            let runs = |(name, _): &(&String, _)| !registry.stopped.contains(*name);
            registry
                .commands
                .iter()
                .filter(runs)
                .map(|(name, commands)| (name.clone(), commands.clone()))
                .collect::<Vec<_>>()
        });
        for (name, commands) in runners {
            let (reply, answered) = oneshot::channel();
            let advances = commands.send(Command::Pulse(reply)).await.is_ok() && answered.await.is_ok();
            if !advances && !self.store().watch().borrow().is_stopping() {
                return Some(name);
            }
        }
        None
    }

    /// Stops everything, each program once all that is after it has stopped. Nothing can be started any more.
    pub async fn stop(&self) -> StopReport {
        self.registry(|registry| registry.is_stopping = true);
        self.store().set_stopping();
        let mut facts = self.store().watch();
        let mut asked = BTreeSet::new();
        loop {
            let stopped = facts.borrow_and_update().stopped();
            let due: Vec<_> = self.registry(|registry| {
                let free = registry.graph.free_to_stop(|name| stopped.contains(name)).into_iter();
                free.filter(|name| asked.insert((*name).to_owned()))
                    .filter_map(|name| registry.commands.get(name).cloned())
                    .collect()
            });
            for commands in due {
                // One that has ended already needs no telling.
                let _ = commands.send(Command::Stop).await;
            }
            let all_asked = self.registry(|registry| asked.len() == registry.commands.len());
            // The store is ours, so that the changes do not end.
            if all_asked || facts.changed().await.is_err() {
                break;
            }
        }
        self.inner.runners.close();
        self.inner.runners.wait().await;
        self.inner.context.cgroups.close().await;
        let killed = self.store().watch().borrow().killed();
        if !killed.is_empty() {
            warn!(components = killed.join(", "), "Some components did not end when asked and were killed.");
        }
        StopReport { killed }
    }

    async fn until_ready(&self, wanted: impl Fn(&Facts) -> Result<Vec<String>, NotReady>) -> Result<(), NotReady> {
        let mut facts = self.store().watch();
        let decided = |facts: &Facts| match wanted(facts) {
            Err(error) => Some(Err(error)),
            Ok(names) if names.iter().all(|name| facts.was_ready(name)) => Some(Ok(())),
            Ok(_) if facts.is_stopping() => Some(Err(NotReady::Stopping)),
            Ok(names) => names.into_iter().find_map(|name| {
                let why = facts.failure(&name)?.to_owned();
                Some(Err(NotReady::Failed { name, why }))
            }),
        };
        loop {
            if let Some(decision) = decided(&facts.borrow_and_update()) {
                return decision;
            }
            if facts.changed().await.is_err() {
                return Err(NotReady::Stopping);
            }
        }
    }

    pub(crate) fn context(&self) -> &RunnerContext {
        &self.inner.context
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }

    fn commands(&self, name: &str) -> Result<mpsc::Sender<Command>, UnknownProgram> {
        let commands = self.registry(|registry| registry.commands.get(name).cloned());
        commands.ok_or_else(|| UnknownProgram(name.to_owned()))
    }

    fn store(&self) -> &Arc<StatusStore> {
        &self.inner.context.store
    }

    fn registry<T>(&self, look: impl FnOnce(&mut Registry) -> T) -> T {
        // Nothing in here is left half done by a panic.
        look(&mut self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
impl Supervisor {
    /// One whose children have no cgroups.
    pub(crate) fn example() -> Self {
        Self::new(Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere }).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::{
        sys::{signal, stat::Mode},
        unistd::{Pid, mkfifo},
    };
    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
        net::{TcpListener, unix::pipe},
    };

    use super::*;
    use crate::{
        State,
        program::{Liveness, Probe, Stop},
        status::{Component, ExitKind, Health},
    };

    /// What scripts tell the test: lines written to `$TELL`. Reading `$SILENCE` takes as long as the test.
    struct Ledger {
        // First to go: who comes late finds no pipe instead of waiting for the other end.
        dir: tempfile::TempDir,
        lines: tokio::io::Lines<BufReader<pipe::Receiver>>,
        _silence: pipe::Receiver,
    }

    impl Ledger {
        fn open() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let pipe = |name| {
                let path = dir.path().join(name);
                mkfifo(&path, Mode::S_IRWXU).unwrap();
                pipe::OpenOptions::new().read_write(true).open_receiver(path).unwrap()
            };
            Self { lines: BufReader::new(pipe("tell")).lines(), _silence: pipe("silence"), dir }
        }

        fn program(&self, name: &str, after: &[&str], script: &str) -> Program {
            let mut program = Program::example(name, script);
            program.after = after.iter().map(ToString::to_string).collect();
            program.env.insert("TELL".into(), self.dir.path().join("tell").into());
            program.env.insert("SILENCE".into(), self.dir.path().join("silence").into());
            program
        }

        /// Tells when it starts, and when it is asked to stop.
        fn talker(&self, name: &str, after: &[&str]) -> Program {
            let script = "trap 'echo - $0 > $TELL; exit 0' TERM; read line < $SILENCE & echo + $0 > $TELL; wait";
            let mut program = self.program(name, after, script);
            program.args.push(name.into());
            program
        }

        async fn line(&mut self) -> String {
            self.lines.next_line().await.unwrap().unwrap()
        }
    }

    impl Supervisor {
        async fn until(&self, name: &str, is_so: impl Fn(&Component) -> bool) -> Component {
            let mut facts = self.store().watch();
            loop {
                let status = facts.borrow_and_update().status("");
                if let Some(component) =
                    status.components.into_iter().find(|component| component.name == name && is_so(component))
                {
                    return component;
                }
                facts.changed().await.unwrap();
            }
        }

        async fn component(&self, name: &str) -> Component {
            self.until(name, |_| true).await
        }
    }

    fn kill(pid: u32) {
        signal::kill(Pid::from_raw(pid.try_into().unwrap()), signal::Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn a_program_is_replaced_alone() {
        let (supervisor, mut ledger) = (Supervisor::example(), Ledger::open());
        let mut program = ledger.talker("kubelet", &[]);
        supervisor.start([program.clone(), ledger.talker("containerd", &[])]).unwrap();
        supervisor.all_ready().await.unwrap();
        let mut started = [ledger.line().await, ledger.line().await];
        started.sort();
        assert_eq!(started, ["+ containerd", "+ kubelet"]);
        *program.args.last_mut().unwrap() = "other".into();
        supervisor.replace(program).await.unwrap();
        assert_eq!([ledger.line().await, ledger.line().await], ["- kubelet", "+ other"]);
        let unknown = ledger.program("kube-proxy", &[], "");
        assert_eq!(supervisor.replace(unknown).await, Err(UnknownProgram("kube-proxy".into())));
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn programs_start_in_order_and_stop_in_reverse() {
        let (supervisor, mut ledger) = (Supervisor::example(), Ledger::open());
        let images = supervisor.gate("images").unwrap();
        supervisor
            .start([ledger.talker("kubelet", &["containerd", "images"]), ledger.talker("containerd", &[])])
            .unwrap();
        assert_eq!(ledger.line().await, "+ containerd");
        supervisor.ready("containerd").await.unwrap();
        images.waiting("importing 1 of 2");
        assert_eq!(supervisor.component("kubelet").await.waiting_for.as_deref(), Some("images"));
        assert_eq!(*supervisor.subscribe().borrow(), "Starting: waiting for images (importing 1 of 2).");
        images.open();
        assert_eq!(ledger.line().await, "+ kubelet");
        supervisor.start([ledger.talker("kube-proxy", &["kubelet"])]).unwrap();
        assert_eq!(ledger.line().await, "+ kube-proxy");
        supervisor.all_ready().await.unwrap();

        let status = supervisor.status().await;
        assert_eq!(status.health, Health::Ready);
        let timeline: Vec<_> =
            status.timeline.iter().map(|moment| format!("{} {}", moment.name, moment.what)).collect();
        assert_eq!(
            timeline,
            [
                "images closed",
                "containerd starting",
                "containerd ready",
                "images open",
                "kubelet starting",
                "kubelet ready",
                "kube-proxy starting",
                "kube-proxy ready"
            ]
        );

        assert_eq!(supervisor.stop().await, StopReport { killed: Vec::new() });
        for name in ["kube-proxy", "kubelet", "containerd"] {
            assert_eq!(ledger.line().await, format!("- {name}"));
        }
        assert_eq!(supervisor.component("kubelet").await.last_exit.unwrap().how, ExitKind::Code(0));
    }

    #[tokio::test]
    async fn a_killed_child_is_restarted_alone() {
        let (supervisor, ledger) = (Supervisor::example(), Ledger::open());
        let sleeper = |name, after| ledger.program(name, after, "exec sleep 1000");
        supervisor.start([sleeper("a", &[]), sleeper("b", &["a"]), sleeper("c", &["b"])]).unwrap();
        supervisor.all_ready().await.unwrap();
        let before: Vec<_> =
            supervisor.status().await.components.into_iter().map(|component| component.pid.unwrap()).collect();
        kill(before[0]);
        let again = supervisor.until("a", |component| component.restarts == 1 && component.state.is_ready()).await;
        assert_ne!(again.pid, Some(before[0]));
        assert_eq!(again.last_exit.unwrap().how, ExitKind::Signal("SIGKILL".into()));
        for (name, pid) in [("b", before[1]), ("c", before[2])] {
            let other = supervisor.component(name).await;
            assert_eq!((other.pid, other.restarts, other.state), (Some(pid), 0, State::Ready));
        }
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn a_child_that_fails_says_why_and_is_tried_again() {
        let (supervisor, ledger) = (Supervisor::example(), Ledger::open());
        let fails = ledger.program("fails", &[], "echo 'E1121 11:47:16.1 1 run.go:72] no such file' >&2; exit 3");
        let missing = Program { executable: "/nonexistent/kubelet".into(), ..ledger.program("missing", &[], "") };
        supervisor.start([fails, missing]).unwrap();
        let failed =
            supervisor.until("fails", |component| component.state == State::Backoff && component.restarts == 1).await;
        assert_eq!(failed.waiting_for.as_deref(), Some("exited with 3: E1121 11:47:16.1 1 run.go:72] no such file"));
        let absent = supervisor.until("missing", |component| component.state == State::Backoff).await;
        let why = "could not be started: /nonexistent/kubelet: No such file or directory (os error 2)";
        assert_eq!(absent.waiting_for.as_deref(), Some(why));
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_killed_and_reported() {
        let (supervisor, mut ledger) = (Supervisor::example(), Ledger::open());
        let mut stubborn = ledger.program("stubborn", &[], "trap '' TERM; echo up > $TELL; exec sleep 1000");
        stubborn.stop = Stop { timeout: Duration::from_millis(20), ..Stop::default() };
        supervisor.start([stubborn, ledger.talker("polite", &[])]).unwrap();
        ledger.line().await;
        ledger.line().await;
        assert_eq!(supervisor.stop().await.killed, ["stubborn"]);
        assert_eq!(supervisor.stop().await.killed, ["stubborn"], "asking twice is harmless");
        assert_eq!(supervisor.start([ledger.talker("late", &[])]), Err(GraphError::Stopping));
    }

    #[tokio::test]
    async fn a_stuck_child_is_restarted() {
        let (supervisor, ledger) = (Supervisor::example(), Ledger::open());
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut stuck = ledger.program("stuck", &[], "exec sleep 1000");
        stuck.liveness = Some(Liveness {
            probe: Probe::Http { address, path: "/healthz".into() },
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(1),
            failures: 3,
            start: None,
        });
        supervisor.start([stuck]).unwrap();
        let again = supervisor.until("stuck", |component| component.restarts == 2).await;
        assert_eq!(again.last_exit.unwrap().how, ExitKind::Signal("SIGTERM".into()));
        supervisor.stop().await;
    }

    /// Answers no to whatever is asked.
    async fn refuse_all(listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        }
    }

    #[tokio::test]
    async fn a_child_that_never_gets_ready_is_restarted_after_ever_longer() {
        let (supervisor, ledger) = (Supervisor::example(), Ledger::open());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = Probe::Http { address: listener.local_addr().unwrap(), path: "/livez".into() };
        let refusing = tokio::spawn(refuse_all(listener));
        let mut forgetful = ledger.program("kube-apiserver", &[], "exec sleep 1000");
        forgetful.readiness = probe.clone();
        forgetful.liveness = Some(Liveness {
            probe,
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(1),
            failures: 3,
            start: Some(Duration::from_millis(10)),
        });
        let began = Instant::now();
        supervisor.start([forgetful]).unwrap();
        let again = supervisor.until("kube-apiserver", |component| component.restarts == 3).await;
        assert_eq!(again.last_exit.unwrap().how, ExitKind::Signal("SIGTERM".into()));
        assert!(began.elapsed() >= Duration::from_millis(10 + 20 + 40));
        supervisor.stop().await;
        refusing.abort();
    }

    #[tokio::test]
    async fn a_child_is_restarted_on_demand() {
        let (supervisor, mut ledger) = (Supervisor::example(), Ledger::open());
        supervisor.start([ledger.talker("kubelet", &[])]).unwrap();
        ledger.line().await;
        supervisor.restart("kubelet").await.unwrap();
        assert_eq!(ledger.line().await, "- kubelet");
        assert_eq!(ledger.line().await, "+ kubelet");
        assert_eq!(supervisor.restart("kublet").await, Err(UnknownProgram("kublet".into())));
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn waiting_for_what_cannot_be_ends() {
        let (supervisor, ledger) = (Supervisor::example(), Ledger::open());
        let datastore = supervisor.gate("datastore").unwrap();
        supervisor.start([ledger.talker("kube-apiserver", &["datastore"])]).unwrap();
        assert_eq!(supervisor.ready("etcd").await, Err(NotReady::Unknown("etcd".into())));
        datastore.fail("state.db is locked");
        let failed = NotReady::Failed { name: "datastore".into(), why: "state.db is locked".into() };
        assert_eq!(supervisor.all_ready().await, Err(failed));
        supervisor.stop().await;
        assert_eq!(supervisor.ready("kube-apiserver").await, Err(NotReady::Stopping));
    }

    #[tokio::test]
    async fn one_is_stopped_alone_and_the_watchdog_does_not_miss_it() {
        let (supervisor, mut ledger) = (Supervisor::example(), Ledger::open());
        supervisor.start([ledger.talker("containerd", &[]), ledger.talker("kubelet", &[])]).unwrap();
        let mut started = [ledger.line().await, ledger.line().await];
        started.sort();
        assert_eq!(started, ["+ containerd", "+ kubelet"]);
        supervisor.stop_program("kubelet").await.unwrap();
        assert_eq!(ledger.line().await, "- kubelet");
        assert_eq!(supervisor.pulse().await, None);
        assert_eq!(supervisor.stop_program("etcd").await, Err(UnknownProgram("etcd".into())));
        supervisor.stop().await;
        assert_eq!(ledger.line().await, "- containerd");
    }

    #[tokio::test]
    async fn dropping_the_last_handle_ends_the_children() {
        let (supervisor, mut ledger) = (Supervisor::example(), Ledger::open());
        supervisor.start([ledger.talker("kubelet", &[])]).unwrap();
        assert_eq!(ledger.line().await, "+ kubelet");
        drop(supervisor);
        assert_eq!(ledger.line().await, "- kubelet");
    }

    /// Where cgroups can be made: each child in its leaf, and nothing left afterwards.
    #[tokio::test]
    async fn children_are_put_into_cgroups() {
        let parent = PathBuf::from(format!("/k3s-test-{}", std::process::id()));
        let options = Options { log: Target::Stderr, cgroups: CgroupPlace::At(parent.clone()) };
        let (supervisor, mut ledger) = (Supervisor::new(options).unwrap(), Ledger::open());
        let Cgroups::V1(_) = &supervisor.inner.context.cgroups else {
            eprintln!("skipped: {}", supervisor.inner.context.cgroups);
            return;
        };
        supervisor
            .start([ledger.program(
                "kubelet",
                &[],
                "grep -E ':(cpu|memory)[,:]' /proc/self/cgroup > $TELL; exec sleep 1000",
            )])
            .unwrap();
        for _ in 0..2 {
            let line = ledger.line().await;
            assert!(line.ends_with(&format!(":{}/kubelet", parent.display())), "{line}");
        }
        let bases = supervisor.inner.context.cgroups.to_string();
        supervisor.stop().await;
        for base in bases.trim_start_matches("v1: ").split(", ") {
            assert!(!std::path::Path::new(base).join("kubelet").exists());
            std::fs::remove_dir(base).unwrap();
        }
    }
}
