//! Another server token.

use serde::{Deserialize, Serialize};

/// What [`TOKEN`](crate::paths::TOKEN) takes.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRotation {
    /// The password of the new token; a random one if there is none, or an empty one.
    pub new_token: Option<String>,
}
