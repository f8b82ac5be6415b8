//! The deploy controller: what lies in the folder of manifests is in the cluster.
//!
//! ```text
//! something changes, or 15 s ──► scan ──► files that differ ──► read ──► parse ──► apply ──► prune ──► AddOn
//!                                  │                              └────────┴────────┴─ fails: event, status, again later
//!                                  ├─► disabled ──► delete objects, file, AddOn
//!                                  └─► gone from an authoritative folder ──► delete objects, AddOn
//! ```
//!
//! As in k3s, each server follows its own folder, a file that is deleted leaves its objects behind unless its folder is authoritative, and
//! the first look at a file applies it whatever was applied before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use k3s_supervise::{Backoff, ObjectStatus, TaskError};
use nix::libc;
use tokio::{
    select,
    task::{JoinError, spawn_blocking},
    time::Instant,
};
use tracing::{debug, info};

use super::{
    Deploy,
    addon::{AddonObject, Addons, DEFINITIONS, Step},
    changes::Changes,
    cluster::{Cluster, kinds_of},
    folder::{ManifestFile, Scan, addon_name, is_addon_name, scan},
    manifest::{self, ManifestObject},
    object_set::ObjectSet,
    packaged::PACKAGED,
};
use crate::{Context, Controller, backoff};

/// Larger than any manifest that people keep, and small enough to be read by a small device.
const LARGEST: u64 = 16 << 20;
/// Of what is told of a file, in characters: parsers and the API cite what they were given.
const LONGEST: usize = 600;
/// Between attempts with one file at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

impl Controller for Deploy {
    const NAME: &'static str = "deploy";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let mut run = Run {
            deploy: self,
            addons: Addons::new(context.client.clone(), context.events.clone()),
            cluster: Cluster::new(context.client.clone()),
            context: &context,
            files: HashMap::new(),
            unreadable: BTreeSet::new(),
        };
        run.define().await?;
        for (packaged, chart) in self.left_out() {
            info!(
                manifest = packaged,
                chart, "A packaged add-on is left out: its chart did not come with this package."
            );
        }
        let mut changes = Changes::new();
        loop {
            run.stage();
            let found = run.look().await?;
            changes.follow(&found.folders);
            run.bring_about(&found).await;
            select! {
                () = changes.next() => {}
                () = run.next_attempt() => {}
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
    addons: Addons,
    cluster: Cluster,
    context: &'a Context,
    /// What became of each file, by its path.
    files: HashMap<PathBuf, FileState>,
    /// What could not be read when it was last looked at, by name.
    unreadable: BTreeSet<String>,
}

/// What became of a file, as it was when it was last looked at.
struct FileState {
    file: ManifestFile,
    outcome: Outcome,
}

enum Outcome {
    Done,
    Failed(Box<Retry>),
}

/// When a file that failed is tried again.
struct Retry {
    backoff: Backoff,
    at: Instant,
    why: String,
}

/// Why a file is not in the cluster.
#[derive(Debug, thiserror::Error)]
enum DeployError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is larger than {} MiB", LARGEST >> 20)]
    TooLarge,
    #[error(transparent)]
    Manifest(#[from] manifest::ManifestError),
    #[error(transparent)]
    Apply(#[from] super::cluster::Failures),
    #[error("the API does not answer for its AddOn: {0}")]
    Addon(#[from] kube::Error),
    #[error("it has the add-on name {name} of {first}: rename one of them")]
    Name { name: String, first: String },
    #[error("it cannot be an AddOn called {0:?}: rename it to small letters, digits and - before its first dot")]
    NoName(String),
    #[error("reading it failed: {0}")]
    Thread(#[from] JoinError),
    #[error("it cannot be deleted: {0}")]
    Delete(io::Error),
    #[error("{0} is being uninstalled")]
    Uninstalling(String),
}

impl DeployError {
    /// What it is to users.
    fn step(&self) -> Option<Step> {
        match self {
            Self::Read(_) | Self::TooLarge => Some(Step::ReadFailed),
            Self::Manifest(_) => Some(Step::ParseFailed),
            Self::Apply(_) => Some(Step::ApplyFailed),
            Self::Addon(_)
            | Self::Name { .. }
            | Self::NoName(_)
            | Self::Thread(_)
            | Self::Delete(_)
            | Self::Uninstalling(_) => None,
        }
    }
}

impl Run<'_> {
    /// Makes the API know AddOns and Helm charts.
    async fn define(&mut self) -> Result<(), TaskError> {
        for definition in DEFINITIONS {
            let objects = manifest::parse(definition.as_bytes())?;
            let mut backoff = backoff::of_api();
            while let Err(error) = self.cluster.define(&objects).await {
                debug!(%error, "AddOns and Helm charts cannot be defined yet.");
                backoff.wait().await;
            }
        }
        Ok(())
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

    async fn look(&self) -> Result<Scan, TaskError> {
        let (folder, disabled) = (self.deploy.folder.clone(), self.deploy.disabled.clone());
        Ok(spawn_blocking(move || scan(&folder, &disabled)).await?)
    }

    async fn bring_about(&mut self, found: &Scan) {
        let unreadable = found.unreadable.iter().map(|(name, _)| name.clone()).collect();
        for name in self.unreadable.difference(&unreadable) {
            self.context.status.solved(name);
        }
        self.unreadable = unreadable;
        for (name, error) in &found.unreadable {
            self.context.status.problem(name, format!("it cannot be read: {error}"));
        }
        for file in &found.disabled {
            if self.is_due(file) {
                let result = self.delete(file).await;
                self.settle(file, result).await;
            }
        }
        let mut of_name: BTreeMap<String, Vec<&ManifestFile>> = BTreeMap::new();
        for file in &found.wanted {
            of_name.entry(addon_name(&file.path)).or_default().push(file);
        }
        for file in found.wanted.iter().filter(|file| self.is_due(file)).collect::<Vec<_>>() {
            let name = addon_name(&file.path);
            let result = if is_addon_name(&name) {
                self.apply_as(&name, file, &of_name[&name]).await
            } else {
                Err(DeployError::NoName(name))
            };
            self.settle(file, result).await;
        }
        self.forget(found).await;
        self.list(found);
        let (done, all) = (found.wanted.iter().filter(|file| self.is_done(file)).count(), found.wanted.len());
        self.context.status.set(if done == all {
            format!("{all} manifests are applied")
        } else {
            format!("{done} of {all} manifests are applied")
        });
    }

    /// Lists what became of each file.
    fn list(&self, found: &Scan) {
        let listed = |file: &ManifestFile, done: &str| {
            let (state, why) = match self.files.get(&file.path).map(|state| &state.outcome) {
                Some(Outcome::Done) => (done, None),
                Some(Outcome::Failed(retry)) => ("waits", Some(retry.why.clone())),
                None => ("waits", None),
            };
            ObjectStatus { object: file.name.clone(), state: state.to_owned(), why }
        };
        let skipped = found.skipped.iter().map(|path| ObjectStatus {
            object: path.strip_prefix(&self.deploy.folder).unwrap_or(path).display().to_string(),
            state: "skipped".to_owned(),
            why: None,
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
            .chain(left_out)
            .collect();
        // What waits comes first, then by name.
        all.sort_by(|a, b| (a.state != "waits", &a.object).cmp(&(b.state != "waits", &b.object)));
        self.context.status.list(all);
    }

    /// Whether a file has changed, or failed and is to be tried again.
    fn is_due(&self, file: &ManifestFile) -> bool {
        match self.files.get(&file.path) {
            Some(FileState { file: before, outcome }) if before == file => match outcome {
                Outcome::Done => false,
                Outcome::Failed(retry) => retry.at <= Instant::now(),
            },
            _ => true,
        }
    }

    /// Whether some state of the file was applied in this process' life, and nothing has failed since.
    fn is_done(&self, file: &ManifestFile) -> bool {
        self.files.get(&file.path).is_some_and(|state| matches!(state.outcome, Outcome::Done))
    }

    /// Remembers what became of a file, and tells of it.
    async fn settle(&mut self, file: &ManifestFile, result: Result<(), DeployError>) {
        let before = self.files.remove(&file.path).map(|state| state.outcome);
        let outcome = match result {
            Ok(()) => {
                self.context.status.solved(&file.name);
                Outcome::Done
            }
            Err(error) => {
                let why = shortened(error.to_string());
                let (mut backoff, told) = match before {
                    Some(Outcome::Failed(retry)) => (retry.backoff, Some(retry.why)),
                    _ => (Backoff::between(PAUSES.0, PAUSES.1), None),
                };
                if told.as_ref() != Some(&why)
                    && let Some(step) = error.step()
                    && let Ok(Some(addon)) = self.addons.get(&addon_name(&file.path)).await
                {
                    self.addons.tell(&addon, step, Some(&why)).await;
                }
                self.context.status.problem(&file.name, why.clone());
                Outcome::Failed(Box::new(Retry { at: Instant::now() + backoff.advance(), backoff, why }))
            }
        };
        self.files.insert(file.path.clone(), FileState { file: file.clone(), outcome });
    }

    /// Applies it unless another one of the same `name` has the AddOn: that whose objects the AddOn stands for, or else the first.
    async fn apply_as(&mut self, name: &str, file: &ManifestFile, all: &[&ManifestFile]) -> Result<(), DeployError> {
        if all.len() > 1 {
            let source = self.addons.get(name).await?.map(|addon| addon.source);
            let has_it = |file: &&&ManifestFile| source.as_deref() == Some(&*file.path.to_string_lossy());
            let holder = all.iter().find(has_it).unwrap_or(&all[0]);
            if holder.path != file.path {
                return Err(DeployError::Name { name: name.to_owned(), first: holder.name.clone() });
            }
        }
        self.apply(name, file).await
    }

    async fn apply(&mut self, name: &str, file: &ManifestFile) -> Result<(), DeployError> {
        let source = file.path.display().to_string();
        let before = self.addons.get_or_create(name, &source).await?;
        let (checksum, contents) = read(&file.path).await?;
        // A file that was only touched.
        if self.is_done(file) && checksum == before.checksum && source == before.source {
            return Ok(());
        }
        let objects = parse(contents).await?;
        let kinds = kinds_of(&objects);
        let server = file.authoritative.then(|| self.deploy.server.clone());
        // Whatever comes in between: what is about to be applied is found again.
        let all = kinds.iter().chain(before.kinds.iter().filter(|kind| !kinds.contains(kind))).cloned().collect();
        let begun = AddonObject { source, server, kinds: all, ..before.clone() };
        let addon = self.addons.store(&before, &begun).await?;
        self.addons.tell(&addon, Step::Applying, None).await;
        self.cluster.apply(&ObjectSet::of(name), objects, &addon.kinds).await?;
        self.addons.tell(&addon, Step::Applied, None).await;
        let applied = AddonObject { checksum, kinds, ..addon.clone() };
        self.addons.store(&addon, &applied).await?;
        info!(manifest = file.name, "Applied a manifest.");
        Ok(())
    }

    /// Deletes the objects of a disabled file, the file if it is ours, and its AddOn.
    async fn delete(&mut self, file: &ManifestFile) -> Result<(), DeployError> {
        let name = addon_name(&file.path);
        let addon = self.addons.get(&name).await?;
        let objects = match read(&file.path).await {
            Ok((_, contents)) => parse(contents).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let former = addon.iter().flat_map(|addon| addon.kinds.clone());
        let kinds: Vec<_> = kinds_of(&objects).into_iter().chain(former).collect();
        if let Some(chart) = self.cluster.delete_last_chart(&ObjectSet::of(&name), &objects).await? {
            return Err(DeployError::Uninstalling(chart));
        }
        self.cluster.delete(&ObjectSet::of(&name), &kinds).await?;
        self.cluster.delete_unmarked(&objects).await?;
        if file.removable {
            fs::remove_file(&file.path).map_err(DeployError::Delete)?;
        }
        if let Some(addon) = addon {
            self.addons.tell(&addon, Step::Deleting, None).await;
            self.addons.delete(&name).await?;
            info!(manifest = file.name, "Deleted the objects of a disabled add-on.");
        }
        Ok(())
    }

    /// Forgets files that are gone; those of authoritative folders take their objects along.
    async fn forget(&mut self, found: &Scan) {
        let unreadable: Vec<_> = found.unreadable.iter().map(|(name, _)| self.deploy.folder.join(name)).collect();
        let known = found.wanted.iter().chain(&found.disabled).map(|file| &file.path);
        let there: HashSet<&Path> = known.chain(&found.skipped).chain(&unreadable).map(PathBuf::as_path).collect();
        let gone: Vec<_> = self.files.keys().filter(|path| !there.contains(path.as_path())).cloned().collect();
        for path in &gone {
            if let Some(state) = self.files.remove(path) {
                self.context.status.solved(&state.file.name);
            }
        }
        if found.authoritative.is_empty() {
            return;
        }
        let addons = match self.addons.list().await {
            Ok(addons) => addons,
            Err(error) => return debug!(%error, "AddOns cannot be listed yet."),
        };
        for addon in addons {
            let source = Path::new(&addon.source);
            let ours = addon.server.as_deref() == Some(&*self.deploy.server)
                && found.authoritative.iter().any(|folder| source.starts_with(folder));
            if !ours || there.contains(source) {
                continue;
            }
            let object = format!("Addon {}", addon.name);
            match self.cluster.delete(&ObjectSet::of(&addon.name), &addon.kinds).await {
                Ok(()) => {
                    self.addons.tell(&addon, Step::Deleting, None).await;
                    if self.addons.delete(&addon.name).await.is_ok() {
                        info!(manifest = addon.source, "Deleted the objects of a manifest that is gone.");
                        self.context.status.solved(&object);
                    }
                }
                Err(error) => {
                    self.context.status.problem(&object, format!("its objects cannot be deleted: {error}"));
                }
            }
        }
    }

    /// Comes back when a file that failed is to be tried again.
    async fn next_attempt(&self) {
        let next = self.files.values().filter_map(|state| match &state.outcome {
            Outcome::Done => None,
            Outcome::Failed(retry) => Some(retry.at),
        });
        match next.min() {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    }
}

/// What is in a file, with its checksum.
async fn read(path: &Path) -> Result<(String, Vec<u8>), DeployError> {
    let path = path.to_owned();
    spawn_blocking(move || {
        // Whatever has taken the file's place since it was found: a pipe is not waited for, and a device is not read to its end.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if file.metadata()?.len() > LARGEST {
            return Err(DeployError::TooLarge);
        }
        let mut contents = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut contents)?;
        if contents.len() as u64 > LARGEST {
            return Err(DeployError::TooLarge);
        }
        Ok((HEXLOWER.encode(digest::digest(&digest::SHA256, &contents).as_ref()), contents))
    })
    .await?
}

async fn parse(contents: Vec<u8>) -> Result<Vec<ManifestObject>, DeployError> {
    Ok(spawn_blocking(move || manifest::parse(&contents)).await??)
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
