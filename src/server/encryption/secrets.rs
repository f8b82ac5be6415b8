//! Writing all Secrets again, with the key that kube-apiserver writes with now.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k3s_controllers::Context;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;
use tracing::info;

use super::EncryptionError;

/// Names that are read at once.
const PAGE: u32 = 500;
/// Secrets that are written at once.
const AT_ONCE: usize = 8;
/// How often one is tried that others are writing.
const ATTEMPTS: u32 = 8;
/// How often the list is begun again that went out of date while it was read.
const LISTS: u32 = 5;
/// After how many Secrets progress is told, as in k3s.
const TOLD_EACH: usize = 50;

/// Has kube-apiserver write every Secret that is not encrypted with its first key, and tells on the server's Node how that goes, as k3s.
///
/// An empty patch changes nothing in a Secret, and kube-apiserver stores it all the same where its first key did not write it. So no content
/// of a Secret comes here, what clients write meanwhile stays, and what is done is done quickly the next time.
pub(super) struct Reencrypting<'a> {
    context: &'a Context,
    server: ObjectReference,
}

impl<'a> Reencrypting<'a> {
    /// On the server called `server`.
    pub(super) fn new(context: &'a Context, server: &str) -> Self {
        // As k3s names a node in events.
        let server = ObjectReference {
            kind: Some("Node".into()),
            name: Some(server.into()),
            uid: Some(server.into()),
            ..ObjectReference::default()
        };
        Self { context, server }
    }

    /// # Errors
    /// The API does not answer, or refuses a Secret, as webhooks may.
    pub(super) async fn run(&self) -> Result<(), EncryptionError> {
        match self.write_all().await {
            Ok(count) => {
                self.tell(EventType::Normal, "SecretsUpdateComplete", format!("reencrypted {count} secrets")).await;
                info!(secrets = count, "All Secrets are written with the first key.");
                Ok(())
            }
            Err(error) => {
                self.tell(EventType::Warning, "SecretsUpdateError", error.to_string()).await;
                Err(error)
            }
        }
    }

    async fn write_all(&self) -> Result<usize, EncryptionError> {
        let all = Api::<Secret>::all(self.context.client.clone());
        let (mut count, mut lists) = (0, 1);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = match all.list_metadata(&page).await {
                Ok(listed) => listed,
                Err(kube::Error::Api(status)) if status.code == 410 && lists < LISTS => {
                    (count, lists) = (0, lists + 1);
                    page.continue_token = None;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut writes = Vec::with_capacity(listed.items.len());
            for secret in &listed.items {
                writes.push(write(&self.context.client, secret.namespace().unwrap_or_default(), secret.name_any()));
            }
            let mut written = stream::iter(writes).buffer_unordered(AT_ONCE);
            while written.try_next().await?.is_some() {
                count += 1;
                if count % TOLD_EACH == 0 {
                    self.tell(EventType::Normal, "SecretsProgress", format!("reencrypted {count} secrets")).await;
                }
            }
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(count),
            }
        }
    }

    async fn tell(&self, type_: EventType, reason: &str, note: String) {
        self.context.status.set(note.clone());
        let action = "Reencrypt".to_owned();
        let event = Event { type_, reason: reason.to_owned(), note: Some(note), action, secondary: None };
        // Whether anybody reads it or not.
        let _ = self.context.events.publish(&event, &self.server).await;
    }
}

async fn write(client: &Client, namespace: String, name: String) -> Result<(), EncryptionError> {
    let api = Api::<Secret>::namespaced(client.clone(), &namespace);
    let params = PatchParams { field_manager: Some("k3s".into()), ..PatchParams::default() };
    let mut attempt = 1;
    loop {
        match api.patch_metadata(&name, &params, &Patch::Merge(json!({}))).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            // kube-apiserver has tried it a few times itself.
            Err(kube::Error::Api(status)) if status.is_conflict() && attempt < ATTEMPTS => attempt += 1,
            Err(source) => {
                return Err(EncryptionError::Secret {
                    secret: format!("{namespace}/{name}"),
                    source: Box::new(source),
                });
            }
        }
    }
}
