//! What all servers of a cluster have to be told alike, compared before one joins. The settings are those that k3s compares, and its
//! version. A server that joins by another one asks that; where servers share a store elsewhere, each leaves its own there.

use std::fmt;

use ipnet::IpNet;
use k3s_datastore::{Client, ClientError};
use k3s_supervisor_api::IpNetDocument;
use serde_json::Value;
use tracing::warn;

use crate::{BootstrapError, Error, cluster_document::VERSION, snapshots::minor};

/// Where servers that share a store leave what they were started with, each by its node's name.
const SERVERS: &str = "/k3s.io/servers/";

/// The fields of `/v1-k3s/config` that have to be the same, and the flag that sets each.
const AGREED: [(&str, &str); 14] = [
    ("ClusterIPRanges", "--cluster-cidr"),
    ("ServiceIPRanges", "--service-cidr"),
    ("ClusterDNSs", "--cluster-dns"),
    ("ClusterDomain", "--cluster-domain"),
    ("FlannelBackend", "--flannel-backend"),
    ("FlannelIPv6Masq", "--flannel-ipv6-masq"),
    ("FlannelExternalIP", "--flannel-external-ip"),
    ("EgressSelectorMode", "--egress-selector-mode"),
    ("DisableCCM", "--disable-cloud-controller"),
    ("DisableHelmController", "--disable-helm-controller"),
    ("DisableNPC", "--disable-network-policy"),
    ("DisableServiceLB", "--disable=servicelb"),
    ("EncryptSecrets", "--secrets-encryption"),
    ("EmbeddedRegistry", "--embedded-registry"),
];

/// A setting that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    flag: &'static str,
    here: String,
    there: String,
}

/// A server that may not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this server is configured otherwise than its cluster: {}; give it the cluster's settings, and no older release",
    .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
)]
pub struct Disagreement(Vec<Difference>);

/// Compares this server's document with the cluster's.
///
/// # Errors
/// [`Disagreement`] names each difference.
pub(crate) fn compare(here: &Value, there: &Value) -> Result<(), Disagreement> {
    match differences(here, there) {
        differences if differences.is_empty() => Ok(()),
        differences => Err(Disagreement(differences)),
    }
}

/// The settings of this server, among those that servers of a store elsewhere leave in it.
pub(crate) struct SharedSettings<'a> {
    client: &'a Client,
    key: String,
    settings: &'a Value,
}

impl<'a> SharedSettings<'a> {
    /// Those of the server of the node `node`, which are in its document.
    pub(crate) fn new(client: &'a Client, node: &str, settings: &'a Value) -> Self {
        Self { client, key: format!("{SERVERS}{node}"), settings }
    }

    /// Compares them with those of the other server whose settings are the newest. Only who is new is refused: a setting of a cluster is
    /// changed on one server after the other.
    ///
    /// # Errors
    /// [`Error::Disagreement`]; [`Error::Bootstrap`] if the store cannot be read.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        let servers = self.client.list(SERVERS).await.map_err(BootstrapError::from)?;
        let is_known = servers.iter().any(|stored| stored.key == self.key);
        let others = servers.into_iter().filter(|stored| stored.key != self.key);
        let Some(newest) = others.max_by_key(|stored| stored.modified) else { return Ok(()) };
        // What is no JSON was left by nobody who could be compared with.
        let Ok(there) = serde_json::from_slice(&newest.value) else { return Ok(()) };
        match compare(self.settings, &there) {
            Err(disagreement) if is_known => {
                let server = String::from_utf8_lossy(&newest.key[SERVERS.len()..]).into_owned();
                warn!(server, %disagreement, "Servers of this cluster have different settings.");
                Ok(())
            }
            compared => Ok(compared?),
        }
    }

    /// Leaves them for who comes next.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] if the store cannot be read or written.
    pub(crate) async fn publish(&self) -> Result<(), Error> {
        let fields = AGREED.iter().map(|(field, _)| *field).chain([VERSION]);
        let told =
            Value::Object(fields.map(|field| (field.to_owned(), self.settings[field].clone())).collect()).to_string();
        let written = match self.client.get(&self.key).await.map_err(BootstrapError::from)? {
            Some(stored) if stored.value == told => return Ok(()),
            Some(stored) => self.client.update(&self.key, told, stored.modified).await,
            None => self.client.create(&self.key, told).await,
        };
        match written {
            // By another start of this server.
            Ok(_) | Err(ClientError::Exists(_) | ClientError::Changed(_)) => Ok(()),
            Err(error) => Err(BootstrapError::from(error).into()),
        }
    }
}

/// Where this server's document differs from the cluster's.
fn differences(here: &Value, there: &Value) -> Vec<Difference> {
    let differs = |(field, flag): (&str, &'static str)| {
        let (here, there) = (shown(&here[field]), shown(&there[field]));
        (here != there).then_some(Difference { flag, here, there })
    };
    AGREED.into_iter().filter_map(differs).chain(older(here, there)).collect()
}

/// What a newer release wrote, an older one may not read.
fn older(here: &Value, there: &Value) -> Option<Difference> {
    let (here, there) = (here[VERSION].as_str()?, there[VERSION].as_str()?);
    let differs = || Difference { flag: "the version of Kubernetes", here: here.to_owned(), there: there.to_owned() };
    (minor(here) < minor(there)).then(differs)
}

/// As the flag takes it. What a release does not tell it does not have.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "false".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        Value::Object(_) => {
            let net =
                serde_json::from_value(value.clone()).ok().and_then(|net: IpNetDocument| IpNet::try_from(&net).ok());
            net.map_or_else(|| value.to_string(), |net| net.to_string())
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} here and {} there", self.flag, self.here, self.there)
    }
}

#[cfg(test)]
mod tests {
    use k3s_datastore::{Datastore, Options};
    use serde_json::json;

    use super::*;

    #[test]
    fn each_difference_is_told_by_its_flag() {
        let here = json!({
            "ClusterIPRanges": [{"IP": "10.42.0.0", "Mask": "//8AAA=="}], "ClusterDomain": "cluster.local", "DisableNPC": false,
            "AdvertiseIP": "10.0.0.1",
        });
        let there = json!({
            "ClusterIPRanges": [{"IP": "10.50.0.0", "Mask": "//8AAA=="}], "ClusterDomain": "cluster.local", "DisableNPC": true,
            "AdvertiseIP": "10.0.0.2", "EmbeddedRegistry": false,
        });
        let told: Vec<_> = differences(&here, &there).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "--cluster-cidr is 10.42.0.0/16 here and 10.50.0.0/16 there",
                "--disable-network-policy is false here and true there"
            ]
        );
        assert_eq!(differences(&here, &here), []);
    }

    #[test]
    fn an_older_release_does_not_join_and_a_newer_one_does() {
        let of = |version: &str| json!({ VERSION: version });
        let refused = compare(&of("v1.35.9+k3s1"), &of("v1.36.3+k3s1")).unwrap_err().to_string();
        assert!(refused.contains("the version of Kubernetes is v1.35.9+k3s1 here and v1.36.3+k3s1 there"), "{refused}");
        assert_eq!(compare(&of("v1.36.0+k3s1"), &of("v1.36.3+k3s1")), Ok(()));
        assert_eq!(compare(&of("v1.37.0+k3s1"), &of("v1.36.3+k3s1")), Ok(()));
        // k3s' servers do not tell theirs.
        assert_eq!(compare(&of("v1.35.9+k3s1"), &json!({})), Ok(()));
    }

    #[tokio::test]
    async fn who_is_new_agrees_and_who_is_known_may_change() {
        let directory = tempfile::tempdir().unwrap();
        let store = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let client = store.client();
        let of =
            |domain: &str, version: &str| json!({ "ClusterDomain": domain, VERSION: version, "IPSECPSK": "secret" });
        let join = async |node: &str, settings: Value| {
            let shared = SharedSettings::new(&client, node, &settings);
            shared.check().await?;
            shared.publish().await
        };
        join("one", of("cluster.local", "v1.36.3")).await.unwrap();
        join("two", of("cluster.local", "v1.36.3")).await.unwrap();
        let refused = join("three", of("other.local", "v1.35.1")).await.unwrap_err().to_string();
        assert!(
            refused.contains(
                "--cluster-domain is other.local here and cluster.local there; the version of Kubernetes is v1.35.1"
            ),
            "{refused}"
        );
        assert_eq!(client.list(SERVERS).await.unwrap().len(), 2, "who was refused has left nothing");

        join("one", of("other.local", "v1.37.0")).await.unwrap();
        join("three", of("other.local", "v1.37.0")).await.unwrap();
        let known = client.list(SERVERS).await.unwrap();
        assert!(known.iter().all(|stored| !String::from_utf8_lossy(&stored.value).contains("secret")), "{known:?}");
        store.close().await.unwrap();
    }
}
