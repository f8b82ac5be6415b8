//! A server and an agent, with pods on both, and what users write into network policies.

use cluster_tests::{Network, Node, PATIENCE, step};

/// On the agent a pod that serves on three ports, with one client beside it and one on the server, in two namespaces.
const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: office, labels: {team: office}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: agent
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "for port in 8081 8082; do httpd -p $port -h /www; done; exec httpd -f -p 8080 -h /www"]
    ports: [{name: http, containerPort: 8080}, {name: more, containerPort: 8081}]
    readinessProbe: {tcpSocket: {port: 8082}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: shop, labels: {app: friend}}
spec:
  nodeName: server
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers:
  - {name: c, image: "docker.io/k3s-rs/demo:0.1.0", command: [sleep, "100000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: office, labels: {app: stranger}}
spec:
  nodeName: agent
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "docker.io/k3s-rs/demo:0.1.0", command: [sleep, "100000"]}
"#;

/// A pod that asks another over and over from its first moment on, and says what came of it.
const EAGER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: eager, namespace: shop, labels: {app: eager}}
spec:
  nodeName: agent
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "for i in $(seq 100); do timeout 1 wget -q -O- http://WEB:8080/ >/dev/null && echo through && exit; done; echo never"]
"#;

const TABLE: &str = "nft list table inet k3s-network-policy";

/// The cluster, and where its pods are.
struct Cluster {
    server: Node,
    agent: Node,
    web: String,
}

impl Cluster {
    /// A policy called `p` in the namespace `shop`, in the place of the one before.
    fn policy(&self, spec: &str) {
        self.server.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
        ));
    }

    fn ask(client: &str, to: &str) -> String {
        let namespace = if client == "stranger" { "office" } else { "shop" };
        format!("k3s kubectl -n {namespace} exec {client} -- wget -q -T 2 -O- http://{to}/ 2>&1")
    }

    /// Each client's ways to the ports of `web`: the first of these become open, the second closed.
    fn comes_about(&self, open: &[(&str, u16)], closed: &[(&str, u16)]) {
        for (client, port) in open {
            let ask = Self::ask(client, &format!("{}:{port}", self.web));
            self.server.wait_until_succeeds(&format!("{ask} | grep -q Hello"), PATIENCE);
        }
        for (client, port) in closed {
            let ask = Self::ask(client, &format!("{}:{port}", self.web));
            self.server.wait_until_succeeds(&format!("{ask} | grep -q 'timed out'"), PATIENCE);
        }
    }

    /// What `web` has to bear from its own node, whatever the policies say.
    fn own_node_reaches(&self) {
        self.agent.succeed(&format!("curl -sSf --max-time 10 http://{}:8080/", self.web));
    }
}

#[test]
fn network_policies_are_enforced() {
    let network = Network::new();
    let [server, agent] = ["server", "agent"].map(|name| Node::boot(&network, name));
    step("two nodes with pods", || {
        for node in [&server, &agent] {
            node.give_demo_image();
        }
        server.start_k3s("");
        agent.start_k3s_agent(&server, "");
        for node in [&server, &agent] {
            server.wait_until_node_ready(node.name());
        }
        server.write("/tmp/pods.yaml", PODS);
        // Until a namespace has its service account it takes no pods.
        server.wait_until_succeeds("k3s kubectl apply -f /tmp/pods.yaml", PATIENCE);
        for (namespace, pod) in [("shop", "web"), ("shop", "friend"), ("office", "stranger")] {
            server.wait_until_succeeds(
                &format!("k3s kubectl -n {namespace} wait --for=condition=Ready pod/{pod} --timeout=20s"),
                PATIENCE,
            );
        }
    });
    let web = server.kubectl("-n shop get pod web -o jsonpath={.status.podIP}");
    let cluster = Cluster { server, agent, web };
    let all = |ports: [u16; 2]| ports.map(|port| [("friend", port), ("stranger", port)]).concat();

    step("without policies all is open, and there is no table", || {
        cluster.comes_about(&all([8080, 8081]), &[]);
        for node in [&cluster.server, &cluster.agent] {
            node.fail(TABLE);
            node.wait_for_status("there are no policies");
        }
    });
    step("a policy that allows nothing closes a pod, but not to its own node", || {
        cluster.policy("{podSelector: {matchLabels: {app: web}}}");
        cluster.comes_about(&[], &all([8080, 8081]));
        cluster.own_node_reaches();
        cluster.agent.wait_for_status("1 of 1 policies isolate 1 pods here");
        cluster.server.wait_for_status("0 of 1 policies isolate 0 pods here");
        cluster.server.kubectl("-n shop wait --for=condition=Ready pod/web --timeout=20s");
        let service = cluster.server.kubectl("-n shop get service web -o jsonpath={.spec.clusterIP}");
        cluster.server.succeed(&format!("{} | grep -q 'timed out'", Cluster::ask("stranger", &service)));
        // It cannot be kept from itself.
        cluster.server.wait_until_succeeds(&format!("{} | grep -q Hello", Cluster::ask("web", &service)), PATIENCE);
    });
    step("pods are let in by their labels", || {
        cluster.policy("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}");
        cluster.comes_about(&[("friend", 8080), ("friend", 8081)], &[("stranger", 8080)]);
    });
    step("and by those of their namespaces", || {
        cluster.policy("{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: office}}}]}]}");
        cluster.comes_about(&[("stranger", 8080)], &[("friend", 8080)]);
        cluster.server.kubectl("label namespace office team-");
        cluster.comes_about(&[], &[("stranger", 8080)]);
        cluster.server.kubectl("label namespace office team=office");
        cluster.comes_about(&[("stranger", 8080)], &[]);
    });
    step("addresses are let in, except some", || {
        let friend = cluster.server.kubectl("-n shop get pod friend -o jsonpath={.status.podIP}");
        cluster.policy(&format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 10.42.0.0/16, except: [{friend}/32]}}}}]}}]}}"
        ));
        cluster.comes_about(&[("stranger", 8080)], &[("friend", 8080)]);
    });
    step("ports are let in by name, and ranges of them", || {
        cluster.policy("{podSelector: {}, ingress: [{ports: [{port: http}]}]}");
        cluster.comes_about(&all([8080, 8080]), &all([8081, 8082]));
        cluster.policy("{podSelector: {}, ingress: [{ports: [{port: 8081, endPort: 8090}]}]}");
        cluster.comes_about(&all([8081, 8082]), &all([8080, 8080]));
    });
    step("pods are kept from going out, but for where they may", || {
        cluster.policy("{podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress]}");
        cluster.comes_about(&[("stranger", 8080)], &[("friend", 8080)]);
        cluster.policy(
            "{podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress], \
              egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: more}]}]}",
        );
        cluster.comes_about(&[("friend", 8081), ("stranger", 8080)], &[("friend", 8080)]);
        let node = cluster.server.address();
        let ask = format!("k3s kubectl -n shop exec friend -- timeout 3 nc {node} 6443 </dev/null");
        assert_ne!(cluster.server.execute(&ask).code, 0, "its node is elsewhere too");
    });
    step("a pod is closed before its first packet, and open in time", || {
        cluster.policy("{podSelector: {matchLabels: {app: eager}}, policyTypes: [Egress]}");
        let run = |expected: &str| {
            cluster.server.apply(
                &EAGER.replace("WEB", &cluster.web).replace("100)", if expected == "never" { "8)" } else { "100)" }),
            );
            let said = "k3s kubectl -n shop logs eager | grep -x 'through\\|never'";
            let said = cluster.server.wait_until_succeeds(said, PATIENCE);
            assert_eq!(said.trim(), expected, "{}", cluster.server.kubectl("-n shop logs eager --timestamps"));
            cluster.server.kubectl("-n shop delete pod eager --now");
        };
        run("never");
        cluster.policy(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: eager}}}]}]}",
        );
        cluster.comes_about(&[], &[("stranger", 8080)]);
        run("through");
    });
    step("what somebody flushes is back", || {
        cluster.policy("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}");
        cluster.comes_about(&[("friend", 8080)], &[("stranger", 8080)]);
        for harm in
            ["nft delete table inet k3s-network-policy", "nft flush chain inet k3s-network-policy ingress-forward"]
        {
            cluster.agent.succeed(harm);
            cluster.agent.wait_until_succeeds(&format!("{TABLE} | grep -q 'daddr vmap'"), PATIENCE);
            cluster.comes_about(&[("friend", 8080)], &[("stranger", 8080)]);
        }
    });
    step("rules stay while k3s is away, and after", || {
        let before = cluster.agent.succeed(TABLE);
        cluster.agent.stop_k3s();
        assert_eq!(cluster.agent.succeed(TABLE), before);
        let inside = "nsenter -n -t $(pgrep -fx 'sleep 100000')";
        cluster.agent.fail(&format!("{inside} curl -sSf --max-time 2 http://{}:8080/", cluster.web));
        cluster.agent.restart_k3s_agent("");
        cluster.server.wait_until_node_ready("agent");
        cluster.agent.wait_for_status("1 of 1 policies isolate 1 pods here");
        cluster.comes_about(&[("friend", 8080)], &[("stranger", 8080)]);
    });
    step("a policy that is deleted takes everything along", || {
        cluster.server.kubectl("-n shop delete networkpolicy p");
        cluster.comes_about(&all([8080, 8081]), &[]);
        cluster.agent.wait_until_succeeds(&format!("! {TABLE}"), PATIENCE);
    });
    step("switched off, policies are objects and no more", || {
        cluster.policy("{podSelector: {}, policyTypes: [Ingress, Egress]}");
        cluster.comes_about(&[], &all([8080, 8081]));
        cluster.server.stop_k3s();
        cluster.server.start_k3s("--disable-network-policy");
        cluster.server.wait_until_ready();
        cluster.agent.stop_k3s();
        cluster.agent.restart_k3s_agent("");
        cluster.server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready node/agent --timeout=20s", PATIENCE);
        cluster.agent.wait_for_components(|components| components.contains_key("kubelet"));
        for node in [&cluster.server, &cluster.agent] {
            node.wait_until_succeeds(&format!("! {TABLE}"), PATIENCE);
            // An agent whose server does not answer yet begins with what it was told last.
            let without = "k3s status -o json > /tmp/status && ! grep -F network-policy /tmp/status";
            node.wait_until_succeeds(without, PATIENCE);
        }
        cluster.comes_about(&all([8080, 8081]), &[]);
    });
}
