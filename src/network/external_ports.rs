//! Services at a node's external address, where that is another machine's: a cloud's, whose one-to-one NAT sends packets on to the node's
//! own address.
//!
//! kube-proxy looks for a Service's address, which is the external one, and takes the first packet of a connection only. So the first
//! packet gets that address back just before kube-proxy looks. Connection tracking has seen the packet as it came: it does the rest for
//! those that follow and for answers, and no other connection on such a port is touched.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use crate::table::{Table, TableError, WholeTable};

/// Wholly ours.
const TABLE: &str = "k3s-service-lb";

/// A port that a Service has at an external address of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExternalPort {
    /// The address of the Service.
    pub external: IpAddr,
    /// Where its packets arrive; of the same family.
    pub internal: IpAddr,
    /// As nftables calls it: `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Its number.
    pub port: u16,
}

/// The rules in the packet filter.
pub struct ExternalPorts(WholeTable);

impl Default for ExternalPorts {
    fn default() -> Self {
        Self(WholeTable::new(TABLE))
    }
}

impl ExternalPorts {
    /// Puts rules for these in the place of any former ones.
    ///
    /// # Errors
    /// `nft` is missing, or refuses the rules.
    pub async fn set(&mut self, ports: &BTreeSet<ExternalPort>) -> Result<(), TableError> {
        self.0.set(&rules(ports)).await
    }

    /// Leaves nothing of ours.
    ///
    /// # Errors
    /// `nft` is missing, or refuses.
    pub async fn remove() -> Result<(), TableError> {
        let mut table = Table::open(TABLE)?;
        if table.exists().await? {
            table.apply(&format!("delete table inet {TABLE}")).await?;
        }
        Ok(())
    }

    /// Waits until somebody else has changed them: then they have to be set again. Cancel-safe.
    pub async fn lost(&mut self) {
        self.0.lost().await;
    }
}

fn rules(ports: &BTreeSet<ExternalPort>) -> String {
    let (mut maps, mut rewrite, mut drop) = (String::new(), String::new(), String::new());
    for (map, ip, kind, is_v4) in [("v4", "ip", "ipv4_addr", true), ("v6", "ip6", "ipv6_addr", false)] {
        let of_family: Vec<_> = ports.iter().filter(|port| port.internal.is_ipv4() == is_v4).collect();
        if of_family.is_empty() {
            continue;
        }
        let element =
            |port: &&ExternalPort| format!("{} . {} . {} : {}", port.internal, port.protocol, port.port, port.external);
        let elements = of_family.iter().map(element).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            maps,
            "    map {map} {{\n        type {kind} . inet_proto . inet_service : {kind}\n        elements = {{ {elements} }}\n    }}"
        );
        let _ =
            writeln!(rewrite, "        ct state new {ip} daddr set {ip} daddr . meta l4proto . th dport map @{map}");
        // What kube-proxy does not take would leave for the cloud, and come back.
        let pairs: BTreeSet<_> = of_family.iter().map(|port| (port.external, port.internal)).collect();
        for (external, internal) in pairs {
            let _ = writeln!(drop, "        {ip} daddr {external} ct original {ip} daddr {internal} drop");
        }
    }
    if maps.is_empty() {
        return maps;
    }
    format!(
        "{maps}    chain prerouting {{\n        type filter hook prerouting priority mangle; policy accept;\n{rewrite}    }}\n    \
         chain output {{\n        type route hook output priority mangle; policy accept;\n{rewrite}    }}\n    \
         chain forward {{\n        type filter hook forward priority filter; policy accept;\n{drop}    }}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream, UdpSocket},
        time::Duration,
    };

    use super::*;
    use crate::{
        host::nftables_usable,
        test_namespace::{Namespace, in_namespace, sh},
    };

    fn port(external: &str, internal: &str, protocol: &'static str, port: u16) -> ExternalPort {
        ExternalPort { external: external.parse().unwrap(), internal: internal.parse().unwrap(), protocol, port }
    }

    /// A cloud that sends what is for 203.0.113.1 on to the node 192.0.2.1, and a pod behind it.
    #[test]
    fn a_service_is_reached_by_an_address_that_the_node_does_not_have() {
        in_namespace(async || {
            if let Err(reason) = nftables_usable().await {
                println!("skipped: {reason}");
                return;
            }
            let [pod, client] = [Namespace::new(), Namespace::new()];
            sh(&format!(
                "ip link add pod type veth peer name eth0 netns {pod}
                 ip link add out type veth peer name eth0 netns {client}
                 ip address add 10.42.1.1/24 dev pod; ip link set pod up; ip link set lo up
                 ip address add 192.0.2.1/24 dev out; ip link set out up; ip route add default via 192.0.2.9
                 echo 1 > /proc/sys/net/ipv4/conf/all/forwarding
                 nsenter --net={pod} sh -ec 'ip address add 10.42.1.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.42.1.1'
                 nsenter --net={client} sh -ec 'ip address add 192.0.2.9/24 dev eth0; ip link set eth0 up; ip link set lo up'
                 nft -f - <<'END'
                 table ip kube-proxy {{
                     chain services {{ type nat hook prerouting priority dstnat; ip daddr 203.0.113.1 meta l4proto {{ tcp, udp }} th dport 80 dnat to 10.42.1.2:8080; }}
                     chain local {{ type nat hook output priority -100; ip daddr 203.0.113.1 meta l4proto {{ tcp, udp }} th dport 80 dnat to 10.42.1.2:8080; }}
                 }}
END"
            ))
            .await;
            let mut rules = ExternalPorts::default();
            let ports = ["tcp", "udp"].map(|protocol| port("203.0.113.1", "192.0.2.1", protocol, 80));
            // One that kube-proxy knows nothing of, and another family.
            let others = [port("203.0.113.1", "192.0.2.1", "udp", 81), port("2001:db8::1", "fd09::1", "sctp", 80)];
            rules.set(&ports.into_iter().chain(others).collect()).await.unwrap();

            let udp = pod.run(|| UdpSocket::bind("10.42.1.2:8080").unwrap());
            udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let from_outside = client.run(|| UdpSocket::bind("192.0.2.9:0").unwrap());
            from_outside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            from_outside.connect("192.0.2.1:80").unwrap();
            // More than the first packet, also before an answer.
            for text in ["first", "second"] {
                from_outside.send(text.as_bytes()).unwrap();
                let mut buffer = [0; 16];
                let (length, from) = udp.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from.ip().to_string()), (text.as_bytes(), "192.0.2.9".to_owned()));
            }
            udp.send_to(b"answer", from_outside.local_addr().unwrap()).unwrap();
            assert_eq!(from_outside.recv(&mut [0; 16]).unwrap(), 6, "from the address that was asked");

            let listener = pod.run(|| TcpListener::bind("10.42.1.2:8080").unwrap());
            let outside = client.run(|| TcpStream::connect("192.0.2.1:80").unwrap());
            // And from the node itself.
            let inside = TcpStream::connect("192.0.2.1:80").unwrap();
            for mut stream in [outside, inside] {
                let (mut served, _) = listener.accept().unwrap();
                served.write_all(b"page").unwrap();
                drop(served);
                let mut page = String::new();
                stream.read_to_string(&mut page).unwrap();
                assert_eq!(page, "page");
            }

            // What nobody takes goes nowhere.
            let stray = client.run(|| UdpSocket::bind("192.0.2.9:0").unwrap());
            stray.send_to(b"stray", "192.0.2.1:81").unwrap();
            let dropped = sh("nft list ruleset > /dev/null; nft list chain inet k3s-service-lb forward").await;
            assert!(dropped.contains("ip daddr 203.0.113.1 ct original ip daddr 192.0.2.1 drop"), "{dropped}");

            rules.set(&BTreeSet::new()).await.unwrap();
            assert_eq!(sh("nft list table inet k3s-service-lb").await, "table inet k3s-service-lb {\n}\n");
            ExternalPorts::remove().await.unwrap();
            ExternalPorts::remove().await.unwrap();
            assert_eq!(sh("nft list tables inet").await, "");
        });
    }
}
