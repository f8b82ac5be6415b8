//! How a request says who makes it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue};

/// The node that a certificate is for.
pub const NODE_NAME: HeaderName = HeaderName::from_static("k3s-node-name");
/// What proves that the name is the node's.
pub const NODE_PASSWORD: HeaderName = HeaderName::from_static("k3s-node-password");
/// The node's addresses, with commas between them.
pub const NODE_IP: HeaderName = HeaderName::from_static("k3s-node-ip");

/// `Authorization` by an account's password.
pub fn basic(user: &str, password: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
        .expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

/// `Authorization` by a bootstrap token; `None` if the text can be on no header.
pub fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
