//! Objects of manifests in the cluster: applied, found again, pruned.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, discovery::Scope},
    discovery::pinned_kind,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::{debug, info};

use super::{
    backlog::is_foundation,
    manifest::{ManifestObject, Place},
    object_set::{ObjectSet, is_marked, may_be_pruned},
};
use crate::backoff;

/// The owner of what manifests say, in server-side apply.
const FIELD_MANAGER: &str = "k3s";
/// Where an object goes that names no namespace, as in k3s.
const DEFAULT_NAMESPACE: &str = "default";
/// What Helm makes a release of: group and kind.
const HELM_CHART: (&str, &str) = ("helm.cattle.io", "HelmChart");
/// Objects that are applied at the same time, of one file or of several.
const AT_ONCE: usize = 8;
/// How often an object that changes is looked at again before it is deleted.
const LOOKS: usize = 5;
/// How long the kinds of a definition that was just applied are waited for.
const ESTABLISHED: Duration = Duration::from_secs(15);

/// The API, with what it said of kinds.
pub(super) struct Cluster {
    client: Client,
    kinds: Mutex<BTreeMap<KindKey, Served>>,
    /// Held while an object is applied.
    turns: Semaphore,
}

/// Group, version and kind.
type KindKey = (String, String, String);

#[derive(Debug, Clone)]
struct Served {
    resource: ApiResource,
    scope: Scope,
}

/// An object, whatever the version of its kind.
type Key = (String, String, Option<String>, String);

/// Why an object is not in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The API does not know its kind.
    #[error("the API serves no {kind} of {api_version}: its CustomResourceDefinition is missing")]
    Unserved {
        /// The kind.
        kind: String,
        /// Its group and version.
        api_version: String,
    },
    /// The API does not take so much.
    #[error("it has {size} MiB, and the API takes {limit} MiB at most: divide it")]
    TooLarge {
        /// What it has, in JSON.
        size: String,
        /// What one object may have.
        limit: &'static str,
    },
    /// The API does not take it.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// What is not in place of a manifest, each with where in the file it is and how people call it.
#[derive(Debug, thiserror::Error)]
#[error("{}", sentence(.0))]
pub(super) struct Failures(Vec<(Place, String, ApplyError)>);

fn sentence(failures: &[(Place, String, ApplyError)]) -> String {
    let first = failures.first().map(|(place, object, error)| format!("{place}: {object}: {}", told(error)));
    let more = match failures.len().saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    first.unwrap_or_default() + &more
}

/// The API's own message, without the rest of what it sends.
fn told(error: &ApplyError) -> String {
    match error {
        ApplyError::Api(kube::Error::Api(status)) if !status.message.is_empty() => status.message.clone(),
        error => error.to_string(),
    }
}

impl Cluster {
    pub(super) fn new(client: Client) -> Self {
        Self { client, kinds: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }

    /// Brings what `set` holds to what the manifest says: applies each object, and deletes those that are not in it any more, of its kinds
    /// and of `former` ones. One that fails holds up no other; but then nothing is deleted.
    pub(super) async fn apply(
        &self,
        set: &ObjectSet,
        objects: Vec<ManifestObject>,
        former: &[GroupVersionKind],
    ) -> Result<(), Failures> {
        let kinds = kinds_of(&objects).into_iter().chain(former.iter().cloned()).collect::<Vec<_>>();
        let present = match self.present(set, &kinds).await {
            Ok(present) => present,
            Err(error) => {
                return Err(Failures(vec![(Place { document: 1, line: 1 }, "its objects".into(), error.into())]));
            }
        };
        let mut wanted = BTreeSet::new();
        let mut failures = Vec::new();
        let mut unserved = Vec::new();
        // What others stand on goes one by one, and what comes after it waits.
        let objects = in_order(objects);
        let at_once = if names_one_twice(&objects) { 1 } else { AT_ONCE };
        for run in objects.chunk_by(|one, next| !is_foundation(one) && !is_foundation(next)) {
            let present = &present;
            let applying = run.iter().cloned().map(|found| async move {
                let result = self.apply_one(set, found.object.clone(), present).await;
                (found, result)
            });
            let mut results = stream::iter(applying).buffered(at_once);
            while let Some((found, result)) = results.next().await {
                match result {
                    Ok(key) => drop(wanted.insert(key)),
                    Err(ApplyError::Unserved { .. }) => unserved.push(found),
                    Err(error) => failures.push((found.place, title(&found.object), error)),
                }
            }
        }
        let mut backoff = backoff::of_api();
        let waiting = tokio::time::Instant::now();
        for ManifestObject { object, place } in unserved {
            let result = loop {
                let result = self.apply_one(set, object.clone(), &present).await;
                let may_come = matches!(result, Err(ApplyError::Unserved { .. })) && defines(&wanted, &object);
                if !may_come || waiting.elapsed() > ESTABLISHED {
                    break result;
                }
                backoff.wait().await;
            };
            match result {
                Ok(key) => drop(wanted.insert(key)),
                Err(error) => failures.push((place, title(&object), error)),
            }
        }
        if !failures.is_empty() {
            return Err(Failures(failures));
        }
        self.prune(set, present, &wanted).await.map_err(|error| {
            Failures(vec![(Place { document: 1, line: 1 }, "what is not in the file any more".into(), error.into())])
        })
    }

    /// Applies definitions that are no add-on's.
    pub(super) async fn define(&self, definitions: &[ManifestObject]) -> Result<(), ApplyError> {
        for ManifestObject { object, .. } in definitions {
            let kind = kind_of(object);
            let served = self.served(&kind).await?.ok_or_else(|| unserved(&kind))?;
            let api = self.api(&served, None);
            api.patch(&object.name_any(), &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await?;
        }
        Ok(())
    }

    /// Deletes all that `set` holds of these kinds.
    pub(super) async fn delete(&self, set: &ObjectSet, kinds: &[GroupVersionKind]) -> kube::Result<()> {
        let present = self.present(set, kinds).await?;
        self.prune(set, present, &BTreeSet::new()).await
    }

    /// Deletes the last HelmChart of a file that `set` still holds, and tells what it is called: the ones before go when it has gone. Helm
    /// uninstalls nothing that is of a kind which went with another chart.
    pub(super) async fn delete_last_chart(
        &self,
        set: &ObjectSet,
        objects: &[ManifestObject],
    ) -> kube::Result<Option<String>> {
        for ManifestObject { object, .. } in objects.iter().rev() {
            let kind = kind_of(object);
            if (&*kind.group, &*kind.kind) != HELM_CHART {
                continue;
            }
            let Some(served) = self.served(&kind).await? else { continue };
            let api = self.api(&served, object.metadata.namespace.as_deref());
            let Some(found) = api.get_metadata_opt(&object.name_any()).await? else { continue };
            if !set.holds(&found.metadata) || !may_be_pruned(&found.metadata) {
                continue;
            }
            if found.metadata.deletion_timestamp.is_none() {
                delete(&api, &found.metadata).await?;
            }
            return Ok(Some(title(object)));
        }
        Ok(None)
    }

    /// Deletes those of `objects` that an earlier release applied, which marked nothing.
    pub(super) async fn delete_unmarked(&self, objects: &[ManifestObject]) -> kube::Result<()> {
        // What came last in a file stands on what came first.
        for ManifestObject { object, .. } in objects.iter().rev() {
            let Some(served) = self.served(&kind_of(object)).await? else { continue };
            let api = self.api(&served, object.metadata.namespace.as_deref());
            let name = object.name_any();
            let Some(found) = api.get_metadata_opt(&name).await? else { continue };
            let by_us = found.managed_fields().iter().any(|entry| {
                entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
            });
            if by_us && !is_marked(&found.metadata) {
                ignore_missing(api.delete(&name, &DeleteParams::background()).await.map(drop))?;
            }
        }
        Ok(())
    }

    async fn apply_one(
        &self,
        set: &ObjectSet,
        mut object: DynamicObject,
        present: &BTreeMap<Key, Present>,
    ) -> Result<Key, ApplyError> {
        let kind = kind_of(&object);
        let _turn = self.turns.acquire().await;
        let served = self.served(&kind).await?.ok_or_else(|| unserved(&kind))?;
        let namespace = match served.scope {
            Scope::Cluster => None,
            Scope::Namespaced => Some(object.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
        };
        object.metadata.namespace.clone_from(&namespace);
        // What the API itself writes is no part of what is wanted.
        object.metadata.managed_fields = None;
        object.metadata.creation_timestamp = None;
        object.metadata.resource_version = None;
        object.metadata.uid = None;
        if let Some(data) = object.data.as_object_mut() {
            data.remove("status");
        }
        set.mark(&mut object);
        let name = object.name_any();
        let key = (kind.group, kind.kind, namespace.clone(), name.clone());
        let api = self.api(&served, namespace.as_deref());
        if let Some(found) = present.get(&key) {
            take_over(&api, &found.metadata).await?;
        }
        let patched = api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object)).await;
        match patched.as_ref().err().and_then(limit_passed) {
            Some(limit) => {
                let tenths = serde_json::to_vec(&object).map_or(0, |json| json.len() * 10).div_ceil(1 << 20);
                Err(ApplyError::TooLarge { size: format!("{}.{}", tenths / 10, tenths % 10), limit })
            }
            None => Ok(patched.map(|_| key)?),
        }
    }

    /// What there is of `set`, of these kinds.
    async fn present(&self, set: &ObjectSet, kinds: &[GroupVersionKind]) -> kube::Result<BTreeMap<Key, Present>> {
        let mut present = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for kind in kinds {
            if !seen.insert((kind.group.clone(), kind.version.clone(), kind.kind.clone())) {
                continue;
            }
            let Some(served) = self.served(kind).await? else { continue };
            let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &served.resource);
            let listed = match all.list_metadata(&ListParams::default().labels(&set.selector())).await {
                Ok(listed) => listed,
                // The kind has gone since it was asked for.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.kinds().remove(&(kind.group.clone(), kind.version.clone(), kind.kind.clone()));
                    continue;
                }
                // Some resources cannot be listed: a review, say.
                Err(kube::Error::Api(status)) if status.code == 405 => continue,
                Err(error) => return Err(error),
            };
            for object in listed {
                let key = (kind.group.clone(), kind.kind.clone(), object.namespace(), object.name_any());
                present.insert(key, Present { served: served.clone(), metadata: object.metadata });
            }
        }
        Ok(present)
    }

    /// Deletes what is `present` of `set` and not `wanted`. What another manifest takes over meanwhile stays.
    async fn prune(
        &self,
        set: &ObjectSet,
        present: BTreeMap<Key, Present>,
        wanted: &BTreeSet<Key>,
    ) -> kube::Result<()> {
        for (key, Present { served, mut metadata }) in present.into_iter().rev() {
            let (_, kind, namespace, name) = &key;
            let api = self.api(&served, namespace.as_deref());
            for look in 1.. {
                if wanted.contains(&key) || !set.holds(&metadata) || !may_be_pruned(&metadata) {
                    break;
                }
                match delete(&api, &metadata).await {
                    Err(kube::Error::Api(status)) if status.code == 409 && look < LOOKS => {
                        let Some(found) = api.get_metadata_opt(name).await? else { break };
                        metadata = found.metadata;
                    }
                    Err(error) => return Err(error),
                    Ok(()) => {
                        info!(kind, namespace, name, "Deleted an object that no manifest holds any more.");
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn served(&self, kind: &GroupVersionKind) -> kube::Result<Option<Served>> {
        let key = (kind.group.clone(), kind.version.clone(), kind.kind.clone());
        if let Some(known) = self.kinds().get(&key).cloned() {
            return Ok(Some(known));
        }
        match pinned_kind(&self.client, kind).await {
            Ok((resource, capabilities)) => {
                let served = Served { resource, scope: capabilities.scope };
                self.kinds().insert(key, served.clone());
                Ok(Some(served))
            }
            Err(kube::Error::Discovery(error)) => {
                debug!(%error, kind = kind.kind, "The API does not serve a kind.");
                Ok(None)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<KindKey, Served>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, served: &Served, namespace: Option<&str>) -> Api<DynamicObject> {
        match (&served.scope, namespace) {
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), &served.resource),
            (Scope::Namespaced, namespace) => {
                Api::namespaced_with(self.client.clone(), namespace.unwrap_or(DEFAULT_NAMESPACE), &served.resource)
            }
        }
    }
}

/// An object that there is.
struct Present {
    served: Served,
    metadata: ObjectMeta,
}

/// How many MiB the API takes, if it says that an object has more, without which: that of its requests, or etcd's own.
fn limit_passed(error: &kube::Error) -> Option<&'static str> {
    match error {
        kube::Error::Api(status) if status.code == 413 => Some("3"),
        kube::Error::Api(status)
            // The store's own words, and those of kube-apiserver's client where it sends no more.
            if ["request is too large", "message larger than max"].iter().any(|words| status.message.contains(words)) =>
        {
            Some("1.5")
        }
        _ => None,
    }
}

/// Deletes the object that was found as it was, and not another of its name.
async fn delete(api: &Api<DynamicObject>, found: &ObjectMeta) -> kube::Result<()> {
    let only_this = Preconditions { uid: found.uid.clone(), resource_version: found.resource_version.clone() };
    let params = DeleteParams::background().preconditions(only_this);
    ignore_missing(api.delete(found.name.as_deref().unwrap_or_default(), &params).await.map(drop))
}

/// Makes fields that k3s wrote ours, so that those which leave a manifest leave the object: k3s updates objects, we apply them, and what
/// another owns too is nobody's to remove.
async fn take_over(api: &Api<DynamicObject>, found: &ObjectMeta) -> kube::Result<()> {
    let entries = found.managed_fields.as_deref().unwrap_or_default();
    let is_ours = |manager: Option<&str>| manager == Some(FIELD_MANAGER);
    if entries.iter().any(|entry| is_ours(entry.manager.as_deref()) && entry.operation.as_deref() == Some("Apply")) {
        return Ok(());
    }
    let mut entries = entries.to_vec();
    let of_k3s = entries.iter_mut().find(|entry| {
        let manager = entry.manager.as_deref();
        let by_k3s = is_ours(manager) || manager.is_some_and(|manager| manager.starts_with("deploy@"));
        by_k3s && entry.operation.as_deref() == Some("Update") && entry.subresource.as_deref().is_none_or(str::is_empty)
    });
    let Some(entry) = of_k3s else { return Ok(()) };
    entry.manager = Some(FIELD_MANAGER.into());
    entry.operation = Some("Apply".into());
    let patch = json!({"metadata": {"resourceVersion": found.resource_version, "managedFields": entries}});
    let name = found.name.as_deref().unwrap_or_default();
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// What others stand on comes first: namespaces and definitions, then the rest as it is in the file.
fn in_order(mut objects: Vec<ManifestObject>) -> Vec<ManifestObject> {
    objects.sort_by_key(|found| {
        let kind = kind_of(&found.object);
        !matches!((&*kind.group, &*kind.kind), ("", "Namespace") | ("apiextensions.k8s.io", "CustomResourceDefinition"))
    });
    objects
}

/// Whether an object comes twice: the last one counts.
fn names_one_twice(objects: &[ManifestObject]) -> bool {
    let mut seen = HashSet::new();
    !objects.iter().all(|found| {
        let (kind, metadata) = (kind_of(&found.object), &found.object.metadata);
        seen.insert((kind.group, kind.kind, metadata.namespace.as_deref(), metadata.name.as_deref()))
    })
}

/// Whether a definition among `applied` may make the API serve `object`'s kind.
fn defines(applied: &BTreeSet<Key>, object: &DynamicObject) -> bool {
    let group = kind_of(object).group;
    applied.iter().any(|(_, kind, _, name)| kind == "CustomResourceDefinition" && name.ends_with(&format!(".{group}")))
}

/// The kinds of objects, each once, in the order of their first.
pub(super) fn kinds_of(objects: &[ManifestObject]) -> Vec<GroupVersionKind> {
    let mut kinds: Vec<GroupVersionKind> = Vec::new();
    for kind in objects.iter().map(|found| kind_of(&found.object)) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn kind_of(object: &DynamicObject) -> GroupVersionKind {
    // Parsing a manifest leaves no object without its type.
    let types = object.types.clone().unwrap_or_default();
    let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
    GroupVersionKind::gvk(group, version, &types.kind)
}

/// As people call it.
fn title(object: &DynamicObject) -> String {
    let namespace = object.namespace().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{} {namespace}{}", kind_of(object).kind, object.name_any())
}

fn unserved(kind: &GroupVersionKind) -> ApplyError {
    ApplyError::Unserved { kind: kind.kind.clone(), api_version: kind.api_version() }
}

fn ignore_missing(deleted: kube::Result<()>) -> kube::Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted,
    }
}
