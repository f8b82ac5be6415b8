//! What all servers of a cluster have to be told alike, compared before one joins. The settings are those that k3s compares.

use std::fmt;

use ipnet::IpNet;
use k3s_supervisor_api::IpNetDocument;
use serde_json::Value;

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
pub struct Difference {
    flag: &'static str,
    here: String,
    there: String,
}

/// Where this server's document differs from the cluster's.
pub(super) fn differences(here: &Value, there: &Value) -> Vec<Difference> {
    let differs = |(field, flag): (&str, &'static str)| {
        let (here, there) = (shown(&here[field]), shown(&there[field]));
        (here != there).then_some(Difference { flag, here, there })
    };
    AGREED.into_iter().filter_map(differs).collect()
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
}
