//! Cycles of traffic and crash on one store, each held against its promises.
//!
//! ```text
//! start ─► traffic ─► crash, in the midst of it ─► start again ─► resume watches, read everything ─► verdict ─► stop
//!   ▲                                                                                                          │
//!   └───────────────────────── the next cycle goes on with the same files and what they must hold ◄────────────┘
//! ```

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context as _, Result, anyhow, bail};
use fastrand::Rng;
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Duration, interval, sleep, timeout},
};

use crate::{
    client::{Beat, Session, Shared},
    history::{Answer, Body, Clock, History, Keys, Outcome, Request, Revision, Wanted, Watch},
    model::State,
    place::Place,
    proof::Proof,
    server::{Datastore, PATIENCE, Server},
    traffic::{self, Trace},
    verdict::{Promise, Verdict, Violation, events},
    vfs::{Disk, Failure},
};

/// How often a resumed watch asks whether it has seen everything.
const ASK: Duration = Duration::from_millis(20);

/// What ends each cycle's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// `kill -9`, on the machine's file system. In half of the cycles our store's disk may fail before.
    Kill,
    /// The power of the disk is cut. In half of the cycles our store's disk may fail before, unless it is forgetful.
    PowerCut {
        /// Whether syncs do nothing: the checkers have to see it.
        forgetful: bool,
    },
}

/// Cycles on one store.
pub struct Campaign {
    datastore: Datastore,
    crash: Crash,
    place: Place,
    scratch: TempDir,
    numbers: Arc<AtomicU64>,
    clock: Clock,
    rng: Rng,
    /// What the store holds.
    state: State,
    tally: Tally,
    proof: Proof,
    seed: u64,
    /// Where the histories of broken promises go.
    kept: PathBuf,
}

/// What a campaign has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Crashes.
    pub cycles: u64,
    /// Crashes in the midst of a compaction.
    pub compactions: u64,
    /// Disks that failed before.
    pub failures: u64,
    /// Requests, answered or not.
    pub requests: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Requests of which nobody knows what became.
    pub unknown: usize,
    /// Events that watches were told.
    pub events: usize,
    /// Watches.
    pub watches: usize,
}

/// One cycle's history, and what it says.
#[derive(Debug)]
pub struct Cycle {
    /// What the disk did.
    pub disk: Disk,
    /// What was seen.
    pub history: History,
    /// Promises that were not kept; empty if all is well.
    pub violations: Vec<Violation>,
}

/// A cycle in which promises were broken.
#[derive(Debug)]
pub struct Broken {
    /// Which one, counted from one.
    pub number: u64,
    /// What the disk did.
    pub disk: Disk,
    /// What was broken.
    pub violations: Vec<Violation>,
    /// Where its history is, as JSON.
    pub kept: PathBuf,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, disk, violations, kept } = self;
        writeln!(f, "Cycle {number}, disk {disk}: {} violations in {}", violations.len(), kept.display())?;
        violations.iter().take(10).try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

impl Campaign {
    /// A campaign on an empty store, whose files are below `scratch`. The seed decides about the traffic and the
    /// moments of crashes, but the scheduler has a say too.
    ///
    /// # Errors
    /// The store's place cannot be made; a disk needs root.
    pub async fn new(datastore: Datastore, crash: Crash, scratch: &Path, seed: u64) -> Result<Self> {
        std::fs::create_dir_all(scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        let kept = scratch.to_owned();
        let scratch = TempDir::with_prefix_in("datastore-", scratch).context("cannot make a folder")?;
        let place = match crash {
            Crash::Kill => Place::folder(scratch.path())?,
            Crash::PowerCut { .. } => Place::disk(scratch.path()).await?,
        };
        Ok(Self {
            datastore,
            crash,
            place,
            scratch,
            numbers: Arc::default(),
            clock: Clock::start(),
            rng: Rng::with_seed(seed),
            state: State::default(),
            tally: Tally::default(),
            proof: Proof::default(),
            seed,
            kept,
        })
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Mistakes that were put into the histories so far.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Runs so many cycles, or until a promise is broken; its history is kept then. Into the history of each cycle all mistakes
    /// are put afterwards, to see that they are found.
    ///
    /// # Errors
    /// The test itself failed, or the server did not answer at all.
    pub async fn run(&mut self, cycles: u64) -> Result<Option<Broken>> {
        for _ in 0..cycles {
            let Cycle { disk, history, violations } = self.cycle().await?;
            if !violations.is_empty() {
                let number = self.tally.cycles;
                let kept = self.kept.join(format!("history-{}-{number}.json", self.seed));
                std::fs::write(&kept, serde_json::to_vec(&history)?)
                    .with_context(|| format!("cannot write {}", kept.display()))?;
                return Ok(Some(Broken { number, disk, violations, kept }));
            }
            self.proof.try_all(&history, &mut self.rng);
        }
        Ok(None)
    }

    /// Runs one cycle. After one with violations the store cannot be trusted: end the campaign.
    ///
    /// # Errors
    /// The test itself failed, or the server did not answer at all.
    pub async fn cycle(&mut self) -> Result<Cycle> {
        let disk = self.choose_disk();
        let traces = self.traffic(disk).await?;
        let mut history = History { before: self.state.clone(), operations: Vec::new(), watches: Vec::new() };
        let mut unfinished = Vec::new();
        for trace in traces {
            history.operations.extend(trace.operations);
            history.watches.extend(trace.finished);
            unfinished.extend(trace.unfinished);
        }
        self.tally.cycles += 1;
        let recovered = self.recover(unfinished, &mut history).await;
        self.count(&history);
        let violations = match recovered {
            Ok(server) => {
                let Verdict { mut violations, after, .. } = Verdict::of(&history);
                self.state = after;
                violations.extend(self.end(server).await?);
                violations
            }
            Err(error) => vec![Violation::new(Promise::Recovers, format!("{error:#}"))],
        };
        Ok(Cycle { disk, history, violations })
    }

    /// What the clients of one server share, and their beats: these end with the last client.
    fn shared(&self) -> (Shared, UnboundedReceiver<Beat>) {
        let (beats, heard) = unbounded_channel();
        (Shared { clock: self.clock, beats, numbers: Arc::clone(&self.numbers) }, heard)
    }

    /// Kills the server, or stops it and looks whether it thinks that all is well.
    async fn end(&mut self, server: Server) -> Result<Option<Violation>> {
        if self.rng.bool() {
            server.kill().await?;
            return Ok(None);
        }
        let status = server.stop().await?;
        // etcd ends by the signal.
        let is_well = status.success() || matches!(self.datastore, Datastore::Etcd(_));
        Ok((!is_well).then(|| Violation::new(Promise::Recovers, format!("it stopped with {status}"))))
    }

    fn choose_disk(&mut self) -> Disk {
        if matches!(self.datastore, Datastore::Etcd(_)) || self.lasting_disk() != Disk::Honest || self.rng.bool() {
            return self.lasting_disk();
        }
        let failure = *self.rng.choice(&Failure::ALL).unwrap_or(&Failure::Write);
        let calls = match failure {
            Failure::Write | Failure::WriteFull | Failure::WriteHalf => 500,
            Failure::Sync => 40,
            Failure::Truncate => 2,
        };
        Disk::Failing { failure, nth: self.rng.u64(1..=calls) }
    }

    /// The disk without its accidents.
    fn lasting_disk(&self) -> Disk {
        if self.crash == (Crash::PowerCut { forgetful: true }) { Disk::Forgetful } else { Disk::Honest }
    }

    /// Starts the store and its clients, and lets it crash at a random moment. Returns what the clients saw.
    async fn traffic(&mut self, disk: Disk) -> Result<Vec<Trace>> {
        let server = match Server::start(&self.datastore, &self.place, disk).await {
            Ok(server) => server,
            // A disk that fails while the store opens.
            Err(_) if matches!(disk, Disk::Failing { .. }) => {
                self.tally.failures += 1;
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let (shared, mut heard) = self.shared();
        let clients = traffic::start(&server, shared, self.state.revision, &mut self.rng).await?;
        let moment = self.rng.usize(10..250);
        // At the latest when all clients have given up.
        let mut finished = 0;
        while finished < moment
            && let Some(beat) = heard.recv().await
        {
            finished += usize::from(beat == Beat::Finished);
            if beat == Beat::Compacting && self.rng.u8(..4) == 0 {
                self.tally.compactions += 1;
                sleep(Duration::from_micros(self.rng.u64(..3000))).await;
                break;
            }
        }
        if let Crash::PowerCut { .. } = self.crash {
            server.freeze().await?;
            self.place.cut_power(self.scratch.path(), self.tally.cycles + 1).await?;
        }
        self.tally.failures += u64::from(server.kill().await?);
        clients.join_all().await.into_iter().collect()
    }

    /// Starts the store again and looks at what is left: takes up the watches where they were, reads everything, and
    /// writes a little.
    async fn recover(&mut self, unfinished: Vec<Watch>, history: &mut History) -> Result<Server> {
        let server = Server::start(&self.datastore, &self.place, self.lasting_disk()).await?;
        let (shared, _) = self.shared();
        let mut session = Session::connect(&server, shared).await?;
        let everything = || Request::Range { keys: Keys::all(), revision: None, limit: 0 };
        let mut newest = ask(&mut session, everything()).await?.revision();
        for n in 0..3 {
            let value = session.shared.value(n);
            let key = format!("/registry/aftermath/{n}");
            newest =
                ask(&mut session, Request::Put { key, value, lease: 0, guard: None, or_read: false }).await?.revision();
        }
        for _ in 0..20 {
            let revision = Some(self.rng.i64(self.state.compacted.max(1)..=newest));
            let past = Request::Range { keys: Keys::all(), revision, limit: 0 };
            session.ask(past).await?.context("the server is gone")?.ok();
        }
        ask(&mut session, everything()).await?;
        let interrupted = unfinished.iter().map(|watch| (watch.keys.clone(), watch.wanted, watch.next_revision()));
        let mut resumed: Vec<_> = interrupted.collect();
        if !resumed.iter().any(|(keys, wanted, _)| (keys, wanted) == (&Keys::all(), &Wanted::All)) {
            // The witness had not yet begun.
            resumed.push((Keys::all(), Wanted::All, self.state.revision + 1));
        }
        history.watches.extend(unfinished);
        for (keys, wanted, start) in resumed {
            let watch = follow(&mut session, keys, wanted, start, newest).await?;
            history.watches.push(watch);
        }
        history.operations.append(&mut session.operations);
        Ok(server)
    }

    fn count(&mut self, history: &History) {
        let tally = &mut self.tally;
        tally.requests += history.operations.len();
        tally.events += events(history);
        tally.watches += history.watches.len();
        for operation in &history.operations {
            match &operation.outcome {
                Outcome::Answered { answer: Answer::Written { .. }, .. } => tally.acknowledged += 1,
                Outcome::Unknown { .. } => tally.unknown += 1,
                Outcome::Answered { .. } | Outcome::Refused { .. } => {}
            }
        }
    }
}

async fn ask(session: &mut Session, request: Request) -> Result<Answer> {
    let answer = session.ask(request).await?.context("the server is gone")?;
    answer.map_err(|refusal| anyhow!("a healthy server refused: {refusal:?}"))
}

/// Watches until everything up to `newest` was told.
async fn follow(session: &mut Session, keys: Keys, wanted: Wanted, start: Revision, newest: Revision) -> Result<Watch> {
    let mut watcher = session.watch(keys, start, wanted).await.context("the server is gone")?;
    let mut ticks = interval(ASK);
    let following = async {
        while watcher.watch.next_revision() <= newest {
            tokio::select! {
                message = watcher.next() => match message? {
                    None => bail!("the server is gone"),
                    Some(Body::Compacted(_)) => break,
                    Some(_) => {}
                },
                _ = ticks.tick() => watcher.ask_progress().await,
            }
        }
        Ok(())
    };
    match timeout(PATIENCE, following).await {
        Ok(followed) => followed?,
        Err(_) => bail!("a watch from {start} was not told everything up to {newest} in {PATIENCE:?}"),
    }
    Ok(watcher.watch)
}
