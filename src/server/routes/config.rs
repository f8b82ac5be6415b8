//! `/v1-k3s/config`: what nodes have to know of their server, as Go prints k3s' `config.Control`.

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use k3s_config::{args::ComponentArgs, network::ClusterNetwork, server::ServerConfig};
use serde_json::{Value, json};

/// TLS 1.2 suites that k3s tells nodes to offer; those of 1.3 are not for choice.
const CIPHER_SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
];

/// The document: what all servers of a cluster agree on, how this one is reached, and what it runs. `advertised` is where the API is published, `ipsec_psk` what is in `cred/ipsec.psk`, where there is one.
pub(crate) fn document(config: &ServerConfig, node_name: &str, advertised: IpAddr, ipsec_psk: &str) -> Value {
    let network = &config.network;
    let disabled: BTreeMap<&str, bool> = config.disabled_addons.iter().map(|addon| (addon.name(), true)).collect();
    let apiserver_arg = |name| config.args.kube_apiserver.value_of(name);
    let suites: Vec<&str> = apiserver_arg("tls-cipher-suites")
        .map_or_else(|| CIPHER_SUITES.to_vec(), |list| list.split(',').map(str::trim).collect());
    let sans = config.tls_sans.iter().map(String::as_str).chain(["127.0.0.1", "::1", "localhost", node_name]);
    let agreed = json!({
        "ClusterDNS": network.cluster_dns[0],
        "ClusterDNSs": network.cluster_dns,
        "ClusterDomain": network.cluster_domain,
        "ClusterIPRange": ip_net(&network.cluster_cidrs[0]),
        "ClusterIPRanges": ip_nets(&network.cluster_cidrs),
        "DisableCCM": config.disabled.cloud_controller,
        "DisableHelmController": config.disabled.helm_controller,
        "DisableNPC": config.disabled.network_policy,
        "DisableServiceLB": disabled.contains_key("servicelb"),
        "EgressSelectorMode": config.egress_mode.name(),
        "EmbeddedRegistry": false,
        "EncryptSecrets": false,
        "FlannelBackend": network.overlay.name(),
        "FlannelExternalIP": network.overlay_external,
        "FlannelIPv6Masq": network.masquerade_ipv6,
        "ServiceIPRange": ip_net(&network.service_cidrs[0]),
        "ServiceIPRanges": ip_nets(&network.service_cidrs),
        "SupervisorMetrics": config.supervisor_metrics,
    });
    let reached = json!({
        "AdvertiseIP": advertised,
        "AdvertisePort": config.advertise_port,
        "APIServerBindAddress": "127.0.0.1",
        "APIServerPort": config.apiserver_port(),
        "BindAddress": if config.bind_address.is_unspecified() { String::new() } else { config.bind_address.to_string() },
        "CipherSuites": suites,
        "HTTPSPort": config.https_listen_port,
        "IPSECPSK": ipsec_psk,
        "JoinURL": "",
        "MinTLSVersion": apiserver_arg("tls-min-version").unwrap_or_default(),
        "PrivateIP": "",
        "SANSecurity": true,
        "SANs": Vec::from_iter(sans),
        "ServerNodeName": node_name,
        "ServiceNodePortRange": port_range(network),
        "SupervisorPort": config.https_listen_port,
        "SystemDefaultRegistry": config.system_default_registry.as_deref().unwrap_or_default(),
    });
    let run = json!({
        "ClusterInit": false,
        "ClusterReset": false,
        "ClusterResetRestorePath": "",
        "DataDir": config.data_dir.join("server"),
        "DefaultLocalStoragePath": "",
        "DisableAPIServer": false,
        "DisableAgent": config.node.is_none(),
        "DisableControllerManager": config.disabled.controller_manager,
        "DisableETCD": false,
        "DisableKubeProxy": config.disabled.kube_proxy,
        "DisableScheduler": config.disabled.scheduler,
        "Disables": disabled,
        "EnablePProf": false,
        "ExtraAPIArgs": args(&config.args.kube_apiserver),
        "ExtraCloudControllerArgs": null,
        "ExtraControllerArgs": args(&config.args.kube_controller_manager),
        "ExtraEtcdArgs": null,
        "ExtraSchedulerAPIArgs": args(&config.args.kube_scheduler),
        "HelmJobImage": "",
        "KineTLS": false,
        "KubeConfigGroup": config.kubeconfig.group.as_deref().unwrap_or_default(),
        "KubeConfigMode": format!("{:04o}", config.kubeconfig.mode),
        "KubeConfigOutput": config.kubeconfig.path,
        "NoLeaderElect": true,
        "Rootless": false,
        "ServiceLBNamespace": "kube-system",
        "Skips": disabled,
        "VLevel": config.verbosity,
        "VModule": "",
    });
    let parts = [agreed, reached, run].into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(parts.flatten().collect())
}

/// Go's `net.IPNet`: the mask is bytes, and bytes are base64.
fn ip_net(net: &IpNet) -> Value {
    let mask = match net.netmask() {
        IpAddr::V4(mask) => STANDARD.encode(mask.octets()),
        IpAddr::V6(mask) => STANDARD.encode(mask.octets()),
    };
    json!({"IP": net.network(), "Mask": mask})
}

fn ip_nets(nets: &[IpNet]) -> Value {
    nets.iter().map(ip_net).collect()
}

/// apimachinery's `PortRange`.
fn port_range(network: &ClusterNetwork) -> Value {
    let ports = network.node_ports;
    json!({"Base": ports.first, "Size": u32::from(ports.last - ports.first) + 1})
}

/// Go prints an empty list that nobody made as null.
fn args(args: &ComponentArgs) -> Value {
    let given: Vec<String> = args.iter().map(ToString::to_string).collect();
    if given.is_empty() { Value::Null } else { given.into() }
}
