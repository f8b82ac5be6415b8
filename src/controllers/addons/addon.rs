//! The AddOn of a manifest: the object by which users see what became of a file, and events on it.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::events::{Event, EventType},
};
use serde_json::json;
use tracing::debug;

use super::{Deploy, object_set::NAMESPACE};
use crate::{Controller as _, controller::recorder};

/// What was applied from the file when it was last applied whole: k3s' own annotation.
const GVKS: &str = "addon.k3s.cattle.io/gvks";
/// The server whose authoritative folder the file is in.
const SERVER: &str = "addon.k3s.io/authoritative";

/// Characters of an event's note that the API takes.
const LONGEST_NOTE: usize = 1000;

/// The definitions of k3s' own kinds: they are there before any manifest that has one of them, whoever looks after its objects.
pub(super) const DEFINITIONS: [&str; 4] = [
    include_str!("../../../manifests/crds/addons.yaml"),
    include_str!("../../../manifests/crds/etcdsnapshotfiles.yaml"),
    include_str!("../../../manifests/crds/helmcharts.yaml"),
    include_str!("../../../manifests/crds/helmchartconfigs.yaml"),
];

/// AddOns, by name.
pub(super) struct Addons {
    client: Client,
    api: Api<DynamicObject>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AddonObject {
    pub(super) name: String,
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
    /// The file.
    pub(super) source: String,
    /// Of the file, as it was last applied whole.
    pub(super) checksum: String,
    /// The kinds of what was applied from it.
    pub(super) kinds: Vec<GroupVersionKind>,
    /// The server whose authoritative folder the file is in.
    pub(super) server: Option<String>,
}

/// What users are told of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    ReadFailed,
    ParseFailed,
    Applying,
    ApplyFailed,
    Applied,
    Deleting,
}

impl Step {
    fn reason(self) -> &'static str {
        match self {
            Self::ReadFailed => "ReadManifestFailed",
            Self::ParseFailed => "ParseManifestFailed",
            Self::Applying => "ApplyingManifest",
            Self::ApplyFailed => "ApplyManifestFailed",
            Self::Applied => "AppliedManifest",
            Self::Deleting => "DeletingManifest",
        }
    }

    fn note(self, path: &str) -> String {
        match self {
            Self::ReadFailed => format!("Read manifest at {path:?} failed"),
            Self::ParseFailed => format!("Parse manifest at {path:?} failed"),
            Self::Applying => format!("Applying manifest at {path:?}"),
            Self::ApplyFailed => format!("Applying manifest at {path:?} failed"),
            Self::Applied => format!("Applied manifest at {path:?}"),
            Self::Deleting => format!("Deleting manifest at {path:?}"),
        }
    }

    fn event_type(self) -> EventType {
        match self {
            Self::ReadFailed | Self::ParseFailed | Self::ApplyFailed => EventType::Warning,
            Self::Applying | Self::Applied | Self::Deleting => EventType::Normal,
        }
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("k3s.cattle.io", "v1", "Addon"), "addons")
}

impl Addons {
    pub(super) fn new(client: Client) -> Self {
        Self { api: Api::namespaced_with(client.clone(), NAMESPACE, &resource()), client }
    }

    pub(super) async fn get(&self, name: &str) -> kube::Result<Option<AddonObject>> {
        Ok(self.api.get_opt(name).await?.map(|object| AddonObject::of(&object)))
    }

    pub(super) async fn list(&self) -> kube::Result<Vec<AddonObject>> {
        Ok(self.api.list(&ListParams::default()).await?.iter().map(AddonObject::of).collect())
    }

    /// Makes an AddOn where there is none of its name.
    pub(super) async fn create(&self, addon: &AddonObject) -> kube::Result<AddonObject> {
        let mut object = DynamicObject::new(&addon.name, &resource()).within(NAMESPACE);
        if !addon.kinds.is_empty() {
            object.annotations_mut().insert(GVKS.into(), gvks(&addon.kinds));
        }
        if let Some(server) = &addon.server {
            object.annotations_mut().insert(SERVER.into(), server.clone());
        }
        object.data = json!({"spec": {"source": addon.source, "checksum": addon.checksum}});
        Ok(AddonObject::of(&self.api.create(&PostParams::default(), &object).await?))
    }

    /// Makes the API remember `addon` as it is, if it does not.
    pub(super) async fn store(&self, before: &AddonObject, addon: &AddonObject) -> kube::Result<AddonObject> {
        if before == addon {
            return Ok(addon.clone());
        }
        let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
        let patch = json!({
            "metadata": {"annotations": {GVKS: gvks(&addon.kinds), SERVER: addon.server}},
            "spec": {"source": addon.source, "checksum": addon.checksum},
        });
        Ok(AddonObject::of(&self.api.patch(&addon.name, &params, &Patch::Merge(patch)).await?))
    }

    /// One that is gone is deleted.
    pub(super) async fn delete(&self, name: &str) -> kube::Result<()> {
        match self.api.delete(name, &kube::api::DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop),
        }
    }

    /// Tells users what becomes of a manifest. One event more or less changes nothing.
    pub(super) async fn tell(&self, addon: &AddonObject, step: Step, error: Option<&str>) {
        let mut note = step.note(&addon.source);
        if let Some(error) = error {
            note = format!("{note}: {error}");
        }
        let note = note.chars().take(LONGEST_NOTE).collect();
        let event = Event {
            type_: step.event_type(),
            reason: step.reason().into(),
            note: Some(note),
            action: step.reason().into(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some("k3s.cattle.io/v1".into()),
            kind: Some("Addon".into()),
            name: Some(addon.name.clone()),
            namespace: Some(NAMESPACE.into()),
            uid: addon.uid.clone(),
            resource_version: addon.version.clone(),
            ..ObjectReference::default()
        };
        // A recorder looks through all that it has told in the last minutes, to count what is told again: this is not.
        let events = recorder(&self.client, Deploy::NAME);
        if let Err(error) = events.publish(&event, &reference).await {
            debug!(addon = addon.name, %error, "An event could not be told.");
        }
    }
}

impl AddonObject {
    /// One of the file `source` that nothing is known of yet.
    pub(super) fn new(name: &str, source: String) -> Self {
        Self {
            name: name.to_owned(),
            uid: None,
            version: None,
            source,
            checksum: String::new(),
            kinds: Vec::new(),
            server: None,
        }
    }

    fn of(object: &DynamicObject) -> Self {
        let text = |field: &str| object.data["spec"][field].as_str().unwrap_or_default().to_owned();
        let annotation = |key: &str| object.annotations().get(key);
        Self {
            name: object.name_any(),
            uid: object.uid(),
            version: object.resource_version(),
            source: text("source"),
            checksum: text("checksum"),
            kinds: annotation(GVKS).map(|text| text.split(';').filter_map(parse_gvk).collect()).unwrap_or_default(),
            server: annotation(SERVER).cloned(),
        }
    }
}

/// As Go writes them: `apps/v1, Kind=Deployment`, `/v1, Kind=Service`.
fn gvks(kinds: &[GroupVersionKind]) -> String {
    let text = |kind: &GroupVersionKind| format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind);
    kinds.iter().map(text).collect::<Vec<_>>().join(";")
}

fn parse_gvk(text: &str) -> Option<GroupVersionKind> {
    let (version, kind) = text.split_once(", Kind=")?;
    let (group, version) = version.split_once('/')?;
    Some(GroupVersionKind::gvk(group, version, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_as_go_writes_them() {
        let kinds = [GroupVersionKind::gvk("", "v1", "Service"), GroupVersionKind::gvk("apps", "v1", "Deployment")];
        let text = gvks(&kinds);
        assert_eq!(text, "/v1, Kind=Service;apps/v1, Kind=Deployment");
        let read: Vec<_> = text.split(';').filter_map(parse_gvk).collect();
        assert_eq!(read, kinds);
        assert_eq!("".split(';').filter_map(parse_gvk).count(), 0);
    }
}
