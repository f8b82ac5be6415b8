//! The manifests themselves and what is filled into them.

use std::net::IpAddr;

/// A manifest inside the program.
#[derive(Debug)]
pub(super) struct Packaged {
    /// Its path below the manifests folder.
    pub(super) path: &'static str,
    text: &'static str,
}

/// Every packaged manifest, in the order in which they are applied: by path, as k3s does.
pub(super) const PACKAGED: &[Packaged] = &[
    Packaged { path: "coredns.yaml", text: include_str!("../../../manifests/coredns.yaml") },
    Packaged { path: "rolebindings.yaml", text: include_str!("../../../manifests/rolebindings.yaml") },
    Packaged { path: "runtimes.yaml", text: include_str!("../../../manifests/runtimes.yaml") },
];

/// The values that k3s' manifests name as `%{NAME}%`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// Addresses of the DNS service, the primary first; at least one.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Where all packaged images come from instead of their own registry, without a slash at its end (`--system-default-registry`).
    pub system_default_registry: Option<String>,
    /// The image of coredns, with its registry.
    pub coredns_image: String,
}

impl Packaged {
    /// The manifest with its variables filled in.
    pub(super) fn render(&self, variables: &Variables) -> String {
        let dns = &variables.cluster_dns;
        let first_dns = dns.first().map(IpAddr::to_string).unwrap_or_default();
        let list = dns.iter().map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>().join(",");
        let values = [
            ("CLUSTER_DNS", first_dns),
            ("CLUSTER_DNS_LIST", format!("[{list}]")),
            ("CLUSTER_DNS_IPFAMILYPOLICY", if dns.len() > 1 { "RequireDualStack" } else { "SingleStack" }.into()),
            ("CLUSTER_DOMAIN", variables.cluster_domain.clone()),
            ("COREDNS_IMAGE", variables.image(&variables.coredns_image)),
        ];
        values
            .into_iter()
            .fold(self.text.to_owned(), |text, (name, value)| text.replace(&format!("%{{{name}}}%"), &value))
    }
}

impl Variables {
    /// `image` from where it is to come.
    fn image(&self, image: &str) -> String {
        let Some(registry) = &self.system_default_registry else { return image.to_owned() };
        let name = match image.split_once('/') {
            Some((host, name)) if host.contains(['.', ':']) || host == "localhost" => name,
            _ => image,
        };
        format!("{registry}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DynamicObject;

    use super::*;
    use crate::addons::manifest;

    fn variables() -> Variables {
        Variables {
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            system_default_registry: None,
            coredns_image: "docker.io/k3s-rs/coredns:1.15.0".into(),
        }
    }

    #[test]
    fn every_manifest_is_whole_and_sorted() {
        assert!(PACKAGED.is_sorted_by_key(|packaged| packaged.path));
        for packaged in PACKAGED {
            let text = packaged.render(&variables());
            assert!(!text.contains("%{"), "{} has an unknown variable", packaged.path);
            assert!(!manifest::parse(text.as_bytes()).unwrap().is_empty());
        }
    }

    #[test]
    fn variables_are_filled_in() {
        let coredns = |variables: &Variables| {
            let objects = manifest::parse(PACKAGED[0].render(variables).as_bytes()).unwrap();
            let find = |kind: &str| {
                let is_it = |object: &&DynamicObject| object.types.as_ref().is_some_and(|types| types.kind == kind);
                objects.iter().map(|found| &found.object).find(is_it).unwrap().data.clone()
            };
            let (service, deployment, config) = (find("Service"), find("Deployment"), find("ConfigMap"));
            let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone();
            (service["spec"].clone(), image, config["data"]["Corefile"].clone())
        };
        let (service, image, corefile) = coredns(&variables());
        assert_eq!(service["clusterIPs"], serde_json::json!(["10.43.0.10"]));
        assert_eq!(service["ipFamilyPolicy"], "SingleStack");
        assert_eq!(image, "docker.io/k3s-rs/coredns:1.15.0");
        assert!(corefile.as_str().unwrap().contains("kubernetes cluster.local in-addr.arpa"));

        let mut dual = variables();
        dual.cluster_dns.push("fd43::a".parse().unwrap());
        dual.system_default_registry = Some("registry.example:5000".into());
        let (service, image, _) = coredns(&dual);
        assert_eq!(service["clusterIPs"], serde_json::json!(["10.43.0.10", "fd43::a"]));
        assert_eq!(service["ipFamilyPolicy"], "RequireDualStack");
        assert_eq!(image, "registry.example:5000/k3s-rs/coredns:1.15.0");
    }
}
