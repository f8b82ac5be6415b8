//! What is known about every program and gate: written by those who make it happen, read by those who wait for it or tell it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use crate::{
    State,
    program::Program,
    status::{Component, Decision, GateStatus, Health, LastExit, Moment, OPEN, Status},
};

/// Enough for every first start; what comes after is in the log.
const TIMELINE_CAP: usize = 256;

/// The facts, and who waits for a change of them.
#[derive(Debug)]
pub(crate) struct StatusStore {
    facts: watch::Sender<Facts>,
    headline: watch::Sender<String>,
}

#[derive(Debug)]
pub(crate) struct Facts {
    began: Instant,
    began_at: SystemTime,
    programs: BTreeMap<String, ProgramFacts>,
    gates: BTreeMap<String, GateState>,
    decisions: BTreeMap<String, Decision>,
    warnings: BTreeMap<String, String>,
    timeline: Vec<Moment>,
    stopping: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct ProgramFacts {
    state: State,
    since: Instant,
    after: Vec<String>,
    /// Readiness once reached opens the way for dependents for good.
    was_ready: bool,
    pid: Option<u32>,
    starts: u64,
    started_at: Option<SystemTime>,
    ready_at: Option<SystemTime>,
    last_exit: Option<LastExit>,
    note: Option<String>,
    /// What its process has last said is wrong.
    last_error: Option<String>,
    killed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GateState {
    Closed {
        waiting_for: Option<String>,
    },
    /// Closed until another machine brings what is waited for.
    Elsewhere {
        waiting_for: String,
    },
    Open,
    Failed {
        why: String,
    },
}

impl StatusStore {
    pub(crate) fn new() -> Self {
        let facts = Facts {
            began: Instant::now(),
            began_at: SystemTime::now(),
            programs: BTreeMap::new(),
            gates: BTreeMap::new(),
            decisions: BTreeMap::new(),
            warnings: BTreeMap::new(),
            timeline: Vec::new(),
            stopping: false,
        };
        let headline = watch::Sender::new(facts.headline());
        Self { facts: watch::Sender::new(facts), headline }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// [`Facts::headline`] as it changes.
    pub(crate) fn watch_headline(&self) -> watch::Receiver<String> {
        self.headline.subscribe()
    }

    pub(crate) fn add_program(&self, program: &Program) {
        let facts = ProgramFacts {
            state: State::Waiting,
            since: Instant::now(),
            after: program.after.clone(),
            was_ready: false,
            pid: None,
            starts: 0,
            started_at: None,
            ready_at: None,
            last_exit: None,
            note: None,
            last_error: None,
            killed: false,
        };
        self.change(|all| all.programs.insert(program.name.clone(), facts).is_none());
    }

    pub(crate) fn add_gate(&self, name: &str) {
        self.change(|all| {
            if all.gates.contains_key(name) {
                return false;
            }
            all.gates.insert(name.to_owned(), GateState::Closed { waiting_for: None });
            all.mark(name, "closed");
            true
        });
    }

    pub(crate) fn set_begun(&self, name: &str) {
        self.change(|all| {
            let is_closed = matches!(all.gates.get(name), Some(GateState::Closed { .. } | GateState::Elsewhere { .. }));
            if is_closed {
                all.mark(name, State::Starting.as_str());
            }
            is_closed
        });
    }

    pub(crate) fn set_gate(&self, name: &str, state: GateState) {
        self.change(|all| {
            let Some(gate) = all.gates.get_mut(name) else { return false };
            if *gate == GateState::Open || *gate == state {
                return false;
            }
            let what = match state {
                GateState::Closed { .. } | GateState::Elsewhere { .. } => None,
                GateState::Open => Some(OPEN),
                GateState::Failed { .. } => Some("failed"),
            };
            *gate = state;
            if let Some(what) = what {
                all.mark(name, what);
            }
            true
        });
    }

    pub(crate) fn set_state(&self, name: &str, state: State) {
        self.change(|all| {
            let Some(program) = all.programs.get_mut(name) else { return false };
            let first_time = !program.was_ready;
            program.state = state;
            program.since = Instant::now();
            if state.is_ready() {
                program.was_ready = true;
                program.ready_at = Some(SystemTime::now());
            }
            // In a pause the note says why, and until when.
            if state != State::Backoff {
                program.note = None;
            }
            if first_time {
                all.mark(name, state.as_str());
            }
            true
        });
    }

    pub(crate) fn set_started(&self, name: &str, pid: u32) {
        self.change_program(name, |program| {
            program.pid = Some(pid);
            program.starts += 1;
            program.started_at = Some(SystemTime::now());
            program.ready_at = None;
            program.last_error = None;
        });
    }

    pub(crate) fn set_exited(&self, name: &str, exit: LastExit) {
        self.change_program(name, |program| {
            program.pid = None;
            program.last_exit = Some(exit);
        });
    }

    pub(crate) fn set_killed(&self, name: &str) {
        self.change_program(name, |program| program.killed = true);
    }

    /// What a program that is not ready is being waited for with, e.g. its probe's last answer.
    pub(crate) fn set_note(&self, name: &str, note: String) {
        self.change(|all| match all.programs.get_mut(name) {
            Some(program) if program.note.as_ref() != Some(&note) => {
                program.note = Some(note);
                true
            }
            _ => false,
        });
    }

    /// What a running program says is wrong. Nobody waits for it.
    pub(crate) fn set_last_error(&self, name: &str, error: String) {
        self.facts.send_if_modified(|all| {
            if let Some(program) = all.programs.get_mut(name) {
                program.last_error = Some(error);
            }
            false
        });
    }

    pub(crate) fn decided(&self, decision: Decision) {
        self.change(|all| all.decisions.insert(decision.name.clone(), decision.clone()).as_ref() != Some(&decision));
    }

    pub(crate) fn warn(&self, key: &str, sentence: String) {
        self.change(|all| all.warnings.insert(key.to_owned(), sentence.clone()).as_ref() != Some(&sentence));
    }

    pub(crate) fn clear(&self, key: &str) {
        self.change(|all| all.warnings.remove(key).is_some());
    }

    pub(crate) fn set_stopping(&self) {
        self.change(|all| !std::mem::replace(&mut all.stopping, true));
    }

    /// Comes back when each of `names` has been ready once.
    pub(crate) async fn cleared(&self, names: &[String]) {
        // The sender is ours: it cannot be gone.
        let _ = self.watch().wait_for(|all| names.iter().all(|name| all.was_ready(name))).await;
    }

    fn change_program(&self, name: &str, change: impl FnOnce(&mut ProgramFacts)) {
        self.change(|all| all.programs.get_mut(name).map(change).is_some());
    }

    /// Wakes those who wait if `change` says that it was one.
    fn change(&self, change: impl FnOnce(&mut Facts) -> bool) {
        self.facts.send_if_modified(|facts| {
            let changed = change(facts);
            if changed {
                let headline = facts.headline();
                self.headline.send_if_modified(|old| {
                    let differs = *old != headline;
                    *old = headline;
                    differs
                });
            }
            changed
        });
    }
}

impl Facts {
    /// Whether dependents of `name` may start.
    pub(crate) fn was_ready(&self, name: &str) -> bool {
        match self.gates.get(name) {
            Some(gate) => *gate == GateState::Open,
            None => self.programs.get(name).is_some_and(|program| program.was_ready),
        }
    }

    /// The programs whose life is over.
    pub(crate) fn stopped(&self) -> BTreeSet<String> {
        self.programs.iter().filter(|(_, program)| program.state.is_stopped()).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.gates.contains_key(name) || self.programs.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.gates.keys().chain(self.programs.keys())
    }

    /// Why a gate failed, if it did.
    pub(crate) fn failure(&self, name: &str) -> Option<&str> {
        match self.gates.get(name) {
            Some(GateState::Failed { why }) => Some(why),
            _ => None,
        }
    }

    /// What a program has said is wrong since it was started, or that it ended with.
    pub(crate) fn last_error(&self, name: &str) -> Option<&str> {
        let program = self.programs.get(name)?;
        let exit = program.last_exit.as_ref().and_then(|exit| exit.last_words.as_deref());
        program.last_error.as_deref().or(exit)
    }

    /// The programs that had to be killed since they did not end by themselves.
    pub(crate) fn killed(&self) -> Vec<String> {
        self.programs.iter().filter(|(_, program)| program.killed).map(|(name, _)| name.clone()).collect()
    }

    /// A copy for the world; memory is not looked up.
    pub(crate) fn status(&self, cgroups: &str) -> Status {
        let now = Instant::now();
        let components = self.programs.iter().map(|(name, program)| Component {
            name: name.clone(),
            state: program.state,
            pid: program.pid,
            restarts: program.starts.saturating_sub(1),
            last_exit: program.last_exit.clone(),
            in_state_ms: millis(now.duration_since(program.since)),
            started_at: program.started_at.map(unix_millis),
            ready_at: program.ready_at.map(unix_millis),
            memory: None,
            waiting_for: self.waiting_for(program),
            after: program.after.clone(),
        });
        let gates = self.gates.iter().map(|(name, gate)| GateStatus {
            name: name.clone(),
            open: *gate == GateState::Open,
            waiting_for: match gate {
                GateState::Open => None,
                GateState::Closed { waiting_for } => waiting_for.clone(),
                GateState::Elsewhere { waiting_for } => Some(waiting_for.clone()),
                GateState::Failed { why } => Some(why.clone()),
            },
            elsewhere: matches!(gate, GateState::Elsewhere { .. }),
        });
        Status {
            health: self.health(),
            headline: self.headline(),
            started_at: unix_millis(self.began_at),
            uptime_ms: millis(now.duration_since(self.began)),
            components: components.collect(),
            tasks: Vec::new(),
            gates: gates.collect(),
            decisions: self.decisions.values().cloned().collect(),
            warnings: self.warnings.values().cloned().collect(),
            timeline: self.timeline.clone(),
            cgroups: cgroups.to_owned(),
        }
    }

    fn health(&self) -> Health {
        let ready = |program: &ProgramFacts| program.state.is_ready();
        if self.stopping {
            Health::Stopping
        } else if self.programs.values().all(ready) && self.gates.values().all(|gate| *gate == GateState::Open) {
            Health::Ready
        } else if self.programs.values().any(|program| program.was_ready && !ready(program))
            || self.gates.values().any(|gate| matches!(gate, GateState::Failed { .. }))
        {
            Health::Degraded
        } else {
            Health::Starting
        }
    }

    /// How all of it does, in one line: what systemd's STATUS and the first line of `k3s status` say.
    fn headline(&self) -> String {
        match self.health() {
            Health::Ready if self.programs.is_empty() => "Nothing is started yet.".to_owned(),
            Health::Ready => {
                let warnings = match self.warnings.len() {
                    0 => String::new(),
                    1 => " There is 1 warning.".to_owned(),
                    n => format!(" There are {n} warnings."),
                };
                format!("All components are ready.{warnings}")
            }
            Health::Starting => format!("Starting: waiting for {}.", self.culprits().join(", ")),
            Health::Degraded => format!("Degraded: {}.", self.culprits().join(", ")),
            Health::Stopping => {
                let left: Vec<_> = self
                    .programs
                    .iter()
                    .filter(|(_, program)| !program.state.is_stopped())
                    .map(|(name, _)| name.as_str())
                    .collect();
                if left.is_empty() {
                    "Stopped.".to_owned()
                } else {
                    format!("Stopping: waiting for {}.", left.join(", "))
                }
            }
        }
    }

    /// What is not ready and not merely waiting for something else.
    fn culprits(&self) -> Vec<String> {
        let detailed = |name: &String, detail: Option<&str>| match detail {
            Some(detail) => format!("{name} ({detail})"),
            None => name.clone(),
        };
        let gates = self.gates.iter().filter_map(|(name, gate)| match gate {
            GateState::Open => None,
            GateState::Closed { waiting_for } => Some(detailed(name, waiting_for.as_deref())),
            GateState::Elsewhere { waiting_for: what } | GateState::Failed { why: what } => {
                Some(detailed(name, Some(what)))
            }
        });
        let programs = self
            .programs
            .iter()
            .filter(|(_, program)| !program.state.is_ready() && program.state != State::Waiting)
            .map(|(name, program)| detailed(name, self.waiting_for(program).as_deref()));
        gates.chain(programs).collect()
    }

    fn waiting_for(&self, program: &ProgramFacts) -> Option<String> {
        match program.state {
            State::Ready | State::Stopped => None,
            State::Waiting => {
                let missing: Vec<_> =
                    program.after.iter().filter(|name| !self.was_ready(name)).map(String::as_str).collect();
                (!missing.is_empty()).then(|| missing.join(", "))
            }
            State::Starting | State::Backoff | State::Restarting | State::Stopping => program.note.clone(),
        }
    }

    fn mark(&mut self, name: &str, what: &str) {
        if self.timeline.len() < TIMELINE_CAP {
            self.timeline.push(Moment {
                at_ms: millis(self.began.elapsed()),
                name: name.to_owned(),
                what: what.to_owned(),
            });
        }
    }
}

pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headline(store: &StatusStore) -> String {
        store.watch_headline().borrow().clone()
    }

    fn closed(text: &str) -> GateState {
        GateState::Closed { waiting_for: Some(text.to_owned()) }
    }

    #[test]
    fn the_headline_names_what_all_wait_for_and_not_those_who_wait() {
        let store = StatusStore::new();
        assert_eq!(headline(&store), "Nothing is started yet.");
        store.add_gate("images");
        store.add_program(&Program { after: vec!["images".into()], ..Program::example("kubelet", "true") });
        assert_eq!(headline(&store), "Starting: waiting for images.");
        store.set_gate("images", closed("importing 2 of 3"));
        assert_eq!(headline(&store), "Starting: waiting for images (importing 2 of 3).");
        assert_eq!(store.watch().borrow().status("").components[0].waiting_for.as_deref(), Some("images"));

        store.set_gate("images", GateState::Open);
        store.set_state("kubelet", State::Starting);
        store.set_note("kubelet", "connection refused".into());
        assert_eq!(headline(&store), "Starting: waiting for kubelet (connection refused).");
        store.set_state("kubelet", State::Ready);
        assert_eq!(headline(&store), "All components are ready.");
        store.warn("forward", "The FORWARD chain's policy is DROP.".into());
        assert_eq!(headline(&store), "All components are ready. There is 1 warning.");
        store.clear("forward");

        store.set_note("kubelet", "exited with 1".into());
        store.set_state("kubelet", State::Backoff);
        assert_eq!(headline(&store), "Degraded: kubelet (exited with 1).");
        store.set_stopping();
        assert_eq!(headline(&store), "Stopping: waiting for kubelet.");
        store.set_state("kubelet", State::Stopped);
        assert_eq!(headline(&store), "Stopped.");
    }

    #[test]
    fn an_open_gate_stays_open_and_a_failed_one_may_open() {
        let store = StatusStore::new();
        store.add_gate("datastore");
        store.set_gate("datastore", GateState::Failed { why: "the file is locked".into() });
        assert_eq!(store.watch().borrow().failure("datastore"), Some("the file is locked"));
        assert_eq!(headline(&store), "Degraded: datastore (the file is locked).");
        store.set_gate("datastore", GateState::Open);
        store.set_gate("datastore", closed("nothing"));
        assert!(store.watch().borrow().was_ready("datastore"));
    }

    #[test]
    fn what_another_machine_has_to_bring_is_told_from_what_is_missing_here() {
        let store = StatusStore::new();
        let waits_for_others = || store.watch().borrow().status("").waits_for_others();
        store.add_gate("kube-apiserver");
        store.add_program(&Program::example("etcd", "true"));
        store.add_program(&Program { after: vec!["kube-apiserver".into()], ..Program::example("kubelet", "true") });
        store.set_state("etcd", State::Ready);
        assert!(!waits_for_others());
        let text = "no server with kube-apiserver has joined yet";
        store.set_gate("kube-apiserver", GateState::Elsewhere { waiting_for: text.to_owned() });
        assert!(waits_for_others());
        assert_eq!(headline(&store), format!("Starting: waiting for kube-apiserver ({text})."));

        store.set_state("etcd", State::Backoff);
        assert!(!waits_for_others(), "etcd is this machine's own");
        store.set_state("etcd", State::Ready);
        store.set_gate("kube-apiserver", closed("it does not answer"));
        assert!(!waits_for_others(), "there is one");
    }

    #[test]
    fn the_timeline_ends_with_the_first_readiness() {
        let store = StatusStore::new();
        store.add_program(&Program::example("kubelet", "true"));
        for state in [State::Starting, State::Ready, State::Backoff, State::Starting, State::Ready] {
            store.set_state("kubelet", state);
        }
        let status = store.watch().borrow().status("");
        let seen: Vec<_> = status.timeline.iter().map(|moment| moment.what.as_str()).collect();
        assert_eq!(seen, ["starting", "ready"]);
    }
}
