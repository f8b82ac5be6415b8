//! Passwords as older releases of k3s kept them: in clear in a file of the server's, then in Secrets of no type of their own.

use std::path::Path;

use k3s_files as files;
use k3s_identity::Passwd;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use tracing::{info, warn};

use super::secret::{NAMESPACE, SUFFIX, TYPE, ensure_node_password};

/// Objects asked for at once.
const PAGE: u32 = 50;

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
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = secrets.list(&page).await?;
        let next = list.metadata.continue_.clone().filter(|next| !next.is_empty());
        for secret in list.items.into_iter().filter(is_outdated) {
            migrate(&secrets, secret).await?;
        }
        let Some(next) = next else { return Ok(()) };
        page = page.continue_token(&next);
    }
}

fn is_outdated(secret: &Secret) -> bool {
    secret.name_any().ends_with(SUFFIX) && secret.type_.as_deref() != Some(TYPE)
}

async fn migrate(secrets: &Api<Secret>, mut secret: Secret) -> kube::Result<()> {
    let name = secret.name_any();
    let only_this = Preconditions { uid: secret.metadata.uid.take(), resource_version: None };
    let gone = |code| matches!(code, 404 | 409);
    match secrets.delete(&name, &DeleteParams::default().preconditions(only_this)).await {
        Err(kube::Error::Api(status)) if gone(status.code) => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    secret.type_ = Some(TYPE.to_owned());
    secret.metadata.resource_version = None;
    secret.metadata.managed_fields = None;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_node_passwords_of_another_type_are_outdated() {
        let secret = |name: &str, type_: &str| {
            serde_json::from_value(json!({"metadata": {"name": name}, "type": type_})).unwrap()
        };
        assert!(is_outdated(&secret("edge-1.node-password.k3s", "Opaque")));
        assert!(!is_outdated(&secret("edge-1.node-password.k3s", TYPE)));
        assert!(!is_outdated(&secret("edge-1", "Opaque")));
    }
}
