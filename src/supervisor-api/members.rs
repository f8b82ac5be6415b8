//! The members of a cluster's etcd, as servers tell each other.

use serde::{Deserialize, Serialize};

/// What k3s answers at [`DB_INFO`](crate::paths::DB_INFO).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct MembersDocument {
    /// All of them.
    pub members: Vec<MemberDocument>,
}

/// `etcdserverpb.Member` as Go prints it, which leaves out what is empty.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberDocument {
    /// Its number in the cluster.
    #[serde(default, rename = "ID")]
    pub id: u64,
    /// Its name; empty until it has started for the first time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where the others reach it.
    #[serde(default, rename = "peerURLs", skip_serializing_if = "Vec::is_empty")]
    pub peer_urls: Vec<String>,
    /// Where clients do.
    #[serde(default, rename = "clientURLs", skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
    /// Whether it has no vote yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_go_prints() {
        let json = r#"{"members":[{"ID":10501334649042878790,"name":"one-0123abcd","peerURLs":["https://10.0.0.1:2380"],"clientURLs":["https://10.0.0.1:2379"]},{"ID":7,"peerURLs":["https://10.0.0.2:2380"],"isLearner":true}]}"#;
        let document: MembersDocument = serde_json::from_str(json).unwrap();
        assert_eq!((document.members[0].id, document.members[1].is_learner), (10_501_334_649_042_878_790, true));
        assert_eq!(serde_json::to_string(&document).unwrap(), json);
    }
}
