//! Passwords as older releases of k3s kept them: in clear in a file of the server's, then in Secrets of no type of their own.

use std::path::Path;

use k3s_files as files;
use k3s_identity::Passwd;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    core::ObjectMeta,
};
use tracing::{info, warn};

use super::secret::{NAMESPACE, SUFFIX, TYPE, ensure_node_password};

/// Brings what older releases left into today's form. `file` is `<data>/server/cred/node-passwd`.
///
/// Whatever cannot be moved stays where it is and is tried again at the next start: no name becomes free by this.
pub async fn migrate_node_passwords(client: &Client, file: &Path) {
    if let Err(error) = migrate_file(client, file).await {
        warn!(path = %file.display(), error = &*error, "The node passwords in a file of an older release stay there until the next start.");
    }
    if let Err(error) = migrate_secrets(client).await {
        warn!(%error, "Some node passwords keep the form of an older release until the next start.");
    }
}

/// The passwords of nodes that there are, or of all if there are no nodes, become Secrets; then the file goes.
async fn migrate_file(client: &Client, file: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if !file.try_exists()? {
        return Ok(());
    }
    let passwords = Passwd::load(file)?;
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    let nodes: Vec<String> = nodes.iter().map(ResourceExt::name_any).collect();
    let mut moved = 0;
    for (node, password) in
        passwords.passwords().filter(|(node, _)| nodes.is_empty() || nodes.iter().any(|n| n == node))
    {
        match ensure_node_password(client, node, &password).await {
            Ok(()) => moved += 1,
            // What the cluster knows already is newer than the file.
            Err(error) if error.is_refusal() => {
                warn!(node, %error, "A node password in the file of an older release is not taken over.");
            }
            Err(error) => return Err(error.into()),
        }
    }
    files::remove(file)?;
    info!(moved, path = %file.display(), "Moved the node passwords of an older release into Secrets.");
    Ok(())
}

/// A Secret's type cannot change: it is deleted and made again.
async fn migrate_secrets(client: &Client) -> kube::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let of_another_type = ListParams::default().fields(&format!("type!={TYPE}"));
    let names = secrets.list_metadata(&of_another_type).await?.items.into_iter().map(|secret| secret.name_any());
    for name in names.filter(|name| name.ends_with(SUFFIX)) {
        if let Some(secret) = secrets.get_opt(&name).await? {
            migrate(&secrets, name, secret).await?;
        }
    }
    Ok(())
}

async fn migrate(secrets: &Api<Secret>, name: String, old: Secret) -> kube::Result<()> {
    let secret = of_the_right_type(old.clone());
    // Nothing is deleted that cannot be made again.
    let mut probe = secret.clone();
    probe.metadata.generate_name = probe.metadata.name.take().map(|name| format!("{name}-"));
    secrets.create(&PostParams { dry_run: true, ..PostParams::default() }, &probe).await?;

    let only_this = Preconditions { uid: old.metadata.uid, resource_version: None };
    let gone = |code| matches!(code, 404 | 409);
    match secrets.delete(&name, &DeleteParams::default().preconditions(only_this)).await {
        Err(kube::Error::Api(status)) if gone(status.code) => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => info!(secret = name, "Gave the Secret of a node's password its type."),
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => {
            warn!(secret = name, "The Secret of a node's password is gone: the node's next join makes it again.");
            return Err(error);
        }
    }
    Ok(())
}

/// What the API itself wrote is left out, the owners stay.
fn of_the_right_type(old: Secret) -> Secret {
    let ObjectMeta { name, namespace, labels, annotations, owner_references, .. } = old.metadata;
    let metadata = ObjectMeta { name, namespace, labels, annotations, owner_references, ..ObjectMeta::default() };
    Secret { metadata, type_: Some(TYPE.to_owned()), ..old }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_but_the_type_stays() {
        let object = |type_: &str, metadata: serde_json::Value| json!({"apiVersion": "v1", "kind": "Secret", "type": type_, "immutable": true, "data": {"hash": "YQ=="}, "metadata": metadata});
        let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "u1"}]);
        let old =
            json!({"name": "edge-1.node-password.k3s", "uid": "s1", "resourceVersion": "7", "ownerReferences": owners});
        let new = of_the_right_type(serde_json::from_value(object("Opaque", old)).unwrap());
        let expected = json!({"name": "edge-1.node-password.k3s", "ownerReferences": owners});
        assert_eq!(serde_json::to_value(new).unwrap(), object(TYPE, expected));
    }
}
