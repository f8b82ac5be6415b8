//! One child's life, carried out: the events of [`State::on`](crate::State::on) are waited for, its actions are done.

use std::{
    future::pending,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;
use tokio::{
    select,
    sync::{mpsc, oneshot},
    time::sleep,
};
use tracing::{debug, info, warn};

use crate::{
    backoff::Backoff,
    cgroup::Cgroups,
    log::{Follower, Output, Target},
    probe::{ProbeError, Prober},
    program::{Liveness, Program},
    spawn::{Exit, Process, SpawnRequest, Spawner},
    state::{Action, Event, State},
    status::{ExitKind, LastExit},
    status_store::{StatusStore, unix_millis},
};

/// A readiness probe may be slow where it depends on what starts as well.
const READINESS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a stuck start doubles what the next one may take.
const DOUBLINGS: u32 = 4;

/// What all children share.
#[derive(Debug)]
pub(crate) struct RunnerContext {
    pub(crate) store: Arc<StatusStore>,
    pub(crate) spawner: Spawner,
    pub(crate) cgroups: Cgroups,
    pub(crate) target: Target,
}

/// What a runner is told.
#[derive(Debug)]
pub(crate) enum Command {
    Restart,
    /// Restart as this one.
    Replace(Box<Program>),
    /// This one whenever it is started again.
    Amend(Box<Program>),
    Stop,
    /// Answered by whoever still advances.
    Pulse(oneshot::Sender<()>),
}

/// The one who looks after one program.
pub(crate) struct Runner {
    program: Arc<Program>,
    context: Arc<RunnerContext>,
    commands: mpsc::Receiver<Command>,
    backoff: Backoff,
    child: Option<Child>,
    ready_since: Option<Instant>,
    /// How long the last process was ready.
    healthy: Duration,
    /// Starts in a row that were given up.
    stuck_starts: u32,
}

struct Child {
    process: Process,
    follower: Follower,
}

/// What a state waits for beside exits and commands.
type Awaited = Pin<Box<dyn Future<Output = Event> + Send>>;

impl Runner {
    pub(crate) fn new(program: Program, context: Arc<RunnerContext>, commands: mpsc::Receiver<Command>) -> Self {
        let program = Arc::new(program);
        Self {
            program,
            context,
            commands,
            backoff: Backoff::default(),
            child: None,
            ready_since: None,
            healthy: Duration::ZERO,
            stuck_starts: 0,
        }
    }

    /// Comes back once the program has stopped for good.
    pub(crate) async fn run(mut self) {
        let output = Output::new(&self.program, &self.context.target);
        let mut state = State::Waiting;
        let mut awaited = self.cleared();
        let mut commanded = true;
        while !state.is_stopped() {
            let event = select! {
                command = self.commands.recv(), if commanded => match command {
                    Some(Command::Pulse(reply)) => {
                        // Whoever asked may have lost patience.
                        let _ = reply.send(());
                        continue;
                    }
                    Some(Command::Restart) => Event::RestartAsked,
                    Some(Command::Replace(program)) => {
                        self.program = Arc::new(*program);
                        Event::RestartAsked
                    }
                    Some(Command::Amend(program)) => {
                        self.program = Arc::new(*program);
                        continue;
                    }
                    Some(Command::Stop) => Event::StopAsked,
                    None => {
                        commanded = false;
                        Event::StopAsked
                    }
                },
                exit = exited(&mut self.child) => {
                    self.on_exit(exit, state).await;
                    Event::Exited
                }
                event = &mut awaited => {
                    awaited = Box::pin(pending());
                    event
                }
            };
            state = self.step(state, event, &mut awaited, &output).await;
        }
        output.close().await;
        self.context.cgroups.remove(&self.program).await;
    }

    /// The state after `event`, once what it asks for is done.
    async fn step(&mut self, state: State, event: Event, awaited: &mut Awaited, output: &Output) -> State {
        let (next, action) = state.on(event);
        if (state, event) == (State::Starting, Event::Stuck) {
            self.stuck_starts += 1;
        }
        if next != state {
            self.context.store.set_state(&self.program.name, next);
        }
        match action {
            Some(Action::Spawn) => match self.spawn(output).await {
                Ok(answer) => *awaited = answer,
                // At once: nothing else may happen to a process that is not there.
                Err(error) => {
                    self.on_spawn_failed(&error);
                    return Box::pin(self.step(next, Event::Exited, awaited, output)).await;
                }
            },
            Some(Action::Terminate) => {
                self.signal(self.program.stop.signal);
                *awaited = after(self.program.stop.timeout, Event::GraceOver);
            }
            Some(Action::Kill) => self.kill(),
            None if next != state && next.is_ready() => *awaited = self.on_ready(),
            None if next != state && next == State::Backoff => *awaited = self.pause(),
            None => {}
        }
        next
    }

    fn cleared(&self) -> Awaited {
        let (store, program) = (self.context.store.clone(), self.program.clone());
        Box::pin(async move {
            store.cleared(&program.after).await;
            Event::Cleared
        })
    }

    /// Starts a process; its probe's answer is awaited next.
    async fn spawn(&mut self, output: &Output) -> io::Result<Awaited> {
        let program = self.program.clone();
        let cgroups = self.context.cgroups.leaf(&program).unwrap_or_else(|error| {
            warn!(component = program.name, %error, "The component gets no cgroup of its own.");
            Vec::new()
        });
        let (read, write) = io::pipe()?;
        let launch = SpawnRequest { program: program.clone(), output: write, cgroups };
        let process = self.context.spawner.spawn(launch).await?;
        let store = self.context.store.clone();
        store.set_started(&program.name, process.pid());
        let follower = output.follow(read, {
            let (store, name) = (store.clone(), program.name.clone());
            move |error| store.set_last_error(&name, error)
        })?;
        info!(component = program.name, pid = process.pid(), "Started the component.");
        self.child = Some(Child { process, follower });
        let patience = 1 << self.stuck_starts.min(DOUBLINGS);
        Ok(Box::pin(async move {
            select! {
                event = until_answered(&program, &store) => event,
                event = until_start_stuck(&program, patience) => event,
            }
        }))
    }

    /// It is ready: from here on it counts as healthy, and is asked whether it still lives.
    fn on_ready(&mut self) -> Awaited {
        self.ready_since = Some(Instant::now());
        self.stuck_starts = 0;
        info!(component = self.program.name, "The component is ready.");
        let program = self.program.clone();
        Box::pin(async move {
            match &program.liveness {
                Some(liveness) => until_stuck(&program.name, liveness).await,
                None => pending().await,
            }
        })
    }

    fn pause(&mut self) -> Awaited {
        let pause = self.backoff.pause(std::mem::take(&mut self.healthy));
        debug!(component = self.program.name, ?pause, "The component is started again after a pause.");
        after(pause, Event::RetryDue)
    }

    fn on_spawn_failed(&self, error: &io::Error) {
        let why = format!("{}: {error}", self.program.executable.display());
        warn!(component = self.program.name, error = why, "The component could not be started.");
        self.record(ExitKind::NotStarted(why), None);
    }

    async fn on_exit(&mut self, exit: io::Result<Exit>, state: State) {
        let Some(child) = self.child.take() else { return };
        let pid = child.process.pid();
        self.healthy = self.ready_since.take().map(|since| since.elapsed()).unwrap_or_default();
        let how = exit.into();
        drop(child.process);
        let last_words = child.follower.finish().await;
        // Whoever ends because it was asked to has said nothing about it.
        let was_asked = state == State::Stopping || state == State::Restarting;
        let exit = self.record(how, last_words.filter(|_| !was_asked));
        if was_asked {
            info!(component = self.program.name, pid, %exit, "The component has stopped.");
        } else {
            warn!(component = self.program.name, pid, %exit, "The component ended and is started again.");
        }
    }

    fn record(&self, how: ExitKind, last_words: Option<String>) -> LastExit {
        let exit = LastExit { how, at: unix_millis(SystemTime::now()), last_words };
        self.context.store.set_exited(&self.program.name, exit.clone());
        self.context.store.set_note(&self.program.name, exit.to_string());
        exit
    }

    fn kill(&self) {
        let name = &self.program.name;
        warn!(component = name, grace = ?self.program.stop.timeout, "The component does not stop in time and is killed.");
        self.context.store.set_killed(name);
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child
            && let Err(error) = child.process.signal(signal)
        {
            warn!(component = self.program.name, pid = child.process.pid(), %signal, %error, "The component cannot be signalled.");
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Also where a bug ends it: whoever waits for the stop must not wait for ever.
        self.context.store.set_state(&self.program.name, State::Stopped);
    }
}

impl From<io::Result<Exit>> for ExitKind {
    fn from(exit: io::Result<Exit>) -> Self {
        match exit {
            Ok(Exit::Code(code)) => Self::Code(code),
            Ok(Exit::Signal(signal)) => Self::Signal(signal.to_string()),
            // Dropping the process ends it, should it be there after all.
            Ok(Exit::Unknown) | Err(_) => Self::Unknown(()),
        }
    }
}

/// Never, where there is no process.
async fn exited(child: &mut Option<Child>) -> io::Result<Exit> {
    match child {
        Some(child) => child.process.exited().await,
        None => pending().await,
    }
}

fn after(pause: Duration, event: Event) -> Awaited {
    Box::pin(async move {
        sleep(pause).await;
        event
    })
}

/// Asks often, since nothing else keeps a start from going on; less so where it takes unusually long.
async fn until_answered(program: &Program, store: &StatusStore) -> Event {
    let began = Instant::now();
    let mut prober = Prober::new(&program.readiness);
    loop {
        match &prober {
            Ok(None) => return Event::Answered,
            Ok(Some(prober)) => match prober.ask(READINESS_TIMEOUT).await {
                Ok(()) => return Event::Answered,
                Err(error) => store.set_note(&program.name, error.to_string()),
            },
            // Certificates may still be on their way.
            Err(error) => {
                store.set_note(&program.name, error.to_string());
                prober = Prober::new(&program.readiness);
            }
        }
        let pace = match began.elapsed().as_secs() {
            0..15 => 50,
            15..120 => 250,
            _ => 1000,
        };
        sleep(Duration::from_millis(pace)).await;
    }
}

/// A child that lives and does not answer at all is waited for: it may read its data. One that has answered no for all the time that its
/// start may take, `patience` times, has forgotten something that it waits for.
async fn until_start_stuck(program: &Program, patience: u32) -> Event {
    let Some((liveness, limit)) = program.liveness.as_ref().and_then(|liveness| Some((liveness, liveness.start?)))
    else {
        return pending().await;
    };
    let limit = limit * patience;
    let mut refusing: Option<Instant> = None;
    loop {
        sleep(liveness.interval).await;
        match ask(liveness).await {
            Err(error @ ProbeError::No { .. }) => {
                if refusing.get_or_insert_with(Instant::now).elapsed() >= limit {
                    warn!(component = program.name, %error, ?limit, "The component does not get ready and is restarted.");
                    return Event::Stuck;
                }
            }
            _ => refusing = None,
        }
    }
}

async fn ask(liveness: &Liveness) -> Result<(), ProbeError> {
    match Prober::new(&liveness.probe)? {
        Some(prober) => prober.ask(liveness.timeout).await,
        None => Ok(()),
    }
}

async fn until_stuck(name: &str, liveness: &Liveness) -> Event {
    let mut failures = 0;
    while failures < liveness.failures {
        sleep(liveness.interval).await;
        match ask(liveness).await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                warn!(component = name, %error, failures, allowed = liveness.failures, "The component does not answer.");
            }
        }
    }
    warn!(component = name, "The component is stuck and is restarted.");
    Event::Stuck
}
