//! Work in our own process that runs beside the children: each piece is a task of its own, and its panic or error is its restart and
//! nobody else's.
//!
//! ```text
//!              ┌──────────────── standby ◄─┐ (another server leads)
//!              ▼                           │
//! start ──► running ──returned, shutdown──► ended
//!            ▲   │ error, panic
//!   the pause│   ▼
//!            backoff
//! ```

use std::{
    any::Any,
    collections::BTreeMap,
    error::Error,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument as _, info, info_span, warn};

use crate::{Supervisor, backoff::Backoff};

/// What ends a task before its time.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// Objects with a problem that one task tells of at most; with more of them the first ones are enough.
const PROBLEMS: usize = 100;
/// Objects that a task lists at most.
const LISTED: usize = 500;
/// Objects that a warning names.
const NAMED: usize = 3;

/// A task as the status tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: TaskState,
    /// How often it was started again.
    pub restarts: u64,
    /// How long it has been in this state.
    pub in_state_ms: u64,
    /// Why it had to be started again, the last time.
    pub last_failure: Option<TaskFailure>,
    /// What it does or waits for, in its own words.
    pub line: Option<String>,
    /// The objects that it cannot bring to where they should be.
    pub problems: Vec<Problem>,
    /// The objects that it works on, where it lists them.
    #[serde(default)]
    pub objects: Vec<ObjectStatus>,
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It does its work.
    Running,
    /// It failed and is started again after a pause.
    Backoff,
    /// It runs where another server leads.
    Standby,
    /// Its work is done, or the end has begun.
    Ended,
}

/// Why a task had to be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// When, in milliseconds of Unix time.
    pub at: u64,
    /// The error, or what the panic said.
    pub why: String,
}

/// An object that a task cannot bring to where it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The object.
    pub object: String,
    /// What is wrong.
    pub why: String,
}

/// An object that a task works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStatus {
    /// The object.
    pub object: String,
    /// Where it is, in a word: `applied`.
    pub state: String,
    /// What it waits for.
    pub why: Option<String>,
}

impl TaskState {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Backoff => "backoff",
            Self::Standby => "standby",
            Self::Ended => "ended",
        }
    }
}

/// All tasks of a process, by name.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<BTreeMap<String, Facts>>);

#[derive(Debug)]
struct Facts {
    state: TaskState,
    since: Instant,
    restarts: u64,
    last_failure: Option<TaskFailure>,
    line: Option<String>,
    problems: BTreeMap<String, String>,
    objects: Vec<ObjectStatus>,
}

impl Tasks {
    /// A copy for the world.
    pub(crate) fn status(&self) -> Vec<TaskStatus> {
        let status = |(name, facts): (&String, &Facts)| TaskStatus {
            name: name.clone(),
            state: facts.state,
            restarts: facts.restarts,
            in_state_ms: u64::try_from(facts.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            last_failure: facts.last_failure.clone(),
            line: facts.line.clone(),
            problems: facts
                .problems
                .iter()
                .map(|(object, why)| Problem { object: object.clone(), why: why.clone() })
                .collect(),
            objects: facts.objects.clone(),
        };
        self.lock().iter().map(status).collect()
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Facts) -> T) -> T {
        let mut tasks = self.lock();
        let facts = tasks.entry(name.to_owned()).or_insert_with(|| Facts {
            state: TaskState::Standby,
            since: Instant::now(),
            restarts: 0,
            last_failure: None,
            line: None,
            problems: BTreeMap::new(),
            objects: Vec::new(),
        });
        change(facts)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Facts>> {
        // Nothing in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One task: to run it, again where it was ended.
#[derive(Debug, Clone)]
pub struct Task {
    supervisor: Supervisor,
    name: Arc<str>,
    /// How long it may take to end by itself.
    stop: Duration,
}

impl Task {
    pub(crate) fn new(supervisor: Supervisor, name: &str) -> Self {
        Self { supervisor, name: name.into(), stop: Duration::ZERO }
    }

    /// Lets it end by itself within `stop` once its shutdown has come. Without this it is dropped at once, wherever it waits.
    #[must_use]
    pub fn stops_within(self, stop: Duration) -> Self {
        Self { stop, ..self }
    }

    /// Says that it does not run now, and why.
    pub fn standby(&self, why: &str) {
        self.set(TaskState::Standby);
        self.line().set(why);
    }

    /// Runs what `start` makes until that returns `Ok`, or until `shutdown`; after an error or a panic again, with pauses that grow
    /// from a tenth of a second to half a minute. Nothing of it runs any more when this returns.
    pub async fn run<F>(&self, shutdown: &CancellationToken, start: impl Fn(StatusLine) -> F)
    where
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let mut backoff = Backoff::default();
        while !shutdown.is_cancelled() {
            self.set(TaskState::Running);
            let line = self.line();
            line.clear();
            let began = Instant::now();
            let work = with_fault(self.name.clone(), start(line)).instrument(info_span!("task", name = &*self.name));
            let mut running = pin!(AbortOnDropHandle::new(tokio::spawn(work)));
            let ended = tokio::select! {
                ended = &mut running => ended,
                () = shutdown.cancelled() => {
                    if timeout(self.stop, &mut running).await.is_err() {
                        running.abort();
                        let _ = running.await;
                    }
                    break;
                }
            };
            let why = match ended {
                Ok(Ok(())) => break,
                Ok(Err(error)) => chain(&*error),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => format!("it panicked: {}", message(&*panic)),
                    // Only while the runtime shuts down.
                    Err(_) => break,
                },
            };
            let pause = backoff.pause(began.elapsed());
            self.failed(why, pause);
            shutdown.run_until_cancelled(sleep(pause)).await;
            self.supervisor.tasks().change(&self.name, |facts| facts.restarts += 1);
            self.supervisor.clear(&self.warning());
        }
        self.line().clear();
        self.set(TaskState::Ended);
    }

    /// As [`Self::run`], with work that has no errors and says nothing.
    pub async fn run_always<F>(&self, shutdown: &CancellationToken, start: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let start = |_| {
            let work = start();
            async move {
                work.await;
                Ok(())
            }
        };
        self.run(shutdown, start).await;
    }

    fn line(&self) -> StatusLine {
        StatusLine { supervisor: self.supervisor.clone(), name: self.name.clone() }
    }

    fn failed(&self, why: String, pause: Duration) {
        let known = self.supervisor.tasks().change(&self.name, |facts| {
            let known = facts.last_failure.as_ref().is_some_and(|failure| failure.why == why);
            facts.last_failure = Some(TaskFailure { at: unix_millis(), why: why.clone() });
            known
        });
        self.set(TaskState::Backoff);
        self.supervisor.warn(&self.warning(), format!("{} failed and is started again: {why}.", self.name));
        if known {
            tracing::debug!(task = &*self.name, error = why, again_in = ?pause, "A task failed again.");
        } else {
            warn!(task = &*self.name, error = why, again_in = ?pause, "A task failed and is started again.");
        }
    }

    fn set(&self, state: TaskState) {
        self.supervisor.tasks().change(&self.name, |facts| {
            if facts.state != state {
                (facts.state, facts.since) = (state, Instant::now());
            }
        });
    }

    /// The key of its warning.
    fn warning(&self) -> String {
        format!("task/{}", self.name)
    }
}

/// What a task tells of itself in the status.
#[derive(Debug, Clone)]
pub struct StatusLine {
    supervisor: Supervisor,
    name: Arc<str>,
}

impl StatusLine {
    /// Says what it does or waits for.
    pub fn set(&self, line: impl Into<String>) {
        self.supervisor.tasks().change(&self.name, |facts| facts.line = Some(line.into()));
    }

    /// Lists the objects that it works on, in the order in which people read them; the first five hundred of them.
    pub fn list(&self, objects: impl IntoIterator<Item = ObjectStatus>) {
        let objects = objects.into_iter().take(LISTED).collect();
        self.supervisor.tasks().change(&self.name, |facts| facts.objects = objects);
    }

    /// Says that `object` cannot be brought to where it should be, and why. The log has it once for each reason.
    pub fn problem(&self, object: &str, why: impl Into<String>) {
        let why = why.into();
        let is_new = self.supervisor.tasks().change(&self.name, |facts| {
            if facts.problems.len() >= PROBLEMS && !facts.problems.contains_key(object) {
                return false;
            }
            facts.problems.insert(object.to_owned(), why.clone()).as_ref() != Some(&why)
        });
        if is_new {
            warn!(task = &*self.name, object, error = why, "An object is not as it should be; trying again.");
            self.warn();
        }
    }

    /// Says that nothing is wrong with `object` any more.
    pub fn solved(&self, object: &str) {
        let solved = self.supervisor.tasks().change(&self.name, |facts| facts.problems.remove(object).is_some());
        if solved {
            info!(task = &*self.name, object, "An object is as it should be again.");
            self.warn();
        }
    }

    /// Forgets all that was said.
    fn clear(&self) {
        self.supervisor.tasks().change(&self.name, |facts| {
            facts.line = None;
            facts.problems.clear();
            facts.objects.clear();
        });
        self.warn();
    }

    /// Adds what is wrong to the warnings of the status, where people look first.
    fn warn(&self) {
        let key = format!("task/{}/problems", self.name);
        let sentence = self.supervisor.tasks().change(&self.name, |facts| {
            let named: Vec<_> =
                facts.problems.iter().take(NAMED).map(|(object, why)| format!("{object}: {why}")).collect();
            let more = match facts.problems.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" (and {more} more: k3s status --all)"),
            };
            (!named.is_empty()).then(|| format!("{}: {}{more}.", self.name, named.join("; ")))
        });
        match sentence {
            Some(sentence) => self.supervisor.warn(&key, sentence),
            None => self.supervisor.clear(&key),
        }
    }
}

/// In builds for tests, the tasks that this variable names panic in their first run.
#[cfg(debug_assertions)]
async fn with_fault<F: Future>(name: Arc<str>, work: F) -> F::Output {
    static PANICKED: Mutex<std::collections::BTreeSet<String>> = Mutex::new(std::collections::BTreeSet::new());
    let named = std::env::var("K3S_TEST_PANICS").is_ok_and(|names| names.split(',').any(|named| *named == *name));
    let is_first = || PANICKED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string());
    if named && is_first() {
        panic!("as K3S_TEST_PANICS asks");
    }
    work.await
}

#[cfg(not(debug_assertions))]
async fn with_fault<F: Future>(_: Arc<str>, work: F) -> F::Output {
    work.await
}

fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// An error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (**error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::status::Health;

    fn status_of(supervisor: &Supervisor, name: &str) -> TaskStatus {
        supervisor.tasks().status().into_iter().find(|task| task.name == name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_an_error_are_the_restart_of_that_task_alone() {
        let supervisor = Supervisor::example();
        let (shutdown, runs) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let others = supervisor.task("other");
        let other = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { others.run(&shutdown, |_| async { std::future::pending().await }).await }
        });
        let task = supervisor.task("flaky");
        task.run(&shutdown, |_| {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            async move {
                match run {
                    0 => panic!("no such node"),
                    1 => Err("the API said no".into()),
                    _ => Ok(()),
                }
            }
        })
        .await;
        let flaky = status_of(&supervisor, "flaky");
        assert_eq!((flaky.state, flaky.restarts), (TaskState::Ended, 2));
        assert_eq!(flaky.last_failure.unwrap().why, "the API said no");
        assert_eq!(status_of(&supervisor, "other").state, TaskState::Running);
        assert_eq!(status_of(&supervisor, "other").restarts, 0);
        shutdown.cancel();
        other.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_to_be_started_again_is_a_warning_that_says_why() {
        let supervisor = Supervisor::example();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn({
            let (task, shutdown) = (supervisor.task("node-hosts"), shutdown.clone());
            async move { task.run(&shutdown, |_| async { panic!("index out of bounds") }).await }
        });
        while supervisor.status().await.warnings.is_empty() {
            tokio::task::yield_now().await;
        }
        let status = supervisor.status().await;
        assert_eq!(status.warnings, ["node-hosts failed and is started again: it panicked: index out of bounds."]);
        assert_eq!(status.health, Health::Ready, "no child suffers from it");
        assert_eq!(status.tasks[0].state, TaskState::Backoff);
        shutdown.cancel();
        run.await.unwrap();
    }

    #[tokio::test]
    async fn problems_come_and_go_by_object_and_are_bounded() {
        let supervisor = Supervisor::example();
        let line = supervisor.task("addons").line();
        line.problem("my.yaml", "document 2 is no Kubernetes object");
        let warnings = async || supervisor.status().await.warnings;
        assert_eq!(warnings().await, ["addons: my.yaml: document 2 is no Kubernetes object."]);
        for number in 0..2 * PROBLEMS {
            line.problem(&format!("other-{number}.yaml"), "it is not YAML");
        }
        assert_eq!(status_of(&supervisor, "addons").problems.len(), PROBLEMS);
        assert!(warnings().await[0].ends_with("(and 97 more: k3s status --all)."), "{:?}", warnings().await);
        line.clear();
        assert!(warnings().await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_has_the_time_to_end_that_it_asked_for() {
        let supervisor = Supervisor::example();
        let (shutdown, cleaned) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let work = |after: u64| {
            let (shutdown, cleaned) = (shutdown.clone(), cleaned.clone());
            move |_: StatusLine| {
                let (shutdown, cleaned) = (shutdown.clone(), cleaned.clone());
                async move {
                    shutdown.cancelled().await;
                    sleep(Duration::from_secs(after)).await;
                    cleaned.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }
            }
        };
        let limit = Duration::from_secs(5);
        let (quick, slow, dropped) = (
            supervisor.task("quick").stops_within(limit),
            supervisor.task("slow").stops_within(limit),
            supervisor.task("dropped"),
        );
        let stop = async {
            sleep(Duration::from_secs(1)).await;
            shutdown.cancel();
        };
        tokio::join!(
            quick.run(&shutdown, work(4)),
            slow.run(&shutdown, work(6)),
            dropped.run(&shutdown, work(1)),
            stop
        );
        assert_eq!(cleaned.load(Ordering::Relaxed), 1);
        for name in ["quick", "slow", "dropped"] {
            assert_eq!(status_of(&supervisor, name).state, TaskState::Ended);
        }
    }
}
