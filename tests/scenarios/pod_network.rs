//! One server and two agents whose pods are one network: what users take for granted of pods on different nodes.

use std::time::Duration;

use cluster_tests::{Network, Node, PATIENCE, step};

/// On each node a pod that serves its node's name and logs who asks, with a Service.
const WEB: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: docker.io/k3s-rs/demo:0.1.0
        command: [sh, -c, "mkdir -p /www && echo $NODE > /www/index.html && exec httpd -f -v -p 8080 -h /www"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// A pod on the first agent that hears the pod on the second one count, by one connection that is never made anew.
const COUNT: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: counter, labels: {app: counter}}
spec:
  nodeName: two
  terminationGracePeriodSeconds: 1
  containers:
  - name: counter
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "n=0; while n=$((n+1)); do echo $n; sleep 1; done | nc -l -p 9000"]
---
apiVersion: v1
kind: Pod
metadata: {name: listener}
spec:
  nodeName: one
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: find
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "until nslookup counter.default.svc.cluster.local; do sleep 1; done"]
  containers:
  - name: listener
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "mkfifo /tmp/open && { sleep 1000000 > /tmp/open & } && exec nc counter 9000 < /tmp/open > /tmp/heard"]
---
apiVersion: v1
kind: Service
metadata: {name: counter}
spec:
  clusterIP: None
  selector: {app: counter}
  ports: [{port: 9000}]
"#;

/// The last number that the listener heard. Not from its log, which containerd writes.
const HEARD: &str = "tail -n1 /proc/$(pgrep -x nc)/root/tmp/heard";

#[test]
fn pods_on_different_nodes_are_one_network() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let [one, two] = ["one", "two"].map(|name| Node::boot(&network, name));
    step("three nodes get Ready", || {
        server.give_demo_image();
        server.start_k3s("");
        for agent in [&one, &two] {
            agent.give_demo_image();
            agent.start_k3s_agent(&server, "");
        }
        for node in [&server, &one, &two] {
            server.wait_until_node_ready(node.name());
        }
    });
    step("pods run on each", || {
        server.apply(WEB);
        server.apply(COUNT);
        server.wait_until_succeeds("k3s kubectl rollout status daemonset/web --timeout=20s", PATIENCE);
        server.wait_for_deployment("kube-system", "coredns");
    });
    reachable(&server, &[&server, &one, &two]);
    restarts(&server, &one);
    step("a node that moves to another address is followed", || {
        let address = "10.99.0.77";
        one.succeed(&format!(
            "ip address del {}/24 dev eth0 && ip address add {address}/24 dev eth0 && ip route add default via 10.99.0.1",
            one.address()
        ));
        for node in [&server, &two] {
            node.wait_until_succeeds(&format!("bridge fdb show dev flannel.1 | grep -qw {address}"), PATIENCE);
        }
        let on_one = "--field-selector spec.nodeName=one -o jsonpath={.items[0].status.podIP}";
        let pod = server.kubectl(&format!("get pod -l app=web {on_one}"));
        assert_eq!(
            two.wait_until_succeeds(&format!("curl -sSf --max-time 5 http://{pod}:8080/"), PATIENCE).trim(),
            "one"
        );
        let internal = "-o jsonpath='{.status.addresses[?(@.type==\"InternalIP\")].address}'";
        server.wait_until_succeeds(&format!("k3s kubectl get node one {internal} | grep -qx {address}"), PATIENCE);
        let name = server.kubectl("get pod -l app=web --field-selector spec.nodeName=one -o name");
        server.wait_until_succeeds(&format!("k3s kubectl exec {} -- true", name.trim()), PATIENCE);
    });
    step("a node that is taken away leaves nothing on the others", || {
        let range = server.kubectl("get node two -o jsonpath={.spec.podCIDR}");
        let way = format!("ip route show {range} | grep -q 'dev flannel.1'");
        server.succeed(&way);
        two.succeed("pid=$(pgrep -x k3s); kill -TERM $pid; tail --pid=$pid -f /dev/null");
        server.kubectl("delete node two");
        for node in [&server, &one] {
            node.wait_until_succeeds(&format!("! {{ {way}; }}"), PATIENCE);
            let address = two.address();
            node.fail(&format!("bridge fdb show dev flannel.1 | grep -qw {address}"));
            assert_eq!(node.succeed("ip route | grep -c 'dev flannel.1'").trim(), "1", "the other node stays");
        }
    });
}

fn reachable(server: &Node, nodes: &[&Node]) {
    let field = |node: &Node, field: &str| {
        let field = format!("-o jsonpath={{.items[0].{field}}}");
        server.kubectl(&format!("get pod -l app=web --field-selector spec.nodeName={} {field}", node.name()))
    };
    let pods: Vec<_> =
        nodes.iter().map(|node| (node.name(), field(node, "metadata.name"), field(node, "status.podIP"))).collect();
    step("each pod reaches each by its address, and is seen under its own", || {
        for (_, pod, own) in &pods {
            for (node, other, address) in &pods {
                let ask = format!("k3s kubectl exec {pod} -- timeout 5 wget -qO- http://{address}:8080/");
                assert_eq!(server.wait_until_succeeds(&ask, PATIENCE).trim(), *node);
                server.wait_until_succeeds(&format!("k3s kubectl logs {other} | grep -qwF '{own}'"), PATIENCE);
            }
        }
    });
    step("nodes reach pods on other nodes", || {
        for node in nodes {
            for (name, _, address) in &pods {
                assert_eq!(node.succeed(&format!("curl -sSf --max-time 5 http://{address}:8080/")).trim(), *name);
            }
        }
    });
    step("a Service answers by its address and its name, from all of its pods, on every node", || {
        for (_, pod, _) in &pods {
            for host in ["$WEB_SERVICE_HOST", "web", "web.default.svc.cluster.local"] {
                let ask =
                    format!("for i in $(seq 40); do timeout 5 wget -qO- http://{host}/ || exit 1; done | sort -u");
                let answers = server.wait_until_succeeds(&format!("k3s kubectl exec {pod} -- sh -c '{ask}'"), PATIENCE);
                assert_eq!(answers.split_whitespace().collect::<Vec<_>>(), ["one", "server", "two"], "{host}");
            }
        }
        let ip = server.kubectl("get service web -o jsonpath={.spec.clusterIP}");
        for node in nodes {
            node.succeed(&format!("for i in $(seq 20); do curl -sSf --max-time 5 http://{ip}/ || exit 1; done"));
        }
    });
}

fn restarts(server: &Node, one: &Node) {
    let heard = || one.wait_until_succeeds(HEARD, PATIENCE).trim().parse::<u64>().expect("a count");
    let hears_on = |from: u64| {
        one.wait_until_succeeds(&format!("test $({HEARD}) -gt $(({from} + 3))"), Duration::from_secs(60));
    };
    step("a connection between nodes goes on while k3s of one is away and comes back", || {
        let before = heard();
        let restarts = "get pod listener counter -o jsonpath={.items[*].status.containerStatuses[0].restartCount}";
        let restarted = server.kubectl(restarts);
        let tables = "ip route | grep flannel; ip neighbour | grep PERMANENT; bridge fdb show dev flannel.1; ip link show flannel.1";
        let there = one.succeed(tables);
        one.succeed("pid=$(pgrep -x k3s); kill -TERM $pid; tail --pid=$pid -f /dev/null");
        hears_on(before);
        assert_eq!(one.succeed(tables), there, "what leads to other nodes stays");
        one.start_k3s_agent(server, "");
        one.wait_for_components(|components| components.contains_key("kube-proxy"));
        hears_on(heard());
        assert_eq!(one.succeed(tables), there);
        server.wait_until_node_ready("one");
        assert_eq!(server.kubectl(restarts), restarted);
    });
}

#[test]
fn pods_have_addresses_of_both_families() {
    let network = Network::new();
    let [server, agent] = ["server", "agent"].map(|name| Node::boot(&network, name));
    let ips = |node: &Node| format!("{},fd99::{}", node.address(), node.address().octets()[3]);
    step("two nodes with both get Ready", || {
        for node in [&server, &agent] {
            node.succeed(&format!("ip address add {}/64 dev eth0 nodad", &ips(node).split(',').nth(1).expect("two")));
            node.give_demo_image();
        }
        let ranges = "--cluster-cidr=10.42.0.0/16,fd42::/56 --service-cidr=10.43.0.0/16,fd43::/112";
        server.start_k3s(&format!("{ranges} --node-ip={}", ips(&server)));
        agent.start_k3s_agent(&server, &format!("--node-ip={}", ips(&agent)));
        for node in [&server, &agent] {
            server.wait_until_node_ready(node.name());
            let told = "-o jsonpath='{.status.addresses[?(@.type==\"InternalIP\")].address}'";
            assert_eq!(server.kubectl(&format!("get node {} {told}", node.name())), ips(node).replace(',', " "));
        }
    });
    step("pods reach each other by IPv6, and are seen under their own addresses", || {
        server.apply(WEB);
        server.wait_until_succeeds("k3s kubectl rollout status daemonset/web --timeout=20s", PATIENCE);
        let pods = server.kubectl(
            "get pod -l app=web -o jsonpath='{range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIPs[1].ip}{\"\\n\"}{end}'",
        );
        let pods: Vec<_> = pods.lines().map(|line| line.split(' ').collect::<Vec<_>>()).collect();
        for from in &pods {
            for to in &pods {
                let ask = format!("k3s kubectl exec {} -- timeout 5 wget -qO- 'http://[{}]:8080/'", from[1], to[2]);
                assert_eq!(server.wait_until_succeeds(&ask, PATIENCE).trim(), to[0]);
                server.wait_until_succeeds(&format!("k3s kubectl logs {} | grep -qwF '{}'", to[1], from[2]), PATIENCE);
            }
            assert_eq!(server.succeed(&format!("curl -sSf --max-time 5 'http://[{}]:8080/'", from[2])).trim(), from[0]);
        }
    });
    step("a Service of both families answers by IPv6", || {
        server.kubectl("patch service web --type=merge -p '{\"spec\":{\"ipFamilyPolicy\":\"RequireDualStack\"}}'");
        let ip = server.kubectl("get service web -o jsonpath={.spec.clusterIPs[1]}");
        for pod in server.kubectl("get pod -l app=web -o name").lines() {
            let ask = format!("k3s kubectl exec {pod} -- timeout 5 wget -qO- 'http://[{ip}]/'");
            server.wait_until_succeeds(&ask, PATIENCE);
        }
    });
}
