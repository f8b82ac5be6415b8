//! How Secrets are encrypted, and what is to be done about it. Fields are k3s'.

use serde::{Deserialize, Serialize};

/// What [`ENCRYPTION_STATUS`](crate::paths::ENCRYPTION_STATUS) answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct EncryptionStatus {
    /// Where a rotation of keys is; empty where nothing is configured.
    pub stage: String,
    /// The kind and name of the key that Secrets are written with; empty if they are written in the clear.
    #[serde(rename = "activekey")]
    pub active_key: String,
    /// Whether Secrets are encrypted; `None` where nothing is configured.
    #[serde(rename = "enable", skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether all servers have the same configuration.
    #[serde(rename = "hashmatch", skip_serializing_if = "std::ops::Not::not")]
    pub hashes_match: bool,
    /// Which do not.
    #[serde(rename = "hasherror", skip_serializing_if = "String::is_empty")]
    pub hash_error: String,
    /// The kinds and names of the keys that Secrets are read with beside the active one.
    #[serde(rename = "inactivekeys", skip_serializing_if = "Vec::is_empty")]
    pub inactive_keys: Vec<String>,
}

/// What [`ENCRYPTION_CONFIG`](crate::paths::ENCRYPTION_CONFIG) takes: a stage to go on to, or whether Secrets are to be encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct EncryptionRequest {
    /// `prepare`, `rotate`, `reencrypt_active` or `rotate_keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// On or off, where no stage is named.
    #[serde(rename = "enable", skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Also from a stage that it does not follow, or while servers differ.
    pub force: bool,
    /// Old keys stay after Secrets have been written again.
    pub skip: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_k3s() {
        let bare = serde_json::to_string(&EncryptionStatus::default()).unwrap();
        assert_eq!(bare, r#"{"stage":"","activekey":""}"#);
        let full = r#"{"stage":"start","activekey":"AES-CBC aescbckey","enable":true,"hashmatch":true}"#;
        let status: EncryptionStatus = serde_json::from_str(full).unwrap();
        assert_eq!((status.enabled, status.hashes_match), (Some(true), true));
        assert_eq!(serde_json::to_string(&status).unwrap(), full);
        let asked = r#"{"stage":"prepare","force":false,"skip":false}"#;
        let request: EncryptionRequest = serde_json::from_str(asked).unwrap();
        assert_eq!(request.stage.as_deref(), Some("prepare"));
        assert_eq!(serde_json::to_string(&request).unwrap(), asked);
    }
}
