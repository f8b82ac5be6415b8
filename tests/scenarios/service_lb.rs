//! Services of type LoadBalancer answer at nodes' own addresses, with no pod for each.

use cluster_tests::{Network, Node, PATIENCE, step};

const DUAL: &str = "--cluster-cidr=10.42.0.0/16,fd42::/56 --service-cidr=10.43.0.0/16,fd43::/112";

/// An address that the node does not have.
const EXTERNAL: &str = "--node-external-ip=203.0.113.1";

/// A page on each node, a Service of both, one that wants the same port, and one that is served where its pod is alone.
const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: on-server, labels: {app: web}}
spec:
  nodeName: server
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "docker.io/k3s-rs/demo:0.1.0"}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-agent, labels: {app: web, place: agent}}
spec:
  nodeName: agent
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "docker.io/k3s-rs/demo:0.1.0"}]
---
apiVersion: v1
kind: Service
metadata: {name: first}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {place: agent}
  ports: [{port: 81, targetPort: 8080}]
"#;

const SECOND: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: second}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// A page on the server, and a Service of it.
const ONE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: web, image: "docker.io/k3s-rs/demo:0.1.0"}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

#[test]
fn services_answer_where_kube_proxy_uses_iptables_and_ipvs_is_warned_of() {
    let network = Network::new();
    let (server, client) = (Node::boot(&network, "server"), Node::boot(&network, "client"));
    let url = format!("http://{}/", server.address());
    step("in kube-proxy's mode iptables", || {
        server.give_demo_image();
        server.start_k3s("--disable=coredns --kube-proxy-arg=proxy-mode=iptables");
        server.wait_until_ready();
        server.apply(ONE);
        for from in [&client, &server] {
            let page = from.wait_until_succeeds(&format!("curl -sSf -m 5 {url}"), PATIENCE);
            assert_eq!(page.trim(), "Hello from a pod.", "from {}", from.name());
        }
        server.succeed("iptables-save -t nat | grep -q KUBE-EXT");
    });
    step("with the load balancer, ipvs is warned of", || {
        server.stop_k3s();
        server.start_k3s("--disable=coredns --kube-proxy-arg=proxy-mode=ipvs");
        server.wait_for_status("use --kube-proxy-arg=proxy-mode=nftables, or --disable=servicelb");
        println!("{}", server.succeed("k3s status"));
    });
}

#[test]
fn services_answer_at_nodes_addresses() {
    let network = Network::new();
    let (server, mut agent) = (Node::boot(&network, "server"), Node::boot(&network, "agent"));
    let client = Node::boot(&network, "client");
    let v6 = |node: &Node| format!("fd99::{}", node.address().octets()[3]);
    let (on_server, on_agent) = (server.address().to_string(), agent.address().to_string());
    let addresses = |service: &str| {
        server.kubectl(&format!("get service {service} -o jsonpath='{{.status.loadBalancer.ingress[*].ip}}'"))
    };
    let wait_for_addresses = |service: &str, expected: &str| {
        let get = format!("k3s kubectl get service {service} -o jsonpath='{{.status.loadBalancer.ingress[*].ip}}'");
        server.wait_until_succeeds(&format!("test \"$({get})\" = '{expected}'"), PATIENCE);
    };
    let answers = |from: &Node, address: &str| {
        let page = from.wait_until_succeeds(&format!("curl -sSf -m 5 http://{address}/"), PATIENCE);
        assert_eq!(page.trim(), "Hello from a pod.", "{address} from {}", from.name());
    };
    step("two nodes of both families", || {
        for node in [&server, &agent, &client] {
            node.succeed(&format!("ip address add {}/64 dev eth0 nodad", v6(node)));
        }
        for node in [&server, &agent] {
            node.give_demo_image();
        }
        server.start_k3s(&format!("{DUAL} --disable=coredns --node-ip={on_server},{}", v6(&server)));
        agent.start_k3s_agent(&server, &format!("--node-ip={on_agent},{}", v6(&agent)));
        server.wait_until_ready();
        server.wait_until_node_ready("agent");
        server.apply(MANIFESTS);
        server.kubectl("wait --for=condition=Ready pod/on-server pod/on-agent --timeout=120s");
    });
    step("a Service has every node's addresses, and answers at each, from outside and from nodes", || {
        wait_for_addresses("first", &format!("{on_server} {on_agent} {} {}", v6(&server), v6(&agent)));
        for from in [&client, &server, &agent] {
            for node in [&server, &agent] {
                answers(from, &node.address().to_string());
                answers(from, &format!("[{}]", v6(node)));
            }
        }
        assert_eq!(server.kubectl("get daemonsets -A -o name").trim(), "", "there is no pod for it");
    });
    step("a firewall that is loaded anew takes nobody's rules away for long", || {
        agent.succeed("nft flush ruleset");
        let tables =
            "nft list tables > /tmp/tables && grep -q 'inet k3s$' /tmp/tables && grep -q 'ip6 kube-proxy$' /tmp/tables";
        agent.wait_until_succeeds(tables, PATIENCE);
        answers(&client, &on_agent);
        // Of another program's tables only their removal is somebody's doing.
        assert_eq!(agent.succeed("grep -c 'removed kube-proxy.s rules' /var/log/k3s.log").trim(), "1");
        server.fail("grep 'removed kube-proxy.s rules' /var/log/k3s.log");
    });
    step("a Service that wants the same port waits, and says for what", || {
        server.apply(SECOND);
        let taken = "port 80/TCP is taken by the Service default/first";
        server.wait_until_succeeds(
            &format!("k3s kubectl get events --field-selector=reason=UnAvailableLoadBalancer | grep -F '{taken}'"),
            PATIENCE,
        );
        server.wait_for_status(taken);
        assert_eq!(addresses("second"), "");
        server.kubectl("delete service first");
        wait_for_addresses("second", &format!("{on_server} {on_agent}"));
        answers(&client, &on_server);
        server.wait_until_succeeds("k3s status > /tmp/status && ! grep -q 80/TCP /tmp/status", PATIENCE);
    });
    step("a local Service is served where its pod is, which sees who asks", || {
        wait_for_addresses("local", &on_agent);
        answers(&client, &format!("{on_agent}:81"));
        client.fail(&format!("curl -sSf -m 5 http://{on_server}:81/"));
        let log = server.kubectl("logs on-agent");
        assert!(log.contains(&client.address().to_string()), "{log}");
        // Nodes and pods reach it from everywhere.
        answers(&server, &format!("{on_agent}:81"));
    });
    step("a pod that is not ready is no place for a local Service", || {
        server.kubectl("delete pod on-agent");
        wait_for_addresses("local", "");
        server.wait_for_status("its externalTrafficPolicy is Local, and no node has a ready pod of it");
    });
    step("a node that goes away takes its address along", || {
        agent.crash();
        wait_for_addresses("second", &on_server);
        answers(&client, &on_server);
    });
    step(
        "an external address that the node does not have, as behind a cloud's NAT, is served where its packets arrive",
        || {
            server.stop_k3s();
            server.start_k3s(&format!("{DUAL} --disable=coredns {EXTERNAL} --node-ip={on_server},{}", v6(&server)));
            wait_for_addresses("second", "203.0.113.1");
            answers(&client, &on_server);
            answers(&server, &on_server);
            server.succeed("nft flush ruleset");
            server.wait_until_succeeds("nft list table inet k3s-service-lb | grep -q '203.0.113.1'", PATIENCE);
            answers(&client, &on_server);
        },
    );
    step("switched off, the load balancer takes back what it told", || {
        server.stop_k3s();
        server
            .start_k3s(&format!("{DUAL} --disable=coredns,servicelb {EXTERNAL} --node-ip={on_server},{}", v6(&server)));
        server.wait_until_ready();
        wait_for_addresses("second", "");
        client.wait_until_succeeds(&format!("! curl -sSf -m 5 http://{on_server}/"), PATIENCE);
        server.wait_until_succeeds("nft list tables > /tmp/tables && ! grep k3s-service-lb /tmp/tables", PATIENCE);
    });
}
