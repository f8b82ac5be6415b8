//! What only the node knows of itself, for its object in the API.

use aws_lc_rs::digest;
use data_encoding::BASE32;
use k3s_components::Node;
use k3s_config::Provenance;
use k3s_controllers::{NodeAddresses, NodeArguments, NodeMetadata};

/// Labels, addresses and arguments, as k3s annotates them.
pub(crate) fn metadata(node: &Node, former_labels: Vec<String>, pod_egress: bool) -> NodeMetadata {
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
        former_labels,
        pod_egress,
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
    let hash = BASE32.encode(digest::digest(&digest::SHA256, format!("{args}{env}").as_bytes()).as_ref());
    NodeArguments { args, env, hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_over_both_texts() {
        let provenance = Provenance { args: vec!["server".into()], ..Provenance::default() };
        let arguments = arguments(&provenance);
        assert_eq!((arguments.args.as_str(), arguments.env.as_str()), ("[\"server\"]", "{}"));
        assert_eq!(arguments.hash.len(), 56);
        assert!(arguments.hash.ends_with("===="));
    }
}
