//! One node's Secret: made at the first join, checked at all others.

use k3s_identity::{Password, PasswordHash};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Node, ObjectReference, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const TYPE: &str = "k3s.cattle.io/node-password";
/// What the Secrets' names end with.
pub(super) const SUFFIX: &str = ".node-password.k3s";
const HASH: &str = "hash";

/// Why a node's password does not count, or could not be looked at. The first two begin as k3s' own sentence does.
#[derive(Debug, thiserror::Error)]
pub enum NodePasswordError {
    /// The cluster knows the name with another password.
    #[error(
        "unable to verify password for node {node}: hash does not match; either another machine has joined under this \
         name, or /etc/rancher/node/password of this one was lost or changed: to let this machine have the name run \
         `k3s node forget {node}` on a server, to give it a name of its own start it with --with-node-id"
    )]
    Mismatch {
        /// The node.
        node: String,
    },
    /// The Secret is not one that k3s made.
    #[error(
        "unable to verify password for node {node}: the Secret kube-system/{secret} holds no password hash; run \
         `k3s node forget {node}` on a server to have it made again"
    )]
    Unusable {
        /// The node.
        node: String,
        /// Its Secret.
        secret: String,
    },
    /// Whether the name is taken is not known.
    #[error("the password of node {node} cannot be checked: the API does not give its Secret")]
    Unread {
        /// The node.
        node: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
    /// The name is free, and cannot be taken.
    #[error("the password of node {node} cannot be remembered: the API does not take its Secret")]
    Uncreated {
        /// The node.
        node: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
    /// There is no randomness, or the process ends.
    #[error("the password of node {node} cannot be hashed")]
    Unhashed {
        /// The node.
        node: String,
    },
}

impl NodePasswordError {
    /// Whether the password is wrong, rather than not known to be right.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Mismatch { .. } | Self::Unusable { .. })
    }
}

/// The name of a node's Secret in kube-system.
pub fn node_password_secret(node: &str) -> String {
    format!("{}{SUFFIX}", node.to_lowercase())
}

/// Checks a node's password by its Secret, which is made if there is none: the first one to come has the name.
///
/// # Errors
/// [`NodePasswordError::Mismatch`] if another machine has the name; otherwise the Secret could not be read or made.
pub async fn ensure_node_password(client: &Client, node: &str, password: &Password) -> Result<(), NodePasswordError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let name = node_password_secret(node);
    let unread = |source| NodePasswordError::Unread { node: node.to_owned(), source: Box::new(source) };
    if let Some(secret) = secrets.get_opt(&name).await.map_err(unread)? {
        return verify(&secret, &name, node, password).await;
    }
    let hash = {
        let password = password.clone();
        spawn_blocking(move || PasswordHash::new(password.expose())).await
    };
    let Ok(Ok(hash)) = hash else { return Err(NodePasswordError::Unhashed { node: node.to_owned() }) };
    match secrets.create(&PostParams::default(), &object(&name, &hash)).await {
        Ok(_) => {
            info!(node, secret = name, "Remembered the password of a new node.");
            Ok(())
        }
        // Another server was quicker, or another machine.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            verify(&secrets.get(&name).await.map_err(unread)?, &name, node, password).await
        }
        Err(source) => Err(NodePasswordError::Uncreated { node: node.to_owned(), source: Box::new(source) }),
    }
}

/// Makes this a node's password in place of the one that the cluster knows: for the server's own node, which has lost its file.
///
/// # Errors
/// As [`ensure_node_password`].
pub async fn replace_node_password(client: &Client, node: &str, password: &Password) -> Result<(), NodePasswordError> {
    match ensure_node_password(client, node, password).await {
        Err(error) if error.is_refusal() => {}
        known => return known,
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let name = node_password_secret(node);
    match secrets.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(source) => return Err(NodePasswordError::Unread { node: node.to_owned(), source: Box::new(source) }),
        Ok(_) => {}
    }
    ensure_node_password(client, node, password).await?;
    warn!(node, "This node had lost its password, as after a power cut; the cluster knows it by a new one.");
    Ok(())
}

/// Tells on the node how the check came out that its join did not wait for, as k3s does.
pub async fn tell_of_deferred(client: &Client, node: &str, checked: &Result<(), NodePasswordError>) {
    let (type_, reason, note) = match checked {
        Ok(()) => (
            EventType::Normal,
            "NodePasswordValidationComplete",
            "Deferred node password secret validation complete".to_owned(),
        ),
        Err(error) => (
            EventType::Warning,
            "NodePasswordValidationFailed",
            format!("Deferred node password secret validation failed: {error}"),
        ),
    };
    let event = Event {
        type_,
        reason: reason.into(),
        note: Some(note),
        action: "ValidateNodePassword".into(),
        secondary: None,
    };
    // As kubelet refers to its node, which may not be there yet.
    let reference = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    let recorder = Recorder::new(client.clone(), Reporter { controller: "k3s-supervisor".into(), instance: None });
    if let Err(error) = recorder.publish(&event, &reference).await {
        debug!(node, %error, "An event could not be told.");
    }
}

/// Whether the API still has this node.
///
/// # Errors
/// The API does not answer.
pub async fn node_exists(client: &Client, node: &str) -> kube::Result<bool> {
    Ok(Api::<Node>::all(client.clone()).get_metadata_opt(node).await?.is_some())
}

async fn verify(secret: &Secret, name: &str, node: &str, password: &Password) -> Result<(), NodePasswordError> {
    let Some(hash) = hash_in(secret) else {
        return Err(NodePasswordError::Unusable { node: node.to_owned(), secret: name.to_owned() });
    };
    let password = password.clone();
    match spawn_blocking(move || hash.verify(password.expose())).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(NodePasswordError::Mismatch { node: node.to_owned() }),
        Err(_) => Err(NodePasswordError::Unhashed { node: node.to_owned() }),
    }
}

fn hash_in(secret: &Secret) -> Option<PasswordHash> {
    std::str::from_utf8(&secret.data.as_ref()?.get(HASH)?.0).ok()?.parse().ok()
}

fn object(name: &str, hash: &PasswordHash) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        type_: Some(TYPE.to_owned()),
        data: Some([(HASH.to_owned(), ByteString(hash.to_string().into_bytes()))].into()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_secret_is_k3s_own() {
        let hash = PasswordHash::new("s3cret").unwrap();
        let secret = object(&node_password_secret("Edge-1"), &hash);
        assert_eq!(hash_in(&secret).unwrap(), hash);
        let mut json = serde_json::to_value(secret).unwrap();
        json["data"]["hash"].take();
        assert_eq!(
            json,
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "edge-1.node-password.k3s", "namespace": "kube-system"},
                "type": "k3s.cattle.io/node-password",
                "immutable": true,
                "data": {"hash": null},
            })
        );
    }

    #[test]
    fn what_is_no_hash_is_none() {
        for data in [json!({}), json!({"hash": ""}), json!({"hash": "cGxhaW4="}), json!({"other": "YQ=="})] {
            let secret = serde_json::from_value(json!({"data": data})).unwrap();
            assert!(hash_in(&secret).is_none());
        }
        assert!(hash_in(&Secret::default()).is_none());
    }

    #[test]
    fn a_refusal_says_what_mends_it() {
        let refusal = NodePasswordError::Mismatch { node: "edge-1".into() };
        assert!(refusal.is_refusal());
        let text = refusal.to_string();
        assert!(text.starts_with("unable to verify password for node edge-1: hash does not match"), "{text}");
        assert!(text.contains("`k3s node forget edge-1`") && text.contains("--with-node-id"), "{text}");
    }
}
