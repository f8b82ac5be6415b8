//! Policies as the kernel enforces them, on a bridge with pods as kubelet's are, and a host outside.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use k3s_policy::{Compiler, Event, Family, ObjectKey, Options, Pod, Policy, TABLE};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Table,
    host::nftables_usable,
    test_namespace::{Namespace, in_namespace, sh},
};

/// Long enough for a busy machine, and only waited for where something comes.
const SOON: Duration = Duration::from_secs(20);

/// One node with two pods, and a host outside.
struct Node {
    compiler: Compiler,
    table: Table,
    web: Namespace,
    client: Namespace,
    outside: Namespace,
}

const WEB: [&str; 2] = ["10.42.1.2", "fd42:0:0:1::2"];
const CLIENT: [&str; 2] = ["10.42.1.3", "fd42:0:0:1::3"];
const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
/// The node's own on the bridge.
const NODE: [&str; 2] = ["10.42.1.1", "fd42:0:0:1::1"];

impl Node {
    async fn new() -> Self {
        let [web, client, outside] = [Namespace::new(), Namespace::new(), Namespace::new()];
        let attach = |name: &str, namespace: &Namespace, addresses: [&str; 2]| {
            let [v4, v6] = addresses;
            format!(
                "ip link add {name} type veth peer name eth0 netns {namespace}
                 ip link set {name} master cni0; ip link set {name} up
                 bridge link set dev {name} hairpin on
                 nsenter --net={namespace} sh -ec 'ip address add {v4}/24 dev eth0; ip address add {v6}/64 dev eth0 nodad
                     ip link set eth0 up; ip link set lo up; ip route add default via 10.42.1.1; ip route add default via fd42:0:0:1::1'\n"
            )
        };
        sh(&format!(
            "ip link add cni0 type bridge; ip link set cni0 up
             ip address add 10.42.1.1/24 dev cni0; ip address add fd42:0:0:1::1/64 dev cni0 nodad
             {}{}
             ip link add out type veth peer name eth0 netns {outside}
             ip address add 192.0.2.1/24 dev out; ip address add 2001:db8::1/64 dev out nodad; ip link set out up; ip link set lo up
             echo 1 > /proc/sys/net/ipv4/conf/all/forwarding; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables
             nsenter --net={outside} sh -ec 'ip address add 192.0.2.9/24 dev eth0; ip address add 2001:db8::9/64 dev eth0 nodad
                 ip link set eth0 up; ip link set lo up; ip route add default via 192.0.2.1; ip route add default via 2001:db8::1'",
            attach("web", &web, WEB),
            attach("client", &client, CLIENT),
        ))
        .await;
        let options =
            Options { node: "edge-1".into(), families: vec![Family::V4, Family::V6], bridge: crate::BRIDGE.into() };
        let mut node =
            Self { compiler: Compiler::new(options), table: Table::open(TABLE).unwrap(), web, client, outside };
        let ranges = vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()];
        node.compiler.apply(Event::Ranges(ranges));
        node.compiler.apply(Event::Namespace("default".into(), Some([("team".into(), "a".into())].into())));
        node.set(&[pod("web", WEB), pod("client", CLIENT)]).await;
        node
    }

    /// Applies what changes, and only that.
    async fn set(&mut self, events: &[Event]) {
        events.iter().for_each(|event| self.compiler.apply(event.clone()));
        if let Some(changes) = self.compiler.changes() {
            self.table.apply(&changes.to_string()).await.unwrap();
        }
        assert!(!self.table_differs().await, "what was changed step by step is what would be written at once");
    }

    /// Whether the kernel holds another table than the compiler would write.
    async fn table_differs(&mut self) -> bool {
        let list =
            "nft --handle list tables | grep -q k3s-network-policy || exit 0; nft list table inet k3s-network-policy";
        let is = sh(list).await;
        self.table.apply(&self.compiler.whole().to_string()).await.unwrap();
        sorted(&is) != sorted(&sh(list).await)
    }
}

/// Without the order of sets, chains and elements, which follows from when they were made.
fn sorted(list: &str) -> Vec<String> {
    let mut words: Vec<_> =
        list.split([' ', '\n', '\t', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    words.sort();
    words
}

fn pod(name: &str, addresses: [&str; 2]) -> Event {
    let ports = json!([{"name": "named", "containerPort": 7003, "protocol": "UDP"}]);
    let object = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "ports": ports}]},
        "status": {"podIPs": addresses.map(|address| json!({"ip": address}))},
    });
    Event::Pod(ObjectKey::new("default", name), Pod::of(&serde_json::from_value(object).unwrap()))
}

fn policy(spec: Value) -> Event {
    let object = json!({"metadata": {"namespace": "default", "name": "p"}, "spec": spec});
    let policy = Policy::of("default", &serde_json::from_value(object).unwrap()).unwrap();
    Event::Policy(ObjectKey::new("default", "p"), Some(policy))
}

fn no_policy() -> Event {
    Event::Policy(ObjectKey::new("default", "p"), None)
}

/// What reaches the pod `web`.
struct Receiver(UdpSocket);

impl Node {
    fn receiver(&self, address: &str, port: u16) -> Receiver {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let socket = self.web.run(|| Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap());
        // The one before may live on for a moment in a process that another test is about to start.
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Receiver(socket.into())
    }
}

impl Receiver {
    /// Whether a packet from `sender` comes before one that is sent after it from the node, which always comes.
    fn hears(&self, sender: &Namespace, from: &str) -> bool {
        let to = self.0.local_addr().unwrap();
        let bind = |address: &str| UdpSocket::bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        let sender = sender.run(|| bind(from));
        let node = bind(NODE[usize::from(to.is_ipv6())]);
        // Neighbours are found first: with the first packet that finds none, others would be held back.
        for text in ["first", "second"] {
            let _ = sender.send_to(text.as_bytes(), to);
        }
        node.send_to(b"node", to).unwrap();
        let mut heard = Vec::new();
        while heard.last().is_none_or(|text| text != "node") {
            let mut buffer = [0; 16];
            let (length, _) = self.0.recv_from(&mut buffer).expect("the node always reaches its pods");
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        heard.len() > 1
    }
}

fn test(run: impl AsyncFnOnce(Node) + Send + 'static) {
    in_namespace(async || {
        if let Err(reason) = nftables_usable().await {
            println!("skipped: {reason}");
            return;
        }
        if !std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
            println!("skipped: there is no br_netfilter here");
            return;
        }
        run(Node::new().await).await;
    });
}

/// Whether the client, the host outside and the node reach the first of these ports of `web`, by both families.
fn heard(node: &Node, port: u16) -> [bool; 4] {
    let [v4, v6] = WEB.map(|address| node.receiver(address, port));
    [
        v4.hears(&node.client, CLIENT[0]),
        v4.hears(&node.outside, OUTSIDE[0]),
        v6.hears(&node.client, CLIENT[1]),
        v6.hears(&node.outside, OUTSIDE[1]),
    ]
}

const ALL: [bool; 4] = [true; 4];
const NOBODY: [bool; 4] = [false; 4];
const CLIENT_ALONE: [bool; 4] = [true, false, true, false];
const OUTSIDE_ALONE: [bool; 4] = [false, true, false, true];

#[test]
fn pods_are_reached_as_policies_say() {
    test(async |mut node| {
        // Neighbours have been found before anything is asked of order.
        for _ in 0..2 {
            heard(&node, 7000);
        }
        assert_eq!(heard(&node, 7000), ALL);
        let web = json!({"matchLabels": {"app": "web"}});
        let ingress = |rule: Value| policy(json!({"podSelector": web, "ingress": [rule]}));
        let block = |cidr: &str, except: &[&str]| json!({"ipBlock": {"cidr": cidr, "except": except}});
        for (event, port, expected) in [
            (policy(json!({"podSelector": web})), 7000, NOBODY),
            (ingress(json!({})), 7000, ALL),
            (ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]})), 7000, CLIENT_ALONE),
            (ingress(json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]})), 7000, CLIENT_ALONE),
            (ingress(json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]})), 7000, NOBODY),
            (ingress(json!({"from": [block("192.0.2.0/24", &[]), block("2001:db8::/32", &[])]})), 7000, OUTSIDE_ALONE),
            (
                ingress(
                    json!({"from": [block("0.0.0.0/0", &["10.42.1.3/32", "10.42.0.0/20"]), block("::/0", &["fd42::/48"])]}),
                ),
                7000,
                OUTSIDE_ALONE,
            ),
            (ingress(json!({"ports": [{"port": 7000, "protocol": "UDP"}]})), 7000, ALL),
            (ingress(json!({"ports": [{"port": 7000}]})), 7000, NOBODY),
            (
                ingress(
                    json!({"ports": [{"port": 7001, "endPort": 7005, "protocol": "UDP"}, {"port": 7003, "protocol": "UDP"}]}),
                ),
                7004,
                ALL,
            ),
            (ingress(json!({"ports": [{"port": 7001, "endPort": 7005, "protocol": "UDP"}]})), 7006, NOBODY),
            (ingress(json!({"ports": [{"port": "named", "protocol": "UDP"}]})), 7003, ALL),
            (ingress(json!({"ports": [{"port": "named", "protocol": "UDP"}]})), 7004, NOBODY),
            (ingress(json!({"ports": [{"port": "named", "protocol": "TCP"}]})), 7003, NOBODY),
            (
                policy(json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]})),
                7000,
                OUTSIDE_ALONE,
            ),
            (
                policy(json!({"policyTypes": ["Egress"], "egress": [
                    {"to": [{"podSelector": web}], "ports": [{"port": "named", "protocol": "UDP"}]},
                ]})),
                7003,
                ALL,
            ),
            (
                policy(json!({"policyTypes": ["Egress"], "egress": [
                    {"to": [{"podSelector": web}], "ports": [{"port": "named", "protocol": "UDP"}]},
                ]})),
                7002,
                OUTSIDE_ALONE,
            ),
            (no_policy(), 7000, ALL),
        ] {
            let said = format!("{event:?}");
            node.set(&[event]).await;
            assert_eq!(heard(&node, port), expected, "{said}");
        }
        assert!(!node.table.exists().await.unwrap());
    });
}

#[test]
fn a_pod_is_closed_until_it_is_known_and_reaches_itself() {
    test(async |mut node| {
        for _ in 0..2 {
            heard(&node, 7000);
        }
        // A policy for nobody here: but an address that no known pod has may be anybody's.
        node.set(&[policy(json!({"podSelector": {"matchLabels": {"app": "none"}}}))]).await;
        assert_eq!(heard(&node, 7000), ALL);
        let web = || ObjectKey::new("default", "web");
        node.set(&[Event::Pod(web(), None)]).await;
        assert_eq!(heard(&node, 7000), NOBODY);
        let Event::Pod(_, Some(mut pod)) = pod("web", WEB) else { unreachable!() };
        pod.addresses.clear();
        node.set(&[Event::Pod(web(), Some(pod))]).await;
        assert_eq!(heard(&node, 7000), NOBODY, "the API does not know its address yet");
        let given = WEB.map(|address| address.parse::<IpAddr>().unwrap());
        node.set(&[Event::Attached(web(), given.into())]).await;
        assert_eq!(heard(&node, 7000), ALL);
        node.set(&[policy(json!({"policyTypes": ["Ingress", "Egress"]}))]).await;
        assert_eq!(heard(&node, 7000), NOBODY);
        // Through a Service of which it is the only pod: there and back over the bridge.
        sh("echo 'table ip services {
                chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.43.0.1 dnat to 10.42.1.2; }
                chain postrouting { type nat hook postrouting priority srcnat; ip saddr 10.42.1.2 ip daddr 10.42.1.2 masquerade; }
            }' | nft -f -")
        .await;
        let receiver = node.receiver(WEB[0], 7000);
        let sender = node.web.run(|| UdpSocket::bind((WEB[0].parse::<IpAddr>().unwrap(), 0)).unwrap());
        sender.send_to(b"itself", "10.43.0.1:7000").unwrap();
        receiver.0.recv_from(&mut [0; 16]).expect("a pod cannot be kept from itself");
    });
}

#[test]
fn a_pod_reaches_its_node_only_if_it_may() {
    test(async |mut node| {
        let receiver = Receiver(UdpSocket::bind("10.42.1.1:7000").unwrap());
        receiver.0.set_read_timeout(Some(SOON)).unwrap();
        assert!(receiver.hears(&node.client, CLIENT[0]));
        node.set(&[policy(json!({"policyTypes": ["Egress"]}))]).await;
        assert!(!receiver.hears(&node.client, CLIENT[0]));
        let block = json!({"ipBlock": {"cidr": "10.42.1.1/32"}});
        node.set(&[policy(json!({"policyTypes": ["Egress"], "egress": [{"to": [block]}]}))]).await;
        assert!(receiver.hears(&node.client, CLIENT[0]));
        // Answers to what the node asked are no matter of egress.
        node.set(&[policy(json!({"policyTypes": ["Egress"]}))]).await;
        let pod = node.client.run(|| UdpSocket::bind("10.42.1.3:7000").unwrap());
        pod.set_read_timeout(Some(SOON)).unwrap();
        let asker = UdpSocket::bind("10.42.1.1:0").unwrap();
        asker.set_read_timeout(Some(SOON)).unwrap();
        asker.send_to(b"question", "10.42.1.3:7000").unwrap();
        let (_, from) = pod.recv_from(&mut [0; 16]).unwrap();
        pod.send_to(b"answer", from).unwrap();
        asker.recv_from(&mut [0; 16]).expect("the answer");
    });
}

#[test]
fn sctp_ports_are_told_apart() {
    test(async |mut node| {
        for _ in 0..2 {
            heard(&node, 7000);
        }
        let port = |port: u16| json!({"ingress": [{"ports": [{"port": port, "protocol": "SCTP"}]}]});
        let raw = |address: &'static str| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SCTP))).unwrap();
            let address: IpAddr = address.parse().unwrap();
            socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket
        };
        let receiver = node.web.run(|| raw(WEB[0]));
        let sender = node.client.run(|| raw(CLIENT[0]));
        let web: SocketAddr = format!("{}:0", WEB[0]).parse().unwrap();
        let receive = || -> io::Result<u16> {
            let mut buffer = [0; 256];
            let _ = (&receiver).read(&mut buffer)?;
            // After the IP header and the source's port.
            Ok(u16::from_be_bytes([buffer[22], buffer[23]]))
        };
        // The second is sent after the first, and only one of them may come.
        for (open, closed) in [(36412, 36413), (36413, 36412)] {
            node.set(&[policy(port(open))]).await;
            for port in [closed, open] {
                sender.send_to(&init_chunk(port), &web.into()).unwrap();
            }
            assert_eq!(receive().unwrap(), open);
        }
    });
}

/// The protocol's number.
const SCTP: i32 = 132;

/// An association's first packet, to `port`.
fn init_chunk(port: u16) -> Vec<u8> {
    let mut packet = [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 8]].concat();
    // INIT, 20 bytes: tag, window, streams out and in, first number.
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    packet
}
