//! Staged manifests in the cluster.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
};

use k3s_supervise::TaskError;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind, discovery::Scope},
    discovery::pinned_kind,
};
use tracing::{debug, info, warn};

use super::{
    Addons,
    packaged::{PACKAGED, Packaged},
    stage::Task,
};
use crate::{
    Context, Controller,
    backoff::{Backoff, Failure},
};

/// The owner of what packaged manifests say, in server-side apply.
const FIELD_MANAGER: &str = "k3s";

/// Stages and applies every packaged manifest, or deletes it, in order, until all is done. What fails is tried again and does not hold
/// up the rest.
///
/// Applying what is there already writes nothing. Fields that packaged manifests do not name (replicas, say) stay with whoever set them;
/// those they do name are taken back from anyone, as k3s does.
impl Controller for Addons {
    const NAME: &'static str = "addons";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        self.deploy(context.client).await;
        Ok(())
    }
}

impl Addons {
    async fn deploy(&self, client: Client) {
        let mut cluster = Cluster { client, kinds: HashMap::new() };
        let mut deployments: Vec<_> = PACKAGED.iter().map(|packaged| Deployment::new(self, packaged)).collect();
        let mut backoff = Backoff::default();
        loop {
            let before = deployments.iter().map(Deployment::left).sum::<usize>();
            for deployment in &mut deployments {
                deployment.advance(&mut cluster).await;
            }
            deployments.retain(|deployment| deployment.left() > 0);
            if deployments.is_empty() {
                return;
            }
            if deployments.iter().map(Deployment::left).sum::<usize>() < before {
                backoff = Backoff::default();
            }
            backoff.wait().await;
        }
    }
}

/// One manifest on its way: staged, then object by object.
struct Deployment<'a> {
    addons: &'a Addons,
    packaged: &'static Packaged,
    /// `None` until it is staged.
    task: Option<Task>,
    /// Failures told already, so that trying again is quiet.
    told: HashSet<String>,
}

impl<'a> Deployment<'a> {
    fn new(addons: &'a Addons, packaged: &'static Packaged) -> Self {
        Self { addons, packaged, task: None, told: HashSet::new() }
    }

    /// How much there is to do; more than the objects while the file is to do too.
    fn left(&self) -> usize {
        match &self.task {
            None => usize::from(u16::MAX),
            Some(Task::Nothing) => 0,
            Some(Task::Apply(objects) | Task::Delete(objects)) => objects.len() + 1,
        }
    }

    async fn advance(&mut self, cluster: &mut Cluster) {
        let task = match self.task.take().map_or_else(|| self.addons.stage(self.packaged), Ok) {
            Ok(task) => task,
            Err(error) => {
                let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                if self.told.insert(format!("{error}: {why}")) {
                    warn!(%error, why, "A packaged manifest could not be staged; trying again.");
                }
                return;
            }
        };
        let path = self.addons.path(self.packaged);
        self.task = Some(match task {
            Task::Nothing => Task::Nothing,
            Task::Apply(objects) => {
                let left = self.each(cluster, Work::Apply, objects).await;
                if left.is_empty() {
                    info!(path = %path.display(), "Applied a packaged manifest.");
                    Task::Nothing
                } else {
                    Task::Apply(left)
                }
            }
            Task::Delete(objects) => {
                let left = self.each(cluster, Work::Delete, objects).await;
                if left.is_empty() && self.forget(&path) { Task::Nothing } else { Task::Delete(left) }
            }
        });
    }

    /// Deletes the file, and with it the memory of having applied; says whether it is gone.
    fn forget(&mut self, path: &Path) -> bool {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                if self.told.insert(error.to_string()) {
                    warn!(path = %path.display(), %error, "The manifest of a disabled add-on could not be deleted; trying again.");
                }
                false
            }
            _ => {
                info!(path = %path.display(), "Deleted the objects of a disabled add-on.");
                true
            }
        }
    }

    /// Does `work` with each object and returns those it failed with.
    async fn each(&mut self, cluster: &mut Cluster, work: Work, objects: Vec<DynamicObject>) -> Vec<DynamicObject> {
        let mut failed = Vec::new();
        for object in objects {
            let done = match work {
                Work::Apply => cluster.apply(&object).await,
                Work::Delete => cluster.delete(&object).await,
            };
            if let Err(error) = done {
                self.tell(&object, &error);
                failed.push(object);
            }
        }
        failed
    }

    fn tell(&mut self, object: &DynamicObject, error: &kube::Error) {
        let kind = object.types.as_ref().map_or("", |types| &types.kind);
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let manifest = self.packaged.path;
        if Failure::of(error) == Failure::Refused && self.told.insert(format!("{kind} {name}: {error}")) {
            warn!(manifest, kind, name, %error, "The API refuses an object of a packaged manifest; trying again.");
        } else {
            debug!(manifest, kind, name, %error, "An object of a packaged manifest is not in place yet.");
        }
    }
}

/// What is done with the objects of a manifest.
#[derive(Debug, Clone, Copy)]
enum Work {
    Apply,
    Delete,
}

/// The API, with what it said of kinds.
struct Cluster {
    client: Client,
    kinds: HashMap<GroupVersionKind, (ApiResource, Scope)>,
}

impl Cluster {
    async fn apply(&mut self, object: &DynamicObject) -> kube::Result<()> {
        let (api, name) = self.api(object).await?;
        api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await?;
        Ok(())
    }

    /// What is not there, or of a kind that is not there, is deleted.
    async fn delete(&mut self, object: &DynamicObject) -> kube::Result<()> {
        let deleted = match self.api(object).await {
            Ok((api, name)) => api.delete(name, &DeleteParams::background()).await.map(drop),
            Err(error) => Err(error),
        };
        match deleted {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(kube::Error::Discovery(_)) => Ok(()),
            deleted => deleted,
        }
    }

    async fn api<'a>(&mut self, object: &'a DynamicObject) -> kube::Result<(Api<DynamicObject>, &'a str)> {
        let types = object.types.as_ref().expect("parsing a manifest leaves no object without its type");
        let name = object.metadata.name.as_deref().expect("parsing a manifest leaves no object without a name");
        let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
        let kind = GroupVersionKind::gvk(group, version, &types.kind);
        let (resource, scope) = match self.kinds.get(&kind) {
            Some(known) => known.clone(),
            None => {
                let (resource, capabilities) = pinned_kind(&self.client, &kind).await?;
                self.kinds.entry(kind).insert_entry((resource, capabilities.scope)).get().clone()
            }
        };
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        let api = match scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        Ok((api, name))
    }
}
