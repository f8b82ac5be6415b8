//! `/v1-k3s/config`, as Go prints k3s' `config.Control`: what nodes have to know of their cluster, and what k3s tells beside that.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k3s_components::Paths;
use k3s_config::{
    args::ComponentArgs,
    datastore::{Datastore, OnDisk},
    network::ClusterNetwork,
    server::ServerConfig,
};
use k3s_supervisor_api::{ClusterDocument, IpNetDocument, PortRangeDocument};
use serde_json::{Value, json};

use crate::{Error, host::Host};

/// TLS 1.2 suites that k3s tells nodes to offer; those of 1.3 are not for choice.
const CIPHER_SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
];

/// The field with the version of Kubernetes, which k3s' servers do not have.
pub(crate) const VERSION: &str = "KubernetesVersion";

/// The document: what all servers of a cluster agree on, how this one is reached, and what it runs. `advertised` is where the API is published, `ipsec_psk` what is in `cred/ipsec.psk`, where there is one.
fn document(config: &ServerConfig, node_name: &str, advertised: IpAddr, ipsec_psk: &str) -> Value {
    let network = &config.network;
    let disabled: BTreeMap<&str, bool> = config.addons.disabled.iter().map(|name| (&**name, true)).collect();
    let apiserver_arg = |name| config.args.kube_apiserver.value_of(name);
    let suites: Vec<&str> = apiserver_arg("tls-cipher-suites")
        .map_or_else(|| CIPHER_SUITES.to_vec(), |list| list.split(',').map(str::trim).collect());
    let sans = config.tls_sans.iter().map(String::as_str).chain(["127.0.0.1", "::1", "localhost", node_name]);
    let cluster = ClusterDocument {
        cluster_ip_range: network.cluster_cidrs.first().map(IpNetDocument::from),
        cluster_ip_ranges: Some(ranges(&network.cluster_cidrs)),
        service_ip_range: network.service_cidrs.first().map(IpNetDocument::from),
        service_ip_ranges: Some(ranges(&network.service_cidrs)),
        service_node_port_range: port_range(network),
        cluster_dns: network.cluster_dns.first().copied(),
        cluster_dnss: Some(network.cluster_dns.clone()),
        cluster_domain: network.cluster_domain.clone(),
        flannel_backend: network.overlay.name().to_owned(),
        flannel_ipv6_masq: network.masquerade_ipv6,
        flannel_external_ip: network.overlay_external,
        egress_selector_mode: Some(config.egress_mode.name().to_owned()),
        disable_kube_proxy: config.disabled.kube_proxy,
        disable_npc: config.disabled.network_policy,
        disable_ccm: config.disabled.cloud_controller,
        disable_service_lb: disabled.contains_key("servicelb"),
        system_default_registry: Some(config.addons.system_default_registry.clone().unwrap_or_default()),
        supervisor_metrics: config.supervisor_metrics,
        min_tls_version: apiserver_arg("tls-min-version").unwrap_or_default().to_owned(),
        cipher_suites: Some(suites.into_iter().map(str::to_owned).collect()),
        supervisor_port: config.https_listen_port,
        https_port: config.https_listen_port,
    };
    let agreed = json!({
        "DisableHelmController": config.disabled.helm_controller,
        "EmbeddedRegistry": false,
        "EncryptSecrets": config.secrets_encryption,
    });
    let reached = json!({
        "AdvertiseIP": advertised,
        "AdvertisePort": config.advertise_port,
        "APIServerBindAddress": "127.0.0.1",
        "APIServerPort": config.apiserver_port(),
        "BindAddress": if config.bind_address.is_unspecified() { String::new() } else { config.bind_address.to_string() },
        "IPSECPSK": ipsec_psk,
        "JoinURL": "",
        "PrivateIP": "",
        "SANSecurity": true,
        "SANs": Vec::from_iter(sans),
        "ServerNodeName": node_name,
    });
    let run = json!({
        "ClusterInit": matches!(config.datastore.on_disk(), Some(OnDisk::Member(_))),
        "ClusterReset": false,
        "ClusterResetRestorePath": "",
        "DataDir": config.data_dir.join("server"),
        "DefaultLocalStoragePath": config.data_dir.join("storage"),
        "DisableAPIServer": config.disabled.apiserver,
        "DisableAgent": config.node.is_none(),
        "DisableControllerManager": config.disabled.controller_manager,
        "DisableETCD": matches!(config.datastore, Datastore::OtherMembers(_)),
        "DisableScheduler": config.disabled.scheduler,
        "Disables": disabled,
        "EnablePProf": false,
        "ExtraAPIArgs": args(&config.args.kube_apiserver),
        "ExtraCloudControllerArgs": null,
        "ExtraControllerArgs": args(&config.args.kube_controller_manager),
        "ExtraEtcdArgs": match config.datastore.on_disk() {
            Some(OnDisk::Member(etcd)) => args(&etcd.args),
            Some(OnDisk::Database(_)) | None => Value::Null,
        },
        "ExtraSchedulerAPIArgs": args(&config.args.kube_scheduler),
        "HelmJobImage": "",
        "KineTLS": false,
        "KubeConfigGroup": config.kubeconfig.group.as_deref().unwrap_or_default(),
        "KubeConfigMode": format!("{:04o}", config.kubeconfig.mode),
        "KubeConfigOutput": config.kubeconfig.path,
        "NoLeaderElect": !config.datastore.is_shared(),
        "Rootless": false,
        "ServiceLBNamespace": config.addons.service_lb_namespace,
        "Skips": disabled,
        "VLevel": config.verbosity,
        "VModule": "",
    });
    let cluster = serde_json::to_value(cluster).expect("it is texts, numbers and lists");
    let parts = [cluster, agreed, reached, run].into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(parts.flatten().collect())
}

/// The [`document`] of this server, which has the files at `paths`.
pub(crate) fn published(config: &ServerConfig, paths: &Paths, host: &Host, version: &str) -> Result<Value, Error> {
    let ipsec_psk = k3s_files::read(&paths.cred("ipsec.psk"))?.unwrap_or_default();
    let ipsec_psk = String::from_utf8_lossy(&ipsec_psk);
    let mut document = document(config, &host.name, host.advertised(config.published_at()), ipsec_psk.trim());
    document[VERSION] = version.into();
    Ok(document)
}

fn ranges(nets: &[IpNet]) -> Vec<IpNetDocument> {
    nets.iter().map(IpNetDocument::from).collect()
}

fn port_range(network: &ClusterNetwork) -> PortRangeDocument {
    let ports = network.node_ports;
    PortRangeDocument { base: ports.first, size: u32::from(ports.last - ports.first) + 1 }
}

/// Go prints an empty list that nobody made as null.
fn args(args: &ComponentArgs) -> Value {
    let given: Vec<String> = args.iter().map(ToString::to_string).collect();
    if given.is_empty() { Value::Null } else { given.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    fn told(args: &[&str]) -> Value {
        let config = config("pi", args);
        document(&config, "pi", [192, 0, 2, 1].into(), "psk")
    }

    #[test]
    fn every_key_that_k3s_publishes() {
        // k3s 1.36 on a machine called pi at 192.0.2.1, without a flag but what it says itself.
        let expected: Value = serde_json::from_str(
            r#"{
                "APIServerBindAddress": "127.0.0.1", "APIServerPort": 6444, "AdvertiseIP": "192.0.2.1",
                "AdvertisePort": 6443, "BindAddress": "", "ClusterDNS": "10.43.0.10", "ClusterDNSs": ["10.43.0.10"],
                "CipherSuites": [
                    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
                    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"
                ],
                "ClusterDomain": "cluster.local", "ClusterIPRange": {"IP": "10.42.0.0", "Mask": "//8AAA=="},
                "ClusterIPRanges": [{"IP": "10.42.0.0", "Mask": "//8AAA=="}], "ClusterInit": false,
                "ClusterReset": false, "ClusterResetRestorePath": "", "DataDir": "/var/lib/rancher/k3s/server",
                "DefaultLocalStoragePath": "/var/lib/rancher/k3s/storage", "DisableAPIServer": false,
                "DisableAgent": false, "DisableCCM": false, "DisableControllerManager": false, "DisableETCD": false,
                "DisableHelmController": false, "DisableKubeProxy": false, "DisableNPC": false,
                "DisableScheduler": false, "DisableServiceLB": true, "Disables": {"servicelb": true},
                "EgressSelectorMode": "agent", "EmbeddedRegistry": false, "EnablePProf": false,
                "EncryptSecrets": false, "ExtraAPIArgs": ["tls-min-version=VersionTLS13", "v+=2"],
                "ExtraCloudControllerArgs": null, "ExtraControllerArgs": null, "ExtraEtcdArgs": null,
                "ExtraSchedulerAPIArgs": null, "FlannelBackend": "vxlan", "FlannelExternalIP": false,
                "FlannelIPv6Masq": false, "HTTPSPort": 6443, "HelmJobImage": "", "IPSECPSK": "psk", "JoinURL": "",
                "KineTLS": false, "KubeConfigGroup": "", "KubeConfigMode": "0600",
                "KubeConfigOutput": "/etc/rancher/k3s/k3s.yaml", "MinTLSVersion": "VersionTLS13",
                "NoLeaderElect": true, "PrivateIP": "", "Rootless": false, "SANSecurity": true,
                "SANs": ["k3s.example", "127.0.0.1", "::1", "localhost", "pi"], "ServerNodeName": "pi",
                "ServiceIPRange": {"IP": "10.43.0.0", "Mask": "//8AAA=="},
                "ServiceIPRanges": [{"IP": "10.43.0.0", "Mask": "//8AAA=="}], "ServiceLBNamespace": "kube-system",
                "ServiceNodePortRange": {"Base": 30000, "Size": 2768}, "Skips": {"servicelb": true},
                "SupervisorMetrics": false, "SupervisorPort": 6443, "SystemDefaultRegistry": "", "VLevel": 0,
                "VModule": ""
            }"#,
        )
        .unwrap();
        let args = [
            "--disable=servicelb",
            "--tls-san=k3s.example",
            "--kube-apiserver-arg=tls-min-version=VersionTLS13",
            "--kube-apiserver-arg=v+=2",
        ];
        assert_eq!(told(&args), expected);
    }

    #[test]
    fn which_parts_a_server_runs() {
        let of = |args: &[&str]| {
            let told = told(args);
            ["DisableAPIServer", "DisableETCD", "APIServerPort"].map(|field| told[field].clone())
        };
        assert_eq!(of(&["--cluster-init"]), [json!(false), json!(false), json!(6444)]);
        let etcd_alone = ["--cluster-init", "--disable-apiserver", "--lb-server-port=7444"];
        assert_eq!(of(&etcd_alone), [json!(true), json!(false), json!(7444)]);
        let without_etcd = ["--disable-etcd", "--server=https://10.0.0.1:6443"];
        assert_eq!(of(&without_etcd), [json!(false), json!(true), json!(6444)]);
    }
}
