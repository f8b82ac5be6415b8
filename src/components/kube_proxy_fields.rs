//! kube-proxy's flags as fields of its configuration file (`KubeProxyConfiguration`): beside one it takes no other flags, and says nothing.

use serde_json::{Map, Value};

/// How a flag's text stands in the file.
#[derive(Debug, Clone, Copy)]
enum Form {
    Text,
    Number,
    Switch,
    List,
    /// `a=true,b=false`
    Switches,
}

use Form::{List, Number, Switch, Switches, Text};

/// A flag, its fields with dots between their parts, and their form. Others stay flags.
const FIELDS: [(&str, &[&str], Form); 38] = [
    ("bind-address", &["bindAddress"], Text),
    ("bind-address-hard-fail", &["bindAddressHardFail"], Switch),
    ("cluster-cidr", &["clusterCIDR"], Text),
    ("config-sync-period", &["configSyncPeriod"], Text),
    ("conntrack-max-per-core", &["conntrack.maxPerCore"], Number),
    ("conntrack-min", &["conntrack.min"], Number),
    ("conntrack-tcp-be-liberal", &["conntrack.tcpBeLiberal"], Switch),
    ("conntrack-tcp-timeout-close-wait", &["conntrack.tcpCloseWaitTimeout"], Text),
    ("conntrack-tcp-timeout-established", &["conntrack.tcpEstablishedTimeout"], Text),
    ("conntrack-udp-timeout", &["conntrack.udpTimeout"], Text),
    ("conntrack-udp-timeout-stream", &["conntrack.udpStreamTimeout"], Text),
    ("detect-local-mode", &["detectLocalMode"], Text),
    ("feature-gates", &["featureGates"], Switches),
    ("healthz-bind-address", &["healthzBindAddress"], Text),
    ("iptables-localhost-nodeports", &["iptables.localhostNodePorts"], Switch),
    ("iptables-masquerade-bit", &["iptables.masqueradeBit", "nftables.masqueradeBit"], Number),
    ("iptables-min-sync-period", &["iptables.minSyncPeriod", "nftables.minSyncPeriod"], Text),
    ("iptables-sync-period", &["iptables.syncPeriod", "nftables.syncPeriod"], Text),
    ("ipvs-exclude-cidrs", &["ipvs.excludeCIDRs"], List),
    ("ipvs-min-sync-period", &["ipvs.minSyncPeriod"], Text),
    ("ipvs-scheduler", &["ipvs.scheduler"], Text),
    ("ipvs-strict-arp", &["ipvs.strictARP"], Switch),
    ("ipvs-sync-period", &["ipvs.syncPeriod"], Text),
    ("ipvs-tcp-timeout", &["ipvs.tcpTimeout"], Text),
    ("ipvs-tcpfin-timeout", &["ipvs.tcpFinTimeout"], Text),
    ("ipvs-udp-timeout", &["ipvs.udpTimeout"], Text),
    ("kube-api-burst", &["clientConnection.burst"], Number),
    ("kube-api-content-type", &["clientConnection.contentType"], Text),
    ("kube-api-qps", &["clientConnection.qps"], Number),
    ("kubeconfig", &["clientConnection.kubeconfig"], Text),
    ("masquerade-all", &["iptables.masqueradeAll", "nftables.masqueradeAll"], Switch),
    ("metrics-bind-address", &["metricsBindAddress"], Text),
    ("nodeport-addresses", &["nodePortAddresses"], List),
    ("oom-score-adj", &["oomScoreAdj"], Number),
    ("pod-bridge-interface", &["detectLocal.bridgeInterface"], Text),
    ("pod-interface-name-prefix", &["detectLocal.interfaceNamePrefix"], Text),
    ("profiling", &["enableProfiling"], Switch),
    ("proxy-mode", &["mode"], Text),
];

/// Whether the flag called `name` has a field.
pub(crate) fn is_field(name: &str) -> bool {
    field(name).is_some()
}

/// Writes what the flag says into `config`. A text that is none of its form stays one, for kube-proxy to refuse.
pub(crate) fn set(config: &mut Value, name: &str, text: &str) {
    let Some((_, paths, form)) = field(name) else { return };
    for path in *paths {
        let mut at = &mut *config;
        for part in path.split('.') {
            at = &mut at[part];
        }
        *at = form.value(text);
    }
}

fn field(name: &str) -> Option<&'static (&'static str, &'static [&'static str], Form)> {
    FIELDS.iter().find(|(flag, ..)| *flag == name)
}

impl Form {
    fn value(self, text: &str) -> Value {
        let parsed = match self {
            Text => None,
            Number => serde_json::from_str(text).ok().filter(Value::is_number),
            Switch => text.parse().ok().map(Value::Bool),
            List => Some(text.split(',').map(Value::from).collect()),
            Switches => {
                let switch = |item: &str| {
                    let (name, on) = item.split_once('=')?;
                    Some((name.to_owned(), Value::Bool(on.parse().ok()?)))
                };
                text.split(',').map(switch).collect::<Option<Map<_, _>>>().map(Value::Object)
            }
        };
        parsed.unwrap_or_else(|| text.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_become_fields_of_their_form() {
        let mut config = json!({"kind": "KubeProxyConfiguration"});
        for (name, text) in [
            ("proxy-mode", "iptables"),
            ("conntrack-max-per-core", "0"),
            ("kube-api-qps", "7.5"),
            ("masquerade-all", "true"),
            ("nodeport-addresses", "10.0.0.0/8,primary"),
            ("feature-gates", "A=true,B=false"),
            ("oom-score-adj", "low"),
            ("hostname-override", "edge"),
        ] {
            set(&mut config, name, text);
        }
        assert_eq!(
            config,
            json!({
                "kind": "KubeProxyConfiguration",
                "mode": "iptables",
                "conntrack": {"maxPerCore": 0},
                "clientConnection": {"qps": 7.5},
                "iptables": {"masqueradeAll": true},
                "nftables": {"masqueradeAll": true},
                "nodePortAddresses": ["10.0.0.0/8", "primary"],
                "featureGates": {"A": true, "B": false},
                "oomScoreAdj": "low",
            })
        );
        assert!(!is_field("hostname-override") && !is_field("v") && !is_field("config"));
    }
}
