//! kube-apiserver reaches webhooks and aggregated APIs in pods of other nodes, whatever the egress mode.

use cluster_tests::{Network, Node, PATIENCE, step};

/// A pod that answers HTTPS, which is a webhook and an aggregated API to kube-apiserver. It knows neither's paths: its 404 tells that it was
/// reached.
const EXTENSION: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: corefile}
data:
  Corefile: |
    https://.:8443 {
      tls /tls/tls.crt /tls/tls.key
      whoami
    }
---
apiVersion: v1
kind: Pod
metadata: {name: extension, labels: {app: extension}}
spec:
  nodeName: agent
  terminationGracePeriodSeconds: 1
  containers:
  - name: extension
    image: IMAGE
    args: [-conf, /etc/coredns/Corefile]
    volumeMounts:
    - {name: corefile, mountPath: /etc/coredns}
    - {name: tls, mountPath: /tls}
  volumes:
  - {name: corefile, configMap: {name: corefile}}
  - {name: tls, secret: {secretName: extension}}
---
apiVersion: v1
kind: Service
metadata: {name: extension}
spec:
  selector: {app: extension}
  ports: [{port: 443, targetPort: 8443}]
---
apiVersion: v1
kind: Namespace
metadata: {name: checked}
"#;

const WEBHOOK: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: extension}
webhooks:
- name: extension.k3s.test
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 10
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: checked}}
  rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  clientConfig: {service: {namespace: default, name: extension}, caBundle: BUNDLE}
"#;

const API: &str = r#"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.extension.k3s.test}
spec:
  group: extension.k3s.test
  version: v1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: default, name: extension}
"#;

/// The egress mode, and whether the server has a node. Without one, in the other modes nothing leads from the server to pods. Servers
/// without a node come first: one that had a node knows the addresses of Services until the machine is started anew.
const MODES: [(&str, bool); 5] =
    [("pod", false), ("cluster", false), ("pod", true), ("agent", true), ("disabled", true)];

#[test]
fn webhooks_and_aggregated_apis_are_reached_in_each_egress_mode() {
    let network = Network::new();
    let (server, agent) = (Node::boot(&network, "server"), Node::boot(&network, "agent"));
    for (row, (mode, has_node)) in MODES.into_iter().enumerate() {
        step(&format!("egress {mode}, server {} a node", if has_node { "with" } else { "without" }), || {
            start(&server, &agent, row == 0, mode, has_node);
            if row == 0 {
                server.succeed(
                    "cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=extension \
                     -addext subjectAltName=DNS:extension.default.svc -keyout key -out certificate",
                );
                server.kubectl("create secret tls extension --cert=/tmp/certificate --key=/tmp/key");
                server.apply(&EXTENSION.replace("IMAGE", k3s_images::COREDNS));
                let bundle = server.succeed("base64 -w0 /tmp/certificate");
                server.apply(&WEBHOOK.replace("BUNDLE", bundle.trim()));
            }
            server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/extension --timeout=20s", PATIENCE);
            server.apply(API);
            server.wait_until_succeeds(
                "k3s kubectl get apiservice v1.extension.k3s.test -o jsonpath={.status.conditions[0].message} | grep -F ': 404'",
                PATIENCE,
            );
            server.kubectl("delete apiservice v1.extension.k3s.test");
            server.wait_until_succeeds(
                "k3s kubectl -n checked create configmap checked 2>&1 | grep -F 'could not find the requested resource'",
                PATIENCE,
            );
        });
    }
}

fn start(server: &Node, agent: &Node, first: bool, mode: &str, has_node: bool) {
    let node = if has_node { "" } else { "--disable-agent" };
    if !first {
        agent.stop_k3s();
        server.stop_k3s();
    }
    // Services' addresses would be sent there.
    server.succeed("ip route delete default || true");
    server.start_k3s(&format!("--egress-selector-mode={mode} --node-ip={} {node}", server.address()));
    if first {
        agent.start_k3s_agent(server, "");
    } else {
        agent.restart_k3s_agent("");
    }
    server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
    server.wait_until_node_ready("agent");
}
