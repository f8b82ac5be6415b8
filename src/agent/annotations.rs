//! What only the node knows of itself, for its object in the API.

use aws_lc_rs::digest;
use k3s_components::Node;
use k3s_config::Provenance;
use k3s_controllers::{NodeAddresses, NodeArguments, NodeMetadata};

/// Labels, addresses and arguments, as k3s annotates them.
pub(crate) fn metadata(node: &Node, leads_to_pods: bool) -> NodeMetadata {
    let config = &node.config;
    let addresses = node.cloud_provider_external.then(|| NodeAddresses {
        internal_ips: node.ips.clone(),
        external_ips: config.external_ips.clone(),
        internal_dns: config.internal_dns.clone(),
        external_dns: config.external_dns.clone(),
        hostname: hostname(&config.name),
    });
    NodeMetadata {
        labels: config.labels.clone(),
        leads_to_pods,
        addresses,
        arguments: Some(arguments(&config.provenance)),
    }
}

/// The host's name, unless it says nothing: k3s' rule for the annotation.
fn hostname(node: &str) -> String {
    let own = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if own.is_empty() || own.contains("localhost") { node.to_owned() } else { own }
}

fn arguments(provenance: &Provenance) -> NodeArguments {
    let args = serde_json::Value::from(provenance.args.clone()).to_string();
    let env = serde_json::Value::from_iter(provenance.variables.clone()).to_string();
    let hash = base32(digest::digest(&digest::SHA256, format!("{args}{env}").as_bytes()).as_ref());
    NodeArguments { args, env, hash }
}

/// RFC 4648, with padding: what Go's `base32.StdEncoding` writes.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::new();
    for group in bytes.chunks(5) {
        let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte)) << (8 * (5 - group.len()));
        let digits = (group.len() * 8).div_ceil(5);
        text.extend((0..8).map(|place| {
            if place < digits { char::from(ALPHABET[(bits >> (35 - 5 * place)) as usize & 31]) } else { '=' }
        }));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_that_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "MY======"), ("foo", "MZXW6==="), ("fooba", "MZXW6YTB"), ("foobar", "MZXW6YTBOI======")]
        {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_hash_is_over_both_texts() {
        let provenance = Provenance { args: vec!["server".into()], ..Provenance::default() };
        let arguments = arguments(&provenance);
        assert_eq!((arguments.args.as_str(), arguments.env.as_str()), ("[\"server\"]", "{}"));
        assert_eq!(arguments.hash.len(), 56);
        assert!(arguments.hash.ends_with("===="));
    }
}
