//! The manifests themselves and what is filled into them.

use std::{net::IpAddr, path::PathBuf};

use serde_json::Value;

/// What the name of an image stands after.
const IMAGE: &str = "%{IMAGE:";
/// What the name of a chart's archive stands after.
const CHARTS: &str = "/static/charts/";

/// A manifest inside the program.
#[derive(Debug)]
pub(super) struct Packaged {
    /// Its path below the manifests folder.
    pub(super) path: &'static str,
    text: &'static str,
}

/// Every packaged manifest, in the order in which they are applied: by path, as k3s does. `build.rs` lists what is below `manifests/`.
pub(super) const PACKAGED: &[Packaged] = include!(concat!(env!("OUT_DIR"), "/packaged.rs"));

/// The values that k3s' manifests name as `%{NAME}%`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// Addresses of the DNS service, the primary first; at least one.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Where all packaged images come from instead of their own registry, without a slash at its end (`--system-default-registry`).
    pub system_default_registry: Option<String>,
    /// Where nodes keep local volumes (`--default-local-storage-path`).
    pub local_storage: PathBuf,
    /// By which of its addresses a node is asked for its metrics, the best first.
    pub preferred_address_types: &'static str,
}

impl Packaged {
    /// The manifest with its variables filled in. `%{IMAGE:name}%` stands for the image that is declared by that name.
    pub(super) fn render(&self, variables: &Variables) -> String {
        let dns = &variables.cluster_dns;
        let first_dns = dns.first().map(IpAddr::to_string).unwrap_or_default();
        let list = dns.iter().map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>().join(",");
        let values = [
            ("CLUSTER_DNS", first_dns),
            ("CLUSTER_DNS_LIST", format!("[{list}]")),
            ("CLUSTER_DNS_IPFAMILYPOLICY", if dns.len() > 1 { "RequireDualStack" } else { "SingleStack" }.into()),
            ("CLUSTER_DOMAIN", variables.cluster_domain.clone()),
            ("DEFAULT_LOCAL_STORAGE_PATH", variables.local_storage_in_json()),
            ("PREFERRED_ADDRESS_TYPES", variables.preferred_address_types.to_owned()),
            ("SYSTEM_DEFAULT_REGISTRY_RAW", variables.system_default_registry.clone().unwrap_or_default()),
        ];
        let text = values
            .into_iter()
            .fold(self.text.to_owned(), |text, (name, value)| text.replace(&format!("%{{{name}}}%"), &value));
        variables.fill_in_images(&text)
    }

    /// The archives of the package's charts that it names.
    pub(super) fn charts(&self) -> impl Iterator<Item = &'static str> {
        self.text.split(CHARTS).skip(1).filter_map(|text| text.split_whitespace().next())
    }
}

impl Variables {
    /// As it stands between the quotation marks of a document in JSON, whatever it is made of.
    fn local_storage_in_json(&self) -> String {
        let quoted = Value::from(self.local_storage.to_string_lossy()).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    }

    fn fill_in_images(&self, text: &str) -> String {
        let mut parts = text.split(IMAGE);
        let mut filled = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            match part.split_once("}%").and_then(|(name, rest)| Some((k3s_images::named(name)?, rest))) {
                Some((image, rest)) => filled.extend([&self.image(image), rest]),
                None => filled.extend([IMAGE, part]),
            }
        }
        filled
    }

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
            local_storage: "/data/storage".into(),
            preferred_address_types: "InternalIP,ExternalIP,Hostname",
        }
    }

    #[test]
    fn every_manifest_is_whole_and_sorted() {
        assert!(PACKAGED.is_sorted_by_key(|packaged| packaged.path));
        for packaged in PACKAGED {
            let text = packaged.render(&variables());
            // The Helm controller's.
            let text = text.replace("%{KUBERNETES_API}%", "127.0.0.1:6443");
            assert!(!text.contains("%{"), "{} has an unknown variable", packaged.path);
            assert!(!manifest::parse(text.as_bytes()).unwrap().is_empty());
        }
    }

    fn text(path: &str, variables: &Variables) -> String {
        PACKAGED.iter().find(|packaged| packaged.path == path).unwrap().render(variables)
    }

    #[test]
    fn volumes_are_kept_where_the_server_was_told() {
        let mut variables = variables();
        variables.local_storage = r#"/srv/"a" \ b"#.into();
        let objects = manifest::parse(text("local-storage.yaml", &variables).as_bytes()).unwrap();
        let config = objects
            .iter()
            .map(|found| &found.object)
            .find(|object| object.metadata.name.as_deref() == Some("local-path-config"));
        let data = &config.unwrap().data["data"];
        let map: Value = serde_json::from_str(data["config.json"].as_str().unwrap()).unwrap();
        assert_eq!(map["nodePathMap"][0]["paths"], serde_json::json!([r#"/srv/"a" \ b"#]));
        assert!(data["helperPod.yaml"].as_str().unwrap().contains(k3s_images::LOCAL_PATH_PROVISIONER));
    }

    #[test]
    fn metrics_are_asked_for_where_nodes_reach_each_other() {
        let deployment = |variables: &Variables| text("metrics-server/metrics-server-deployment.yaml", variables);
        assert!(deployment(&variables()).contains("=InternalIP,ExternalIP,Hostname\n"));
        assert!(
            deployment(&Variables { preferred_address_types: "ExternalIP,InternalIP,Hostname", ..variables() })
                .contains("=ExternalIP,InternalIP,Hostname\n")
        );
    }

    #[test]
    fn variables_are_filled_in() {
        let coredns = |variables: &Variables| {
            let objects = manifest::parse(text("coredns.yaml", variables).as_bytes()).unwrap();
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
        assert_eq!(image, k3s_images::COREDNS);
        assert!(corefile.as_str().unwrap().contains("kubernetes cluster.local in-addr.arpa"));

        let mut dual = variables();
        dual.cluster_dns.push("fd43::a".parse().unwrap());
        dual.system_default_registry = Some("registry.example:5000".into());
        let (service, image, _) = coredns(&dual);
        assert_eq!(service["clusterIPs"], serde_json::json!(["10.43.0.10", "fd43::a"]));
        assert_eq!(service["ipFamilyPolicy"], "RequireDualStack");
        assert_eq!(image, k3s_images::COREDNS.replace("docker.io", "registry.example:5000"));
    }
}
