//! Images that need no registry: those that come with the package, and those the user put beside them.
//!
//! ```text
//! packaged archives ─► the user's archives and lists ─► kubelet starts ─► what lists name is pulled ─► the folder is followed
//! ```

mod import_record;

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use k3s_components::Paths;
use k3s_oci::{Error as ImportError, ImageName, Importer};
use k3s_supervise::{Backoff, Gate, Supervisor};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    changes::{Changes, Fingerprint, fingerprint},
    cri,
    error::chain,
};
use import_record::ImportRecord;

/// In the status.
const WARNING: &str = "images";
const NOT_PULLED: &str = "listed-images";
/// Archives are large: a change is looked at after so long, as in k3s.
const SETTLE: Duration = Duration::from_secs(2);
/// Between attempts to pull what a list names, at first and at most.
const PULL_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The node's images.
#[derive(Debug)]
pub(crate) struct Images {
    /// Those that the node itself needs.
    pub(crate) packaged: Option<PathBuf>,
    /// The user's: `<data>/agent/images`.
    pub(crate) folder: PathBuf,
    /// Registries as whose images imported ones are known too.
    pub(crate) registries: Vec<String>,
    pub(crate) socket: PathBuf,
}

/// What was imported, and what is still to do.
#[derive(Default)]
struct Progress {
    /// Sources as they were when they were imported.
    imported: HashMap<PathBuf, Fingerprint>,
    /// By source, so that a failure is over when its source works or goes.
    failed: HashMap<PathBuf, String>,
    wanted: BTreeSet<ImageName>,
}

impl Images {
    pub(crate) fn of(packaged: Option<PathBuf>, registries: Vec<String>, paths: &Paths) -> Self {
        Self { packaged, folder: paths.images(), registries, socket: paths.containerd_socket() }
    }

    /// Imports what containerd does not have yet, lets kubelet start, and follows the folder from then on. An archive that cannot be
    /// imported is told in the status and stops nothing: its image may be in containerd already, or be pulled.
    pub(crate) async fn run(&self, supervisor: &Supervisor, gate: Option<&Gate>) {
        let waiting = |what: &str| gate.into_iter().for_each(|gate| gate.waiting(what));
        waiting("containerd");
        if supervisor.ready("containerd").await.is_err() {
            return;
        }
        gate.into_iter().for_each(Gate::begin);
        waiting("importing images");
        let mut changes = Changes::new(SETTLE);
        let mut progress = Progress::default();
        let mut record = ImportRecord::open(&self.folder);
        // Those in the folder are found to be changed once more, should they change meanwhile.
        changes.follow(folders(&self.folder).iter().map(PathBuf::as_path));
        if let Some(packaged) = &self.packaged {
            self.import(packaged, None, &mut progress).await;
        }
        self.import(&self.folder, record.as_mut(), &mut progress).await;
        progress.tell(supervisor);
        gate.into_iter().for_each(Gate::open);

        let mut backoff = Backoff::between(PULL_PAUSES.0, PULL_PAUSES.1);
        let mut pull_at = Instant::now();
        loop {
            let is_pull_due = !progress.wanted.is_empty();
            tokio::select! {
                () = changes.next() => {
                    changes.follow(folders(&self.folder).iter().map(PathBuf::as_path));
                    let before = progress.wanted.len();
                    self.import(&self.folder, record.as_mut(), &mut progress).await;
                    progress.tell(supervisor);
                    if progress.wanted.len() > before {
                        pull_at = Instant::now();
                    }
                }
                () = sleep_until(pull_at), if is_pull_due => {
                    match self.pull(&mut progress.wanted).await {
                        Ok(()) => {
                            backoff.begin_anew();
                            supervisor.clear(NOT_PULLED);
                        }
                        Err(why) => {
                            supervisor.warn(NOT_PULLED, format!("{} of the images that lists name are not pulled yet: {why}.", progress.wanted.len()));
                            pull_at = Instant::now() + backoff.advance();
                        }
                    }
                }
            }
        }
    }

    /// Imports those sources in `folder` that are new, or others than before.
    async fn import(&self, folder: &Path, mut record: Option<&mut ImportRecord>, progress: &mut Progress) {
        let sources = match k3s_oci::sources(folder) {
            Ok(sources) => sources,
            Err(error) => return progress.fail(folder, &error),
        };
        progress.forget_gone(folder, &sources);
        let is_new = |path: &PathBuf| fingerprint(path).is_some_and(|now| progress.imported.get(path) != Some(&now));
        let (mut new, mut skipped) = (Vec::new(), 0);
        for path in sources.iter().filter(|path| is_new(path)) {
            match &record {
                Some(record) if record.has(path) => skipped += 1,
                _ => new.push(path.clone()),
            }
        }
        progress.imported.extend(sources.iter().filter_map(|path| Some((path.clone(), fingerprint(path)?))));
        if skipped > 0 {
            info!(skipped, "Archives that are as they were at an earlier start are not imported again.");
        }
        if !new.is_empty() {
            match Importer::connect(&self.socket).await {
                Ok(importer) => {
                    let importer = importer.with_registries(self.registries.clone());
                    for path in &new {
                        import_one(&importer, path, record.as_deref_mut(), progress).await;
                    }
                }
                Err(error) => {
                    // Looked at again when something changes, or after a while.
                    progress.imported.retain(|path, _| !new.contains(path));
                    progress.fail(folder, &error);
                }
            }
        }
        if let Some(record) = record
            && let Err(error) = record.save(&sources)
        {
            warn!("{}", chain(&error));
        }
    }

    /// Pulls and pins what is `wanted`, one after the other: pods may want the network too.
    async fn pull(&self, wanted: &mut BTreeSet<ImageName>) -> Result<(), String> {
        let runtime = cri::Runtime::connect(&self.socket).await.map_err(|error| chain(&error))?;
        let importer = Importer::connect(&self.socket).await.map_err(|error| chain(&error))?;
        let mut first = None;
        for name in wanted.clone() {
            let pulled = match runtime.pull(name.as_str()).await {
                Ok(()) => importer.pin(&name).await.map(drop).map_err(|error| chain(&error)),
                Err(status) => Err(format!("{name}: {}", status.message())),
            };
            match pulled {
                Ok(()) => {
                    info!(image = name.as_str(), "Pulled an image that a list names.");
                    wanted.remove(&name);
                }
                Err(why) => first = first.or(Some(why)),
            }
        }
        first.map_or(Ok(()), Err)
    }
}

async fn import_one(importer: &Importer, path: &PathBuf, record: Option<&mut ImportRecord>, progress: &mut Progress) {
    let report = importer.import(std::slice::from_ref(path)).await;
    let (imported, present) = (report.imported.len(), report.present.len());
    info!(source = %path.display(), imported, present, "Images are in place.");
    progress.wanted.extend(report.wanted);
    match report.failed.first() {
        Some(error) => progress.fail(path, error),
        None => {
            progress.failed.remove(path);
            if let Some(record) = record {
                record.add(path);
            }
        }
    }
}

impl Progress {
    fn fail(&mut self, path: &Path, error: &ImportError) {
        let told = chain(error);
        warn!("{told}");
        self.failed.insert(path.to_owned(), told);
    }

    fn forget_gone(&mut self, folder: &Path, sources: &[PathBuf]) {
        let is_there = |path: &Path| !path.starts_with(folder) || sources.iter().any(|source| source == path);
        self.imported.retain(|path, _| is_there(path));
        self.failed.retain(|path, _| path != folder && is_there(path));
    }

    fn tell(&self, supervisor: &Supervisor) {
        match self.failed.values().min() {
            Some(first) => supervisor
                .warn(WARNING, format!("{} of the image archives cannot be used: {first}.", self.failed.len())),
            None => supervisor.clear(WARNING),
        }
    }
}

/// `folder` and the folders in it, whose changes count too.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let inner = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    [folder.to_owned()].into_iter().chain(inner).collect()
}
