//! Staged manifests in the cluster.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind, discovery::Scope},
    discovery::pinned_kind,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Staged, stage::Manifest};
use crate::backoff::{Backoff, Failure};

/// The owner of what packaged manifests say, in server-side apply.
const FIELD_MANAGER: &str = "k3s";

impl Staged {
    /// Applies and deletes, in order, until all is done or `shutdown` falls. What fails is tried again and does not hold up the rest.
    ///
    /// Applying what is there already writes nothing. Fields that packaged manifests do not name (replicas, say) stay with whoever
    /// set them; those they do name are taken back from anyone, as k3s does.
    pub async fn run(self, client: Client, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.deploy(client)).await;
    }

    async fn deploy(self, client: Client) {
        let mut cluster = Cluster { client, kinds: HashMap::new() };
        let mut todo: Vec<Todo> = self.delete.into_iter().map(|manifest| Todo::new(Aim::Absent, manifest)).collect();
        todo.extend(self.apply.into_iter().map(|manifest| Todo::new(Aim::Present, manifest)));
        let mut backoff = Backoff::default();
        loop {
            let before = todo.iter().map(Todo::left).sum::<usize>();
            for todo in &mut todo {
                todo.advance(&mut cluster).await;
            }
            todo.retain(|todo| !todo.is_done());
            if todo.is_empty() {
                return;
            }
            if todo.iter().map(Todo::left).sum::<usize>() < before {
                backoff = Backoff::default();
            }
            backoff.wait().await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Present,
    Absent,
}

/// What is left of one manifest.
struct Todo {
    aim: Aim,
    manifest: Manifest,
    /// Refusals told already, so that trying again is quiet.
    told: HashSet<String>,
    done: bool,
}

impl Todo {
    fn new(aim: Aim, mut manifest: Manifest) -> Self {
        if aim == Aim::Absent {
            // What came last stands on what came first.
            manifest.objects.reverse();
        }
        Self { aim, manifest, told: HashSet::new(), done: false }
    }

    fn left(&self) -> usize {
        self.manifest.objects.len() + usize::from(!self.done)
    }

    fn is_done(&self) -> bool {
        self.done
    }

    async fn advance(&mut self, cluster: &mut Cluster) {
        let mut failed = Vec::new();
        for object in std::mem::take(&mut self.manifest.objects) {
            let result = match self.aim {
                Aim::Present => cluster.apply(&object).await,
                Aim::Absent => cluster.delete(&object).await,
            };
            if let Err(error) = result {
                self.tell(&object, &error);
                failed.push(object);
            }
        }
        self.manifest.objects = failed;
        if !self.manifest.objects.is_empty() {
            return;
        }
        let path = self.manifest.path.display();
        match self.aim {
            Aim::Present => info!(%path, "Applied a packaged manifest."),
            Aim::Absent => match fs::remove_file(&self.manifest.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return warn!(%path, %error, "The manifest of a disabled add-on could not be deleted; trying again.");
                }
                _ => info!(%path, "Deleted the objects of a disabled add-on."),
            },
        }
        self.done = true;
    }

    fn tell(&mut self, object: &DynamicObject, error: &kube::Error) {
        let kind = object.types.as_ref().map_or("", |types| &types.kind);
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let path = self.manifest.path.display();
        let told = format!("{kind} {name}: {error}");
        if Failure::of(error) == Failure::Refused && self.told.insert(told) {
            warn!(%path, kind, name, %error, "The API refuses an object of a packaged manifest; trying again.");
        } else {
            debug!(%path, kind, name, %error, "An object of a packaged manifest is not in place yet.");
        }
    }
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
