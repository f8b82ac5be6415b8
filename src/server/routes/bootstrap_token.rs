//! Logins by bootstrap token, judged as kube-apiserver judges them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k3s_identity::{BootstrapToken, BootstrapTokenSecret, SECRET_TYPE, Usage};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};

use super::caller::{Caller, Group};

/// Before the id, in the name of the user.
const USER: &str = "system:bootstrap:";

/// Who shows this token, now; `None` if it is wrong or over.
pub(super) async fn log_in(client: Client, token: &BootstrapToken) -> kube::Result<Option<Caller>> {
    let secrets: Api<Secret> = Api::namespaced(client, "kube-system");
    let found = secrets.get_opt(&BootstrapToken::secret_name(token.id())).await?;
    let accepted = found.is_some_and(|found| accepts(found, token, Timestamp::now()));
    // Every such token has this group; those that a token adds open no route.
    Ok(accepted.then(|| Caller::new(format!("{USER}{}", token.id()), &[Group::Bootstrappers.name().to_owned()])))
}

fn accepts(found: Secret, token: &BootstrapToken, now: Timestamp) -> bool {
    let name = found.name_any();
    if found.type_.as_deref() != Some(SECRET_TYPE) || found.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let data: BTreeMap<_, _> = found.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
    BootstrapTokenSecret::from_data(&name, &data).is_ok_and(|known| {
        known.token == *token && known.usages.contains(&Usage::Authentication) && !known.has_expired(now)
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;

    fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    /// The Secret of a token that is right for another second.
    fn secret() -> Secret {
        let token = BootstrapTokenSecret {
            token: "abcdef.0123456789abcdef".parse().unwrap(),
            description: String::new(),
            expires: Some("2026-06-01T00:00:01Z".parse().unwrap()),
            usages: [Usage::Authentication].into(),
            groups: Vec::new(),
        };
        let mut secret = Secret { type_: Some(SECRET_TYPE.into()), ..Secret::default() };
        secret.metadata.name = Some("bootstrap-token-abcdef".into());
        secret.data = Some(token.to_data().into_iter().map(|(key, value)| (key, ByteString(value))).collect());
        secret
    }

    #[test]
    fn a_token_is_accepted_while_it_lasts() {
        let accepted = |change: fn(&mut Secret), token: &str, now: Timestamp| {
            let mut secret = secret();
            change(&mut secret);
            accepts(secret, &token.parse().unwrap(), now)
        };
        let right = "abcdef.0123456789abcdef";
        assert!(accepted(|_| {}, right, now()));
        assert!(!accepted(|_| {}, "abcdef.0123456789abcdee", now()));
        assert!(!accepted(|_| {}, right, "2026-06-01T00:00:01Z".parse().unwrap()));
        assert!(!accepted(|secret| secret.type_ = Some("Opaque".into()), right, now()));
        assert!(!accepted(|secret| secret.metadata.deletion_timestamp = Some(Time(now())), right, now()));
        assert!(!accepted(|secret| drop(secret.data.take()), right, now()));
        let no_usage = |secret: &mut Secret| {
            secret.data.as_mut().unwrap().remove("usage-bootstrap-authentication");
        };
        assert!(!accepted(no_usage, right, now()));
    }
}
