//! One manifest on its way into the cluster, or out of it.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use k3s_supervise::TaskError;
use kube::Client;
use nix::libc;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{debug, info};

use super::{
    Deploy,
    addon::{AddonObject, Addons, DEFINITIONS, Step},
    cluster::{Cluster, kinds_of},
    folder::{ManifestFile, addon_name, is_addon_name},
    manifest::{self, ManifestObject},
    object_set::ObjectSet,
};
use crate::backoff;

/// Larger than any manifest that people keep, and small enough to be read by a small device.
const LARGEST: u64 = 16 << 20;
/// Of what is told of a file, in characters: parsers and the API cite what they were given.
const LONGEST: usize = 600;

/// Brings manifests into the cluster, any number of them at once.
pub(super) struct Applier<'a> {
    deploy: &'a Deploy,
    addons: Addons,
    cluster: Cluster,
}

/// What is in a file.
#[derive(Debug)]
pub(super) struct Contents {
    checksum: String,
    pub(super) objects: Vec<ManifestObject>,
}

/// What is to be done with a file, with what is known of it.
#[derive(Debug)]
pub(super) enum Job {
    /// It belongs into the cluster.
    Apply {
        file: ManifestFile,
        contents: Result<Contents, DeployError>,
        /// All files of its add-on name, by path, if there are others.
        rivals: Vec<ManifestFile>,
        /// Whether some state of it was applied in this process' life, and nothing has failed since.
        is_done: bool,
        /// What was told of it last.
        told: Option<String>,
    },
    /// It is disabled.
    Delete { file: ManifestFile },
}

/// Why a file is not in the cluster.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeployError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it has {} MiB, and {} MiB at most are read: divide it into several files", .0.div_ceil(1 << 20), LARGEST >> 20)]
    TooLarge(u64),
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
            Self::Read(_) | Self::TooLarge(_) => Some(Step::ReadFailed),
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

impl<'a> Applier<'a> {
    pub(super) fn new(deploy: &'a Deploy, client: Client) -> Self {
        Self { deploy, addons: Addons::new(client.clone()), cluster: Cluster::new(client) }
    }

    /// Makes the API know AddOns and Helm charts.
    pub(super) async fn define(&self) -> Result<(), TaskError> {
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

    /// Does it, or tells why not.
    pub(super) async fn run(&self, job: Job) -> (ManifestFile, Result<(), String>) {
        match job {
            Job::Apply { file, contents, rivals, is_done, told } => {
                let result = self.apply_as(&file, contents, &rivals, is_done).await;
                let result = match result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(self.failed(&file, &error, told.as_deref()).await),
                };
                (file, result)
            }
            Job::Delete { file } => {
                let result = self.delete(&file).await.map_err(|error| shortened(error.to_string()));
                (file, result)
            }
        }
    }

    /// Tells why `file` is not applied, unless that was `told` already.
    async fn failed(&self, file: &ManifestFile, error: &DeployError, told: Option<&str>) -> String {
        let why = shortened(error.to_string());
        if told != Some(&why)
            && let Some(step) = error.step()
            && let Ok(addon) = self.addon_of(file).await
        {
            self.addons.tell(&addon, step, Some(&why)).await;
        }
        why
    }

    /// The AddOn of a file, made if there is none: events need one to be told on.
    async fn addon_of(&self, file: &ManifestFile) -> kube::Result<AddonObject> {
        let name = addon_name(&file.path);
        match self.addons.get(&name).await? {
            Some(found) => Ok(found),
            None => self.addons.create(&AddonObject::new(&name, file.path.display().to_string())).await,
        }
    }

    /// Applies it unless another one of the same name has the AddOn: that whose objects the AddOn stands for, or else the first.
    async fn apply_as(
        &self,
        file: &ManifestFile,
        contents: Result<Contents, DeployError>,
        rivals: &[ManifestFile],
        is_done: bool,
    ) -> Result<(), DeployError> {
        let name = addon_name(&file.path);
        if !is_addon_name(&name) {
            return Err(DeployError::NoName(name));
        }
        let found = self.addons.get(&name).await?;
        let source = found.as_ref().map(|addon| &*addon.source);
        let has_it = |file: &&ManifestFile| source == Some(&*file.path.to_string_lossy());
        let holder = rivals.iter().find(has_it).or(rivals.first());
        if let Some(holder) = holder.filter(|holder| holder.path != file.path) {
            return Err(DeployError::Name { name, first: holder.name.clone() });
        }
        self.apply(file, found, contents?, is_done).await
    }

    async fn apply(
        &self,
        file: &ManifestFile,
        found: Option<AddonObject>,
        contents: Contents,
        is_done: bool,
    ) -> Result<(), DeployError> {
        let Contents { checksum, objects } = contents;
        let (name, source) = (addon_name(&file.path), file.path.display().to_string());
        let before = found.clone().unwrap_or_else(|| AddonObject::new(&name, source.clone()));
        let is_known = checksum == before.checksum && source == before.source;
        // A file that was only touched.
        if is_done && is_known {
            return Ok(());
        }
        let kinds = kinds_of(&objects);
        let server = file.authoritative.then(|| self.deploy.server.clone());
        // Whatever comes in between: what is about to be applied is found again.
        let all = kinds.iter().chain(before.kinds.iter().filter(|kind| !kinds.contains(kind))).cloned().collect();
        let begun = AddonObject { source, server, kinds: all, ..before.clone() };
        let addon = match found {
            Some(_) => self.addons.store(&before, &begun).await?,
            None => self.addons.create(&begun).await?,
        };
        // What was applied already is at a start once more, of which there is no news.
        let tell = async |step| {
            if !is_known {
                self.addons.tell(&addon, step, None).await;
            }
        };
        let set = ObjectSet::of(&name);
        let ((), applied) = tokio::join!(tell(Step::Applying), self.cluster.apply(&set, objects, &addon.kinds));
        applied?;
        let applied = AddonObject { checksum, kinds, ..addon.clone() };
        let ((), stored) = tokio::join!(tell(Step::Applied), self.addons.store(&addon, &applied));
        stored?;
        info!(manifest = file.name, "Applied a manifest.");
        Ok(())
    }

    /// Deletes the objects of a disabled file, the file if it is ours, and its AddOn.
    async fn delete(&self, file: &ManifestFile) -> Result<(), DeployError> {
        let name = addon_name(&file.path);
        let addon = self.addons.get(&name).await?;
        let objects = read(&file.path).await.map(|contents| contents.objects).unwrap_or_default();
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

    /// Deletes what authoritative folders have brought and hold no more: nothing of it is `there`. Each AddOn that is left is told of.
    pub(super) async fn delete_gone(
        &self,
        authoritative: &[PathBuf],
        there: &HashSet<&Path>,
        mut told: impl FnMut(&str, Result<(), kube::Error>),
    ) {
        let addons = match self.addons.list().await {
            Ok(addons) => addons,
            Err(error) => return debug!(%error, "AddOns cannot be listed yet."),
        };
        for addon in addons {
            let source = Path::new(&addon.source);
            let ours = addon.server.as_deref() == Some(&*self.deploy.server)
                && authoritative.iter().any(|folder| source.starts_with(folder));
            if !ours || there.contains(source) {
                continue;
            }
            let deleted = async {
                self.cluster.delete(&ObjectSet::of(&addon.name), &addon.kinds).await?;
                self.addons.tell(&addon, Step::Deleting, None).await;
                self.addons.delete(&addon.name).await?;
                info!(manifest = addon.source, "Deleted the objects of a manifest that is gone.");
                Ok(())
            };
            told(&format!("Addon {}", addon.name), deleted.await);
        }
    }
}

/// Reads a file.
pub(super) async fn read(path: &Path) -> Result<Contents, DeployError> {
    let path = path.to_owned();
    spawn_blocking(move || {
        // Whatever has taken the file's place since it was found: a pipe is not waited for, and a device is not read to its end.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let size = file.metadata()?.len();
        if size > LARGEST {
            return Err(DeployError::TooLarge(size));
        }
        let mut contents = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut contents)?;
        if contents.len() as u64 > LARGEST {
            return Err(DeployError::TooLarge(contents.len() as u64));
        }
        let checksum = HEXLOWER.encode(digest::digest(&digest::SHA256, &contents).as_ref());
        Ok(Contents { checksum, objects: manifest::parse(&contents)? })
    })
    .await?
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
