//! The documents of an OCI image layout (opencontainers/image-spec: `image-layout.md`), in the types of `oci-spec`. Docker's schema 2
//! documents have the same shape.

use serde::Serialize;
use serde_json::Value;

/// Annotation of the index: the image's full name, as containerd and docker write it.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation of the index: a name or only a tag.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(crate) const INDEX_FILE: &str = "index.json";
pub(crate) const BLOBS: &str = "blobs/sha256/";

/// The file `oci-layout`.
pub(crate) const LAYOUT_FILE: &str = "oci-layout";
pub(crate) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The specification's version of indexes and manifests.
pub(crate) const SCHEMA_VERSION: u32 = 2;

/// Fields in the order in which they are written, of all documents in one. An image's digest is over these bytes: another order would be
/// another image, to be imported anew by every node.
const FIELDS: [&str; 22] = [
    "schemaVersion",
    "mediaType",
    "architecture",
    "os",
    "created",
    "config",
    "rootfs",
    "layers",
    "manifests",
    "digest",
    "size",
    "annotations",
    "platform",
    "type",
    "diff_ids",
    "User",
    "ExposedPorts",
    "Volumes",
    "Env",
    "Entrypoint",
    "Cmd",
    "WorkingDir",
];

/// A document as text, always the same: `oci-spec` keeps maps without an order.
pub(crate) fn json(document: &impl Serialize) -> Vec<u8> {
    let value = serde_json::to_value(document).expect("these documents have string keys and cannot fail to serialise");
    let mut text = String::new();
    write(&value, &mut text);
    text.into_bytes()
}

/// Fields first, in their order, then keys of maps in theirs.
fn write(value: &Value, text: &mut String) {
    let rank = |name: &str| FIELDS.iter().position(|field| *field == name).unwrap_or(FIELDS.len());
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| (rank(name), *name));
            text.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}
