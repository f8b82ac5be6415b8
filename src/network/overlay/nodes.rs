//! Nodes on one wire, each a network namespace with a pod in another, made to reach each other.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ipnet::IpNet;

use super::*;
use crate::{
    host::{ProxyMode, nftables_usable},
    nat::{NatRules, PodNat},
    test_namespace::{Namespace, in_namespace, sh},
};

const CLUSTER: [&str; 2] = ["10.42.0.0/16", "fd42::/48"];

/// A node and its one pod.
struct Node {
    number: u8,
    /// Of the addresses of the node itself: 10.9.0.N and fd09::N at first.
    host: u8,
    namespace: Namespace,
    pod: Namespace,
}

/// Lays the wire into the test's own namespace.
async fn wire() {
    sh("ip link add wire type bridge; ip link set wire up").await;
}

impl Node {
    async fn plug(number: u8) -> Self {
        let node = Self { number, host: number, namespace: Namespace::new(), pod: Namespace::new() };
        let Self { namespace, pod, .. } = &node;
        sh(&format!(
            "ip link add node{number} type veth peer name eth0 netns {namespace}
             ip link set node{number} master wire up"
        ))
        .await;
        // Packets that come in elsewhere than the answer would leave by are dropped: the strictest hosts do so.
        node.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/default/rp_filter
             echo 1 > /proc/sys/net/ipv4/conf/all/forwarding; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             ip link set lo up; ip link set eth0 up
             ip address add 10.9.0.{number}/24 dev eth0; ip address add fd09::{number}/64 dev eth0 nodad
             ip link add cni0 type veth peer name eth0 netns {pod}
             ip link set cni0 up
             ip address add 10.42.{number}.1/24 dev cni0; ip address add fd42:0:0:{number}::1/64 dev cni0 nodad
             nsenter --net={pod} sh -ec 'ip link set lo up; ip link set eth0 up
                 ip address add 10.42.{number}.5/24 dev eth0; ip address add fd42:0:0:{number}::5/64 dev eth0 nodad
                 ip route add default via 10.42.{number}.1; ip route add default via fd42:0:0:{number}::1'"
        ))
        .await;
        node
    }

    async fn sh(&self, script: &str) -> String {
        sh(&format!("nsenter --net={} sh -ec '{}'", self.namespace, script.replace('\'', r"'\''"))).await
    }

    fn overlay(&self, backend: Backend) -> Overlay {
        let underlays = [Family::V4, Family::V6].map(|family| {
            let address: IpAddr = match family {
                Family::V4 => format!("10.9.0.{}", self.host).parse().unwrap(),
                Family::V6 => format!("fd09::{}", self.host).parse().unwrap(),
            };
            self.run(async || Underlay::of_address(address).await.unwrap())
        });
        Overlay {
            backend,
            node: format!("node{}", self.number),
            cluster_cidrs: CLUSTER.map(|cidr| cidr.parse().unwrap()).to_vec(),
            pod_cidrs: self.pod_cidrs(),
            underlays: underlays.to_vec(),
        }
    }

    fn pod_cidrs(&self) -> Vec<IpNet> {
        let n = self.number;
        [format!("10.42.{n}.0/24"), format!("fd42:0:0:{n}::/64")].map(|cidr| cidr.parse().unwrap()).to_vec()
    }

    /// What a start of k3s does, and what the API then shows of this node. `None` where the kernel has no VXLAN.
    fn attach(&self, backend: Backend) -> Option<(Attachment, Member)> {
        let overlay = self.overlay(backend);
        let attachment = match self.run(async || overlay.attach().await) {
            Err(OverlayError::Unsupported) => {
                println!("skipped: this kernel has no VXLAN");
                return None;
            }
            attached => attached.unwrap(),
        };
        let written = annotations(&attachment.endpoints(), &[], &Default::default());
        let annotations = written.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Some((attachment, Member { name: overlay.node, pod_cidrs: self.pod_cidrs(), annotations }))
    }

    fn reconcile(&self, attachment: &Attachment, members: &[Member]) -> Vec<PeerError> {
        self.run(async || attachment.reconcile(members).await.unwrap())
    }

    /// Does `work` in the node's namespace.
    fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    /// Sends a datagram from `source`, an address of this node's pod, to the pod of `other`, and tells the source that the other saw.
    fn source_seen_by(&self, other: &Self, source: IpAddr) -> io::Result<IpAddr> {
        let to = if source.is_ipv4() {
            format!("10.42.{}.5", other.number)
        } else {
            format!("fd42:0:0:{}::5", other.number)
        };
        let receiver = other.pod.run(|| UdpSocket::bind((to.as_str(), 0)))?;
        receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
        self.pod.run(|| UdpSocket::bind((source, 0)))?.send_to(b"hello", receiver.local_addr()?)?;
        Ok(receiver.recv_from(&mut [0; 8])?.1.ip())
    }

    /// Whether this node's pod reaches that of `other` in both families, and is seen as itself.
    fn reaches(&self, other: &Self) -> bool {
        let own = [format!("10.42.{}.5", self.number), format!("fd42:0:0:{}::5", self.number)];
        own.map(|own| own.parse().unwrap())
            .iter()
            .all(|own| self.source_seen_by(other, *own).is_ok_and(|seen| seen == *own))
    }

    /// Everything the kernel was told.
    async fn tables(&self) -> String {
        self.sh(
            "ip -4 route; ip -6 route | grep -v expires; ip neighbour | grep PERMANENT || true; bridge fdb show | grep flannel || true",
        )
        .await
    }
}

/// Lets each node know all of them.
fn meet(nodes: &[(&Node, &Attachment)], members: &[Member]) {
    for (node, attachment) in nodes {
        assert_eq!(node.reconcile(attachment, members), [], "node{}", node.number);
    }
}

#[test]
fn pods_reach_each_other_under_their_own_addresses() {
    for (backend, mtu) in [(Backend::Vxlan, 1430), (Backend::HostGw, 1500)] {
        in_namespace(async move || {
            wire().await;
            let (one, two) = (Node::plug(1).await, Node::plug(2).await);
            let Some((at_one, member_one)) = one.attach(backend) else { return };
            let Some((at_two, member_two)) = two.attach(backend) else { return };
            meet(&[(&one, &at_one), (&two, &at_two)], &[member_one, member_two]);
            assert_eq!(at_one.mtu(), mtu);
            assert!(one.reaches(&two) && two.reaches(&one), "{backend}: {}", one.tables().await);
            if one.run(async || nftables_usable().await).is_err() {
                return println!("skipped: no NAT here");
            }
            for node in [&one, &two] {
                let cluster_cidrs = CLUSTER.map(|cidr| cidr.parse().unwrap()).to_vec();
                let nat = PodNat { pod_cidrs: node.pod_cidrs(), cluster_cidrs };
                node.run(async || NatRules::new(ProxyMode::Nftables).set(nat).await.unwrap());
            }
            assert!(one.reaches(&two) && two.reaches(&one), "{backend}: behind NAT");
        });
    }
}

#[test]
fn nodes_come_and_go_and_the_others_notice_nothing() {
    in_namespace(async || {
        wire().await;
        let (one, two, three) = (Node::plug(1).await, Node::plug(2).await, Node::plug(3).await);
        let Some((at_one, member_one)) = one.attach(Backend::Vxlan) else { return };
        let Some((at_two, member_two)) = two.attach(Backend::Vxlan) else { return };
        let Some((at_three, member_three)) = three.attach(Backend::Vxlan) else { return };
        let both = [member_one.clone(), member_two.clone()];
        let all = [member_one, member_two, member_three];

        meet(&[(&one, &at_one), (&two, &at_two)], &both);
        let before = one.tables().await;
        meet(&[(&one, &at_one), (&two, &at_two), (&three, &at_three)], &all);
        for (from, to) in [(&one, &two), (&one, &three), (&three, &two)] {
            assert!(from.reaches(to), "{} to {}", from.number, to.number);
        }
        for line in before.lines() {
            assert!(one.tables().await.contains(line), "{line} has to stay");
        }
        assert!(one.tables().await.contains("10.42.3.0/24 via 10.42.3.0 dev flannel.1"));

        meet(&[(&one, &at_one), (&two, &at_two)], &both);
        assert_eq!(one.tables().await, before, "nothing is left of the third node");
        assert!(one.reaches(&two));
    });
}

#[test]
fn a_restart_of_the_process_changes_nothing() {
    in_namespace(async || {
        wire().await;
        let (one, two) = (Node::plug(1).await, Node::plug(2).await);
        let Some((at_one, member_one)) = one.attach(Backend::Vxlan) else { return };
        let Some((at_two, member_two)) = two.attach(Backend::Vxlan) else { return };
        let members = [member_one, member_two];
        meet(&[(&one, &at_one), (&two, &at_two)], &members);
        let before = one.tables().await;
        let restarted = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                while !restarted.load(Ordering::Relaxed) {
                    assert!(one.reaches(&two), "a datagram was lost");
                }
            });
            let (again, member) = one.attach(Backend::Vxlan).unwrap();
            assert_eq!((&again, &member), (&at_one, &members[0]), "the same device, the same annotations");
            meet(&[(&one, &again)], &members);
            restarted.store(true, Ordering::Relaxed);
            sending.join().unwrap();
        });
        assert_eq!(one.tables().await, before);
    });
}

#[test]
fn what_others_left_is_put_right() {
    in_namespace(async || {
        wire().await;
        let (one, two) = (Node::plug(1).await, Node::plug(2).await);
        let Some((at_one, member_one)) = one.attach(Backend::Vxlan) else { return };
        let Some((at_two, member_two)) = two.attach(Backend::Vxlan) else { return };
        let members = [member_one, member_two];
        one.sh("ip neighbour add 10.42.2.0 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent
             bridge fdb add 02:00:00:00:00:01 dev flannel.1 dst 10.9.0.77 self
             ip route add 10.42.2.0/24 via 10.9.0.77
             ip route add 10.42.9.0/24 via 10.42.9.0 dev flannel.1 onlink
             ip route add 192.0.2.0/24 via 10.9.0.77")
            .await;
        meet(&[(&one, &at_one), (&two, &at_two)], &members);
        assert!(one.reaches(&two));
        let tables = one.tables().await;
        assert!(!tables.contains("02:00:00:00:00:01") && !tables.contains("10.42.9.0"), "{tables}");
        assert!(tables.contains("192.0.2.0/24 via 10.9.0.77"), "a route that is no pod's is not ours: {tables}");
    });
}

#[test]
fn a_node_that_moves_is_followed() {
    in_namespace(async || {
        wire().await;
        let (one, mut two) = (Node::plug(1).await, Node::plug(2).await);
        let Some((at_one, member_one)) = one.attach(Backend::Vxlan) else { return };
        let Some((at_two, member_two)) = two.attach(Backend::Vxlan) else { return };
        meet(&[(&one, &at_one), (&two, &at_two)], &[member_one.clone(), member_two]);
        two.sh("ip address del 10.9.0.2/24 dev eth0; ip address add 10.9.0.22/24 dev eth0
             ip address del fd09::2/64 dev eth0; ip address add fd09::22/64 dev eth0 nodad")
            .await;
        two.host = 22;
        let (at_two, member_two) = two.attach(Backend::Vxlan).unwrap();
        assert_eq!(member_two.annotations["flannel.alpha.coreos.com/public-ip"], "10.9.0.22");
        meet(&[(&one, &at_one), (&two, &at_two)], &[member_one, member_two]);
        assert!(one.reaches(&two) && two.reaches(&one));
    });
}

#[test]
fn a_change_of_backend_leaves_nothing_of_the_former() {
    in_namespace(async || {
        wire().await;
        let (one, two) = (Node::plug(1).await, Node::plug(2).await);
        for backend in [Backend::HostGw, Backend::Vxlan, Backend::HostGw] {
            let Some((at_one, member_one)) = one.attach(backend) else { return };
            let Some((at_two, member_two)) = two.attach(backend) else { return };
            meet(&[(&one, &at_one), (&two, &at_two)], &[member_one, member_two]);
            assert!(one.reaches(&two), "{backend}");
            let tables = one.tables().await;
            let (ours, former) = match backend {
                Backend::Vxlan => ("10.42.2.0/24 via 10.42.2.0 dev flannel.1", "via 10.9.0.2"),
                Backend::HostGw => ("10.42.2.0/24 via 10.9.0.2 dev eth0", "flannel"),
            };
            assert!(tables.contains(ours) && !tables.contains(former), "{backend}: {tables}");
        }
        let underlays = one.overlay(Backend::HostGw).underlays;
        let cluster_cidrs = CLUSTER.map(|cidr| cidr.parse().unwrap());
        one.run(async || remove(&cluster_cidrs, &underlays).await.unwrap());
        assert!(!one.tables().await.contains("10.42.2.0"));
    });
}

#[test]
fn host_gw_names_the_node_that_is_not_on_the_same_network() {
    in_namespace(async || {
        wire().await;
        let (one, two) = (Node::plug(1).await, Node::plug(2).await);
        let (at_one, member_one) = one.attach(Backend::HostGw).unwrap();
        let (_, member_two) = two.attach(Backend::HostGw).unwrap();
        let mut far = member_two.clone();
        far.name = "far".into();
        far.pod_cidrs = vec!["10.42.7.0/24".parse().unwrap()];
        far.annotations.insert("flannel.alpha.coreos.com/public-ip".into(), "198.51.100.7".into());
        let errors = one.reconcile(&at_one, &[member_one, member_two, far]);
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        assert_eq!(
            error.to_string(),
            "node far (198.51.100.7) is not on the network of eth0, so its pods cannot be reached with --flannel-backend=host-gw: \
             use vxlan, which passes routers"
        );
        assert!(one.tables().await.contains("10.42.2.0/24 via 10.9.0.2"), "the other one is reached nevertheless");
    });
}
