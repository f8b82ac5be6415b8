//! Rulesets as they are written, for people to read.

use serde_json::{Value, json};

use super::{NODE, address, compiler, namespace, pod, policy};
use crate::{Event, Family, ObjectKey, REMOVE, ruleset::Id};

/// Two pods here, `web` and `db`, and one elsewhere, `client`.
fn events() -> Vec<Event> {
    vec![
        Event::Ranges(vec!["10.42.1.0/24".parse().unwrap()]),
        namespace("shop", json!({"team": "a"})),
        namespace("office", json!({"team": "b"})),
        pod(NODE, "shop/web", json!({"app": "web"}), &["10.42.1.2"]),
        pod(NODE, "shop/db", json!({"app": "db"}), &["10.42.1.3"]),
        pod("edge-2", "office/client", json!({"app": "client"}), &["10.42.2.2"]),
    ]
}

/// The rules of the one policy, and the elements of the sets that they name.
fn compiled(families: &[Family], spec: Value) -> Vec<String> {
    let mut compiler = compiler(families);
    events().into_iter().for_each(|event| compiler.apply(event));
    compiler.apply(policy("shop/p", spec));
    let text = compiler.whole().to_string();
    let lines = text.lines().filter_map(|line| {
        let rule = line.strip_prefix("add rule inet k3s-network-policy ");
        let rule = rule.filter(|rule| rule.contains("-policy-") && !rule.contains("jump"));
        let rule = rule.and_then(|rule| rule.split_once(' ')).map(|(_, rule)| rule.to_owned());
        let element = line.strip_prefix("add element inet k3s-network-policy ");
        let element = element.filter(|element| element.starts_with("peers") || element.starts_with("ports"));
        rule.or(element.map(str::to_owned))
    });
    lines.map(|line| without_ids(&line)).collect()
}

/// Names of sets without what tells them apart.
fn without_ids(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.rsplit_once('-') {
        Some((name, id)) if id.len() == 16 && id.chars().all(|c| c.is_ascii_hexdigit()) => name.to_owned(),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ").replace(" comment \"shop/p\"", "")
}

#[test]
fn rules_are_written_like_this() {
    let both: &[Family] = &[Family::V4, Family::V6];
    let only_v4: &[Family] = &[Family::V4];
    let ingress = |rule: Value| json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]});
    let egress = |rule: Value| json!({"policyTypes": ["Egress"], "egress": [rule]});
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16"]}});
    for (families, spec, expected) in [
        (both, ingress(json!({})), vec!["accept"]),
        (
            only_v4,
            ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]})),
            vec!["ip saddr @peers-v4 accept", "peers-v4 { 10.42.1.3 }"],
        ),
        (
            both,
            ingress(json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]})),
            vec!["ip saddr @peers-v4 accept", "ip6 saddr @peers-v6 accept", "peers-v4 { 10.42.2.2 }"],
        ),
        (
            only_v4,
            ingress(json!({"from": [{"namespaceSelector": {}, "podSelector": {}}], "ports": [{"port": 80}]})),
            vec!["ip saddr @peers-v4 tcp dport { 80 } accept", "peers-v4 { 10.42.1.2, 10.42.1.3, 10.42.2.2 }"],
        ),
        (
            only_v4,
            ingress(json!({"from": [block]})),
            vec!["ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16, 10.2.0.0/16 } accept"],
        ),
        (
            both,
            egress(json!({"to": [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}},
                {"ipBlock": {"cidr": "2001:db8::/32"}},
            ]})),
            vec!["meta nfproto ipv4 ip daddr != { 192.0.2.0/24 } accept", "ip6 daddr 2001:db8::/32 accept"],
        ),
        (only_v4, egress(json!({"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}]})), vec![]),
        (
            both,
            ingress(json!({"ports": [
                {"port": 53, "protocol": "UDP"}, {"port": 53}, {"port": 8000, "endPort": 8100},
                {"port": 8050, "endPort": 8200}, {"port": 8201}, {"protocol": "SCTP"}, {"port": 7, "protocol": "SCTP"},
            ]})),
            vec![
                "meta l4proto sctp accept",
                "tcp dport { 53, 8000-8201 } accept",
                "udp dport { 53 } accept",
                "sctp dport { 7 } accept",
            ],
        ),
        (
            both,
            ingress(json!({"ports": [{"port": "http"}, {"port": "dns", "protocol": "UDP"}]})),
            vec![
                "ip daddr . meta l4proto . th dport @ports-in-v4 accept",
                "ip6 daddr . meta l4proto . th dport @ports-in-v6 accept",
                "ip daddr . meta l4proto . th dport @ports-in-v4 accept",
                "ip6 daddr . meta l4proto . th dport @ports-in-v6 accept",
                "ports-in-v4 { 10.42.1.2 . udp . 5353, 10.42.1.3 . udp . 5353 }",
                "ports-in-v4 { 10.42.1.2 . tcp . 8080, 10.42.1.3 . tcp . 8080 }",
            ],
        ),
        (
            both,
            egress(json!({"to": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}], "ports": [{"port": "http"}]})),
            vec![
                "ip daddr @peers-v4 ip daddr . meta l4proto . th dport @ports-out-v4 accept",
                "ip6 daddr @peers-v6 ip6 daddr . meta l4proto . th dport @ports-out-v6 accept",
                "peers-v4 { 10.42.2.2 }",
                "ports-out-v4 { 10.42.1.2 . tcp . 8080, 10.42.1.3 . tcp . 8080, 10.42.2.2 . tcp . 8080 }",
            ],
        ),
        (only_v4, json!({"policyTypes": ["Ingress", "Egress"]}), vec![]),
    ] {
        let (mut found, mut expected) = (compiled(families, spec.clone()), expected);
        // Sets are sorted by what tells them apart.
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{spec}");
    }
}

#[test]
fn a_table_is_written_like_this() {
    let mut compiler = compiler(&[Family::V4]);
    events().into_iter().for_each(|event| compiler.apply(event));
    compiler.apply(policy("shop/p", json!({"podSelector": {"matchLabels": {"app": "web"}}})));
    let (pods, policy) = ("ingress-pods-P", format!("ingress-policy-{}", Id::of(&ObjectKey::new("shop", "p"))));
    let text = compiler.whole().to_string().replace(&policy, "ingress-policy-X");
    let group = text.split_once("goto ingress-pods-").unwrap().1.get(..16).unwrap().to_owned();
    let text = text.replace(&format!("ingress-pods-{group}"), pods);
    let neighbours = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, \
                      mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept";
    let expected = format!(
        r#"table inet T
delete table inet T
add table inet T
add map inet T ingress-verdicts-v4 {{ type ipv4_addr : verdict; }}
add map inet T egress-verdicts-v4 {{ type ipv4_addr : verdict; }}
add set inet T itself-v4 {{ type ipv4_addr . ipv4_addr; }}
add chain inet T egress-to-node {{ type filter hook input priority filter - 2; policy accept; }}
add chain inet T egress-forward {{ type filter hook forward priority filter - 2; policy accept; }}
add chain inet T ingress-forward {{ type filter hook forward priority filter - 1; policy accept; }}
add chain inet T ingress-pods-P
add chain inet T ingress-policy-X
add rule inet T egress-to-node ct state established,related accept
add rule inet T egress-to-node iifname "lo" accept
add rule inet T egress-to-node {neighbours}
add rule inet T egress-to-node iifname "cni0" ip6 saddr fe80::/10 drop
add rule inet T egress-to-node ip saddr . ip daddr @itself-v4 accept
add rule inet T egress-to-node ip saddr vmap @egress-verdicts-v4
add rule inet T egress-to-node ip saddr 10.42.1.0/24 drop comment "not a pod that is known"
add rule inet T egress-forward ct state established,related accept
add rule inet T egress-forward {neighbours}
add rule inet T egress-forward iifname "cni0" ip6 saddr fe80::/10 drop
add rule inet T egress-forward ip saddr . ip daddr @itself-v4 accept
add rule inet T egress-forward ip saddr vmap @egress-verdicts-v4
add rule inet T egress-forward ip saddr 10.42.1.0/24 drop comment "not a pod that is known"
add rule inet T ingress-forward ct state established,related accept
add rule inet T ingress-forward {neighbours}
add rule inet T ingress-forward ip saddr . ip daddr @itself-v4 accept
add rule inet T ingress-forward ip daddr vmap @ingress-verdicts-v4
add rule inet T ingress-forward ip daddr 10.42.1.0/24 drop comment "not a pod that is known"
add rule inet T ingress-pods-P jump ingress-policy-X comment "shop/p"
add rule inet T ingress-pods-P drop
add element inet T itself-v4 {{ 10.42.1.2 . 10.42.1.2, 10.42.1.3 . 10.42.1.3 }}
add element inet T ingress-verdicts-v4 {{ 10.42.1.2 : goto ingress-pods-P, 10.42.1.3 : accept }}
add element inet T egress-verdicts-v4 {{ 10.42.1.2 : accept, 10.42.1.3 : accept }}
"#
    );
    assert_eq!(text.replace("k3s-network-policy", "T"), expected);
}

#[test]
fn without_policies_there_is_no_table() {
    let mut compiler = compiler(&[Family::V4]);
    events().into_iter().for_each(|event| compiler.apply(event));
    assert_eq!(compiler.whole().to_string(), REMOVE);
    assert!(compiler.changes().is_none());
    compiler.apply(policy("shop/p", json!({})));
    assert!(compiler.changes().unwrap().to_string().starts_with("add table inet k3s-network-policy\nadd map"));
    compiler.apply(Event::Policy(ObjectKey::new("shop", "p"), None));
    assert_eq!(compiler.changes().unwrap().to_string(), REMOVE);
    assert!(compiler.changes().is_none());
}

#[test]
fn a_change_is_written_like_this() {
    let mut compiler = compiler(&[Family::V4]);
    events().into_iter().for_each(|event| compiler.apply(event));
    let from = |app: &str| json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]});
    compiler.apply(policy("shop/p", from("db")));
    compiler.changes();
    let mut text = |event: Event| {
        compiler.apply(event);
        let text = compiler.changes().map(|changes| changes.to_string()).unwrap_or_default();
        let lines = text.lines().map(|line| without_ids(line).replace(" inet k3s-network-policy", ""));
        lines.filter(|line| line != "add table").collect::<Vec<_>>()
    };
    // It is attached before the API tells its address, and looks like nobody until then.
    assert_eq!(text(pod(NODE, "shop/new", json!({"app": "db"}), &[])), [""; 0]);
    let new = || ObjectKey::new("shop", "new");
    assert_eq!(
        text(Event::Attached(new(), [address("10.42.1.9")].into())),
        [
            "add element itself-v4 { 10.42.1.9 . 10.42.1.9 }",
            "add element peers-v4 { 10.42.1.9 }",
            "add element ingress-verdicts-v4 { 10.42.1.9 : goto ingress-pods }",
            "add element egress-verdicts-v4 { 10.42.1.9 : accept }",
        ]
    );
    assert_eq!(text(pod(NODE, "shop/new", json!({"app": "db"}), &["10.42.1.9"])), [""; 0]);
    assert_eq!(text(pod(NODE, "shop/new", json!({}), &["10.42.1.9"])), ["delete element peers-v4 { 10.42.1.9 }"]);
    assert_eq!(
        text(policy("shop/p", from("web"))),
        [
            "add set peers-v4 { type ipv4_addr; }",
            "flush chain ingress-policy",
            "add rule ingress-policy ip saddr @peers-v4 accept",
            "add element peers-v4 { 10.42.1.2 }",
            "delete set peers-v4",
        ]
    );
    assert_eq!(
        text(Event::Pod(new(), None)),
        [
            "delete element ingress-verdicts-v4 { 10.42.1.9 }",
            "delete element egress-verdicts-v4 { 10.42.1.9 }",
            "delete element itself-v4 { 10.42.1.9 . 10.42.1.9 }",
        ]
    );
}
