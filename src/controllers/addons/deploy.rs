//! The deploy controller: what lies in the folder of manifests is in the cluster.
//!
//! ```text
//! something changes, or 15 s ──► look ──► files that differ ──► read ──► apply ──► prune ──► AddOn
//!                                  │                             └───────┴─ fails: event, status, again later
//!                                  ├─► disabled ──► delete objects, file, AddOn
//!                                  └─► gone from an authoritative folder ──► delete objects, AddOn
//! ```
//!
//! As in k3s, each server follows its own folder, a file that is deleted leaves its objects behind unless its folder is authoritative, and
//! the first look at a file applies it whatever was applied before. `backlog.rs` says what waits for what, `apply.rs` does it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use k3s_supervise::{ObjectStatus, TaskError};
use tokio::{
    select,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::info;

use super::{
    Deploy,
    apply::{Applier, Contents, DeployError, Job, read},
    backlog::{Backlog, Share},
    changes::Changes,
    folder::{ManifestFile, Scan, addon_name, is_disabled, scan},
    outcomes::Outcomes,
    packaged::PACKAGED,
};
use crate::{Context, Controller};

/// How often the status says how far it is, and what failed is looked at again, while there is other work.
const BETWEEN: Duration = Duration::from_secs(1);

impl Controller for Deploy {
    const NAME: &'static str = "deploy";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let applier = Applier::new(self, context.client.clone());
        applier.define().await?;
        for (packaged, chart) in self.left_out() {
            info!(
                manifest = packaged,
                chart, "A packaged add-on is left out: its chart did not come with this package."
            );
        }
        let mut run = Run::new(self, &applier, &context);
        let mut changes = Changes::new();
        loop {
            run.stage();
            run.look().await?;
            changes.follow(&run.found.folders);
            let mut changed = pin!(changes.next());
            loop {
                run.begin_what_fits();
                if run.is_idle() && !run.is_settled {
                    run.forget().await;
                    run.tell();
                    run.is_settled = true;
                }
                let next_look = run.next_look();
                select! {
                    Some(progress) = run.working.next() => run.progress(progress),
                    () = &mut changed => break,
                    () = sleep_until(next_look.unwrap_or_else(Instant::now)), if next_look.is_some() => break,
                }
            }
        }
    }
}

impl Deploy {
    /// The packaged manifests that are not staged for a chart that is missing, each with that.
    fn left_out(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        PACKAGED.iter().filter_map(|packaged| Some((packaged.path, self.missing_chart(packaged)?)))
    }
}

struct Run<'a> {
    deploy: &'a Deploy,
    applier: &'a Applier<'a>,
    context: &'a Context,
    /// What there was in the folder at the last look.
    found: Scan,
    /// Wanted files that have one add-on name together, by that.
    rivals: HashMap<String, Vec<ManifestFile>>,
    outcomes: Outcomes,
    /// What could not be read when it was last looked at, by name.
    unreadable: BTreeSet<String>,
    /// Names in `--disable` that nothing has been found for, in this process' life.
    unfound: BTreeSet<String>,
    backlog: Backlog,
    /// What is begun next: it is read, or waits for what is on its way.
    next: Next,
    /// Files on their way, each with what it takes.
    on_their_way: Vec<(ManifestFile, Share)>,
    working: FuturesUnordered<BoxFuture<'a, Progress>>,
    /// When a file that failed is to be tried again.
    retry_at: Option<Instant>,
    /// Whether all that the last look found is done and told, and what is gone forgotten.
    is_settled: bool,
    /// When the folder was last looked at.
    looked: Instant,
    /// When the status was last told.
    told: Instant,
}

/// The file after those that are on their way.
enum Next {
    None,
    Reading(ManifestFile),
    Waiting(ManifestFile, Share, Todo),
}

enum Todo {
    Apply(Result<Contents, DeployError>),
    Delete,
}

/// What has come about.
enum Progress {
    Read(Result<Contents, DeployError>),
    Ended(ManifestFile, Result<(), String>),
}

impl<'a> Run<'a> {
    fn new(deploy: &'a Deploy, applier: &'a Applier<'a>, context: &'a Context) -> Self {
        Self {
            deploy,
            applier,
            context,
            found: Scan::default(),
            rivals: HashMap::new(),
            outcomes: Outcomes::default(),
            unreadable: BTreeSet::new(),
            unfound: deploy.disabled.iter().filter(|name| !deploy.packaged.contains(&name.as_str())).cloned().collect(),
            backlog: Backlog::default(),
            next: Next::None,
            on_their_way: Vec::new(),
            working: FuturesUnordered::new(),
            retry_at: None,
            is_settled: false,
            looked: Instant::now(),
            told: Instant::now(),
        }
    }

    /// Puts the packaged manifests into the folder.
    fn stage(&self) {
        for packaged in PACKAGED {
            match self.deploy.stage(packaged) {
                Ok(()) => self.context.status.solved(packaged.path),
                Err(error) => self.context.status.problem(packaged.path, error.to_string()),
            }
        }
    }

    /// Looks into the folder: what is due is done from now on.
    async fn look(&mut self) -> Result<(), TaskError> {
        let (folder, disabled) = (self.deploy.folder.clone(), self.deploy.disabled.clone());
        self.found = spawn_blocking(move || scan(&folder, &disabled)).await?;
        let unreadable = self.found.unreadable.iter().map(|(name, _)| name.clone()).collect();
        for name in self.unreadable.difference(&unreadable) {
            self.context.status.solved(name);
        }
        self.unreadable = unreadable;
        for (name, error) in &self.found.unreadable {
            self.context.status.problem(name, format!("it cannot be read: {error}"));
        }
        self.tell_unfound();
        self.rivals.clear();
        for file in &self.found.wanted {
            self.rivals.entry(addon_name(&file.path)).or_default().push(file.clone());
        }
        self.rivals.retain(|_, files| files.len() > 1);
        let due = self.found.disabled.iter().chain(&self.found.wanted).filter(|file| self.is_due(file));
        self.backlog.replace(due.cloned().collect());
        let there = self.found.disabled.iter().chain(&self.found.wanted);
        self.retry_at = self.outcomes.earliest_retry(there);
        self.is_settled = false;
        self.looked = Instant::now();
        Ok(())
    }

    /// Tells which names in `--disable` nothing is called by: k3s takes any, and a typing error disables nothing.
    fn tell_unfound(&mut self) {
        let is_found = |name: &String| {
            let disabled = BTreeSet::from([name.clone()]);
            let packaged = PACKAGED.iter().map(|packaged| self.deploy.path(packaged));
            let mut paths = self.found.disabled.iter().map(|file| file.path.clone()).chain(packaged);
            paths.any(|path| is_disabled(&self.deploy.folder, &path, &disabled))
        };
        let (found, unfound): (BTreeSet<_>, _) = std::mem::take(&mut self.unfound).into_iter().partition(is_found);
        for name in &found {
            self.context.status.solved(&format!("--disable={name}"));
        }
        for name in &unfound {
            let why = format!(
                "no manifest in the folder is called so, and no packaged add-on: these are {}",
                self.deploy.packaged.join(", ")
            );
            self.context.status.problem(&format!("--disable={name}"), why);
        }
        self.unfound = unfound;
    }

    /// Begins what may go on beside what is on its way.
    fn begin_what_fits(&mut self) {
        loop {
            match std::mem::replace(&mut self.next, Next::None) {
                Next::None => {
                    let Some(file) = self.backlog.next() else { return };
                    self.next = if self.found.disabled.contains(&file) {
                        Next::Waiting(file.clone(), Share::alone(&file), Todo::Delete)
                    } else {
                        let path = file.path.clone();
                        self.working.push(async move { Progress::Read(read(&path).await) }.boxed());
                        Next::Reading(file)
                    };
                }
                reading @ Next::Reading(_) => {
                    self.next = reading;
                    return;
                }
                Next::Waiting(file, share, todo) => {
                    if !share.fits(self.on_their_way.iter().map(|(_, share)| share)) {
                        self.next = Next::Waiting(file, share, todo);
                        return;
                    }
                    let job = self.job(file.clone(), todo);
                    let applier = self.applier;
                    self.working.push(
                        async move {
                            let (file, result) = applier.run(job).await;
                            Progress::Ended(file, result)
                        }
                        .boxed(),
                    );
                    self.on_their_way.push((file, share));
                }
            }
        }
    }

    fn job(&self, file: ManifestFile, todo: Todo) -> Job {
        let Todo::Apply(contents) = todo else { return Job::Delete { file } };
        Job::Apply {
            rivals: self.rivals.get(&addon_name(&file.path)).cloned().unwrap_or_default(),
            is_done: self.outcomes.is_done(&file),
            told: self.outcomes.why(&file).map(str::to_owned),
            contents,
            file,
        }
    }

    fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Read(contents) => {
                if let Next::Reading(file) = std::mem::replace(&mut self.next, Next::None) {
                    let objects = contents.as_ref().map(|contents| &*contents.objects).unwrap_or_default();
                    let share = Share::of(&file, objects);
                    self.next = Next::Waiting(file, share, Todo::Apply(contents));
                }
            }
            Progress::Ended(file, result) => {
                self.on_their_way.retain(|(on_its_way, _)| on_its_way.path != file.path);
                self.settle(file, result);
                if self.told.elapsed() >= BETWEEN {
                    self.tell();
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.working.is_empty() && self.backlog.is_empty() && matches!(self.next, Next::None)
    }

    /// Lists what became of each file.
    fn list(&self) {
        let found = &self.found;
        let listed = |file: &ManifestFile, done: &str| {
            let state = if self.outcomes.is_done(file) { done } else { "waits" };
            let why = self.outcomes.why(file).map(str::to_owned);
            ObjectStatus { object: file.name.clone(), state: state.to_owned(), why }
        };
        let skipped = found.skipped.iter().map(|path| ObjectStatus {
            object: path.strip_prefix(&self.deploy.folder).unwrap_or(path).display().to_string(),
            state: "skipped".to_owned(),
            why: None,
        });
        let unreadable = found.unreadable.iter().map(|(name, error)| ObjectStatus {
            object: name.clone(),
            state: "unreadable".to_owned(),
            why: Some(error.to_string()),
        });
        let is_there = |path: &str| found.wanted.iter().any(|file| file.name == path);
        let left_out = self.deploy.left_out().filter(|(path, _)| !is_there(path)).map(|(path, chart)| ObjectStatus {
            object: path.to_owned(),
            state: "left out".to_owned(),
            why: Some(format!("its chart {chart} did not come with this package")),
        });
        let wanted = found.wanted.iter().map(|file| listed(file, "applied"));
        let mut all: Vec<_> = wanted
            .chain(found.disabled.iter().map(|file| listed(file, "disabled")))
            .chain(skipped)
            .chain(unreadable)
            .chain(left_out)
            .collect();
        // What is wrong comes first, then by name.
        let is_right = |object: &ObjectStatus| !matches!(&*object.state, "waits" | "unreadable");
        all.sort_by(|a, b| (is_right(a), &a.object).cmp(&(is_right(b), &b.object)));
        self.context.status.list(all);
    }

    /// Tells how far it is, and what became of each file.
    fn tell(&mut self) {
        self.told = Instant::now();
        self.list();
        let (all, done) =
            (&self.found.wanted, self.found.wanted.iter().filter(|file| self.outcomes.is_done(file)).count());
        self.context.status.set(if done == all.len() {
            format!("{done} manifests are applied")
        } else {
            format!("{done} of {} manifests are applied", all.len())
        });
    }

    /// Whether a file has changed, or failed and is to be tried again, and is not on its way as it is now.
    fn is_due(&self, file: &ManifestFile) -> bool {
        let is_next = matches!(&self.next, Next::Reading(next) | Next::Waiting(next, ..) if next == file);
        if is_next || self.on_their_way.iter().any(|(on_its_way, _)| on_its_way == file) {
            return false;
        }
        self.outcomes.is_due(file)
    }

    /// Remembers what became of a file, and tells of it.
    fn settle(&mut self, file: ManifestFile, result: Result<(), String>) {
        match &result {
            Ok(()) => self.context.status.solved(&file.name),
            Err(why) => self.context.status.problem(&file.name, why),
        }
        let again = self.outcomes.settle(file, result);
        self.retry_at = self.retry_at.into_iter().chain(again).min();
    }

    /// Forgets files that are gone; those of authoritative folders take their objects along.
    async fn forget(&mut self) {
        let found = &self.found;
        let unreadable: Vec<_> = found.unreadable.iter().map(|(name, _)| self.deploy.folder.join(name)).collect();
        let known = found.wanted.iter().chain(&found.disabled).map(|file| &file.path);
        let mut there: HashSet<&Path> = known.chain(&unreadable).map(PathBuf::as_path).collect();
        for gone in self.outcomes.forget(|path| there.contains(path)) {
            self.context.status.solved(&gone.name);
        }
        if found.authoritative.is_empty() {
            return;
        }
        there.extend(found.skipped.iter().map(PathBuf::as_path));
        let told = |addon: &str, deleted: Result<(), kube::Error>| match deleted {
            Ok(()) => self.context.status.solved(addon),
            Err(error) => self.context.status.problem(addon, format!("its objects cannot be deleted: {error}")),
        };
        self.applier.delete_gone(&found.authoritative, &there, told).await;
    }

    /// When to look again in any case: at a file that failed.
    fn next_look(&self) -> Option<Instant> {
        self.retry_at.map(|at| if self.is_idle() { at } else { at.max(self.looked + BETWEEN) })
    }
}
