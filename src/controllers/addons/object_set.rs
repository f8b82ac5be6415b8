//! What marks an object as one that an add-on applied: the labels and annotations by which k3s finds its objects, so that it adopts ours
//! and we adopt its own.
//!
//! They are those of k3s' library for sets of objects: a label by which all objects of an owner are listed, annotations that say who that
//! is, and what was applied last, of which long texts are cut.

use std::{fmt::Write as _, io::Write as _};

use aws_lc_rs::digest;
use data_encoding::{BASE64_NOPAD, HEXLOWER};
use flate2::{Compression, write::GzEncoder};
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::Value;

/// Where add-ons are.
pub(super) const NAMESPACE: &str = "kube-system";

const HASH: &str = "objectset.rio.cattle.io/hash";
const ID: &str = "objectset.rio.cattle.io/id";
const OWNER_GVK: &str = "objectset.rio.cattle.io/owner-gvk";
const OWNER_NAME: &str = "objectset.rio.cattle.io/owner-name";
const OWNER_NAMESPACE: &str = "objectset.rio.cattle.io/owner-namespace";
const APPLIED: &str = "objectset.rio.cattle.io/applied";
/// With the value `false`, an object stays when it leaves its manifest.
const PRUNE: &str = "objectset.rio.cattle.io/prune";

const ADDON: &str = "k3s.cattle.io/v1, Kind=Addon";

/// Texts in what was applied are cut after so many bytes,
const LONGEST: usize = 64;
/// except for these keys in items of lists, by which items are told apart.
const ITEM_KEYS: [&str; 10] =
    ["apiVersion", "containerPort", "devicePath", "ip", "kind", "mountPath", "name", "port", "topologyKey", "type"];

/// The objects of one add-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectSet {
    addon: String,
    hash: String,
}

impl ObjectSet {
    pub(super) fn of(addon: &str) -> Self {
        let owner = format!("{ADDON}{addon}{NAMESPACE}");
        let hash = HEXLOWER.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, owner.as_bytes()).as_ref());
        Self { addon: addon.to_owned(), hash }
    }

    /// Selects the objects.
    pub(super) fn selector(&self) -> String {
        format!("{HASH}={}", self.hash)
    }

    /// Whether an object is marked as one of them.
    pub(super) fn holds(&self, object: &ObjectMeta) -> bool {
        object.labels.as_ref().and_then(|labels| labels.get(HASH)) == Some(&self.hash)
    }

    /// Marks `object` as one of them.
    pub(super) fn mark(&self, object: &mut DynamicObject) {
        object.metadata.labels.get_or_insert_default().insert(HASH.into(), self.hash.clone());
        let annotations = object.metadata.annotations.get_or_insert_default();
        for (key, value) in [(ID, ""), (OWNER_GVK, ADDON), (OWNER_NAME, &self.addon), (OWNER_NAMESPACE, NAMESPACE)] {
            annotations.insert(key.into(), value.to_owned());
        }
        annotations.remove(APPLIED);
        let applied = encode(&applied(object));
        object.metadata.annotations.get_or_insert_default().insert(APPLIED.into(), applied);
    }
}

/// Whether an object goes when it leaves its manifest.
pub(super) fn may_be_pruned(object: &ObjectMeta) -> bool {
    let keeps = [&object.labels, &object.annotations].into_iter().flatten();
    keeps.filter_map(|map| map.get(PRUNE)).all(|value| value != "false")
}

/// Whether an object is marked as one of any add-on.
pub(super) fn is_marked(object: &ObjectMeta) -> bool {
    object.labels.as_ref().is_some_and(|labels| labels.contains_key(HASH))
}

/// An object as it is remembered: compact and sorted JSON with the escapes of Go's encoder, long texts cut.
fn applied(object: &DynamicObject) -> String {
    let mut text = String::new();
    write_json(&mut text, &serde_json::to_value(object).unwrap_or_default(), Within::Map);
    text
}

fn encode(applied: &str) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let compressed = gzip.write_all(applied.as_bytes()).and_then(|()| gzip.finish());
    BASE64_NOPAD.encode(&compressed.expect("a vector takes everything"))
}

/// What a value is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Map,
    List,
}

fn write_json(text: &mut String, value: &Value, within: Within) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_string(text, key.as_bytes());
                text.push(':');
                match value {
                    Value::String(value) => {
                        let is_key = within == Within::List && ITEM_KEYS.contains(&key.as_str());
                        let length = if is_key { value.len() } else { value.len().min(LONGEST) };
                        write_string(text, &value.as_bytes()[..length]);
                    }
                    value => write_json(text, value, Within::Map),
                }
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_json(text, item, Within::List);
            }
            text.push(']');
        }
        Value::String(string) => write_string(text, string.as_bytes()),
        value => {
            let _ = write!(text, "{value}");
        }
    }
}

fn write_string(text: &mut String, bytes: &[u8]) {
    text.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                    let _ = write!(text, "\\u{:04x}", u32::from(character));
                }
                character => text.push(character),
            }
        }
        for _ in chunk.invalid() {
            text.push_str("\\ufffd");
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn decode(annotation: &str) -> String {
        let mut text = String::new();
        GzDecoder::new(&BASE64_NOPAD.decode(annotation.as_bytes()).unwrap()[..]).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn labels_are_those_that_k3s_gives_its_own_addons() {
        for (addon, hash) in [
            ("coredns", "bce283298811743a0386ab510f2f67ef74240c57"),
            ("local-storage", "183f35c65ffbc3064603f43f1580d8c68a2dabd4"),
            ("metrics-server-service", "a5d3bc601c871e123fa32b27f549b6ea770bcf4a"),
        ] {
            assert_eq!(ObjectSet::of(addon).selector(), format!("objectset.rio.cattle.io/hash={hash}"));
        }
    }

    /// As k3s left it on the Service of metrics-server.
    const APPLIED_BY_K3S: &str = "H4sIAAAAAAAA/4SQQWsbMRCF/0p5Z9nNep04FfRQWnopBUNKL6WHWe04VleWhGa8xZj970UbFxLaJCchvZn3vqczKPvvXMSnCIuxgcHgYw+LOy6jdwyDAyv1pAR7BsWYlNSnKPWaul/sVFiXxaelI9XAS5/e+uoA86yefkcui/txgMXQyiNlbMybLz727z/0fYqvWkQ6MGxFLN7JQriMXObjgf31bcnkqsVw7HghJ1E+YDII1HGYO1ahRFaWuujCUfRRhIWWY016Onbh+vqE6wWePckeFnTdt527uWrc7abhZtXuqF11q83uev2uu2HabK46t1tTJfxvdTy8P1NKMrtayefPdPDhtE3BuxMstoV3XD4dKdwpuQEGORUV2B/nvzl71SwXAXa9bg1ySZpcCrD49nELA6Vyz7qdJy4L008D4cBOU5l/81YWlPO/4NM0/QkAAP//sKxN444CAAA";

    #[test]
    fn what_was_applied_is_what_k3s_writes_byte_for_byte() {
        let mut service = object(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "metrics-server",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/name": "Metrics-server", "kubernetes.io/cluster-service": "true"},
            },
            "spec": {
                "ipFamilyPolicy": "PreferDualStack",
                "selector": {"k8s-app": "metrics-server"},
                "ports": [{"port": 443, "name": "https", "protocol": "TCP", "targetPort": "https"}],
            },
        }));
        ObjectSet::of("metrics-server-service").mark(&mut service);
        let annotations = service.metadata.annotations.unwrap();
        assert_eq!(decode(&annotations[APPLIED]), decode(APPLIED_BY_K3S));
        assert_eq!(annotations[OWNER_GVK], "k3s.cattle.io/v1, Kind=Addon");
        assert_eq!(annotations[ID], "");
    }

    #[test]
    fn long_texts_are_cut_as_go_cuts_them() {
        let text = format!("{}ä<&>", "x".repeat(63));
        let long = "y".repeat(70);
        let config = object(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"long": text, "list": [{"name": long, "other": long}, long], "mark": "<a & b>"},
        }));
        let x = "x".repeat(63);
        let y = "y".repeat(64);
        let expected = format!(
            "{{\"apiVersion\":\"v1\",\"data\":{{\"list\":[{{\"name\":\"{long}\",\"other\":\"{y}\"}},\"{long}\"],\
             \"long\":\"{x}\\ufffd\",\"mark\":\"\\u003ca \\u0026 b\\u003e\"}},\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"a\"}}}}"
        );
        assert_eq!(applied(&config), expected);
    }

    #[test]
    fn an_object_that_says_so_is_not_pruned() {
        let with = |metadata| serde_json::from_value::<ObjectMeta>(metadata).unwrap();
        assert!(may_be_pruned(&with(json!({"labels": {"a": "b"}}))));
        assert!(!may_be_pruned(&with(json!({"labels": {PRUNE: "false"}}))));
        assert!(!may_be_pruned(&with(json!({"annotations": {PRUNE: "false"}}))));
        assert!(may_be_pruned(&with(json!({"annotations": {PRUNE: "true"}}))));
    }
}
