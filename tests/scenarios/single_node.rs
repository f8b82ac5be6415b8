//! One server that runs pods: what a user does with a cluster in the first hour, all of it through 6443.

use cluster_tests::{Network, Node, PATIENCE, step};
use http::Method;

use crate::api::{Api, Credentials, on_node};

/// A Deployment that serves its pod's name by HTTP, its Service with a NodePort, and a pod to ask from.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: docker.io/k3s-rs/demo:0.1.0
        command: [sh, -c, "mkdir -p /www && hostname > /www/index.html && echo serving && exec httpd -f -v -p 8080 -h /www"]
        ports: [{containerPort: 8080}]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sleep, "100000"]
"#;

#[test]
fn a_server_runs_pods_and_serves_its_users() {
    let network = Network::new();
    let (server, neighbour) = (Node::boot(&network, "server"), Node::boot(&network, "neighbour"));
    server.give_demo_image();
    let k3s = step("the node gets Ready", || {
        let k3s = server.start_k3s("");
        server.wait_until_ready();
        // kubelet may say that it is Ready before the node has its roles.
        let node = "k3s kubectl get node server -o wide --no-headers";
        server.wait_until_succeeds(&format!("{node} | grep control-plane | grep -F {}", server.address()), PATIENCE);
        k3s
    });
    step("readyz answers to the administrator's kubeconfig", || {
        assert_eq!(server.kubectl("get --raw /readyz"), "ok");
        assert!(server.succeed("stat -c %a /etc/rancher/k3s/k3s.yaml").starts_with("600"));
    });
    step("a Deployment gets available", || {
        server.apply(WEB);
        server.wait_for_deployment("default", "web");
        server.kubectl("wait --for=condition=Ready pod/client --timeout=120s");
        server.wait_for_deployment("kube-system", "coredns");
    });
    step("k3s' own verbs answer", || {
        assert!(server.succeed("k3s --version").starts_with("k3s version v1."));
        server.succeed("k3s check-config && k3s status && k3s completion bash | grep -q k3s");
        server
            .succeed("ctr version && kubectl version && k3s ctr images check -q | grep -q docker.io/k3s-rs/demo:0.1.0");
    });
    services(&server, &neighbour);
    pods_and_their_users(&server);
    who_may_not_come_in(&server);
    step("k3s ends when asked to, and leaves the pods running", || {
        server.succeed(&format!("kill -TERM {0} && tail --pid={0} -f /dev/null", k3s.pid));
        server.fail("pgrep -x kube-apiserver || pgrep -x kubelet || pgrep -x containerd");
        server.succeed("pgrep -x httpd");
    });
}

fn services(server: &Node, neighbour: &Node) {
    let in_pod = |command: &str| format!("k3s kubectl exec client -- {command}");
    step("a Service answers by its cluster IP, to the node and to a pod", || {
        let ip = server.kubectl("get service web -o jsonpath={.spec.clusterIP}");
        let page = server.wait_until_succeeds(&format!("curl -sSf --max-time 5 http://{ip}/"), PATIENCE);
        assert!(page.starts_with("web-"), "{page}");
        server.wait_until_succeeds(&in_pod(&format!("timeout 5 wget -qO- http://{ip}/")), PATIENCE);
    });
    step("a Service answers by its name, to a pod", || {
        for name in ["web", "web.default", "web.default.svc.cluster.local"] {
            let page = server.wait_until_succeeds(&in_pod(&format!("timeout 5 wget -qO- http://{name}/")), PATIENCE);
            assert!(page.starts_with("web-"), "{page}");
        }
    });
    step("a Service answers at its node port, to another machine", || {
        let page = neighbour
            .wait_until_succeeds(&format!("curl -sSf --max-time 5 http://{}:30080/", server.address()), PATIENCE);
        assert!(page.starts_with("web-"), "{page}");
    });
    step("a pod reaches an address outside under the node's own", || {
        let seen = server.succeed(&in_pod(&format!("timeout 5 wget -qO- http://{}/", Network::OUTSIDE)));
        assert_eq!(seen.trim(), server.address().to_string());
    });
    step("pods see each other's own addresses", || {
        let ip = server.kubectl("get pod client -o jsonpath={.status.podIP}");
        let web = server.kubectl("get pod -l app=web -o jsonpath='{.items[0].metadata.name} {.items[0].status.podIP}'");
        let (name, address) = web.split_once(' ').expect("two fields were asked for");
        server.succeed(&in_pod(&format!("timeout 5 wget -qO- http://{address}:8080/")));
        server.wait_until_succeeds(&format!("k3s kubectl logs {name} | grep -F {ip}"), PATIENCE);
    });
}

fn pods_and_their_users(server: &Node) {
    step("exec passes input, output and the exit code on, by websocket and by SPDY", || {
        for websockets in [true, false] {
            let kubectl = format!("KUBECTL_REMOTE_COMMAND_WEBSOCKETS={websockets} k3s kubectl");
            let echoed = server.succeed(&format!("echo hello | {kubectl} exec -i client -- cat"));
            assert_eq!(echoed, "hello\n");
            assert_eq!(server.execute(&format!("{kubectl} exec client -- sh -c 'exit 42'")).code, 42);
        }
    });
    step("logs -f shows lines as they are written", || {
        server.kubectl("run ticker --image=docker.io/k3s-rs/demo:0.1.0 --restart=Never -- sh -c 'for i in $(seq 1000); do echo tick $i; sleep 1; done'");
        server.kubectl("wait --for=condition=Ready pod/ticker --timeout=120s");
        let logs = server.background("exec k3s kubectl logs -f ticker");
        let output = logs.output.display();
        server.wait_until_succeeds(&format!("grep -q 'tick 3' {output}"), PATIENCE);
        server.succeed(&format!("! grep -q 'tick 900' {output} && kill {}", logs.pid));
        server.kubectl("delete pod ticker --now --wait=false");
    });
    step("port-forward reaches a pod", || {
        let forward = server.background("exec k3s kubectl port-forward service/web 9090:80");
        server.wait_for_open_port(9090, PATIENCE);
        let page = server.succeed("curl -sSf --max-time 10 http://127.0.0.1:9090/");
        assert!(page.starts_with("web-"), "{page}");
        server.succeed(&format!("kill {}", forward.pid));
    });
    step("cp brings a megabyte to a pod and back", || {
        server.succeed(
            "head -c 1000000 /dev/urandom > /tmp/sent
             k3s kubectl cp /tmp/sent client:/tmp/file && k3s kubectl cp client:/tmp/file /tmp/back && cmp /tmp/sent /tmp/back",
        );
    });
}

fn who_may_not_come_in(server: &Node) {
    let code = |arguments: &str| {
        server.succeed(&format!("curl -sk -o /dev/null -w '%{{http_code}}' --max-time 20 {arguments}"))
    };
    let pods = "https://127.0.0.1:6443/api/v1/pods";
    step("who brings no credentials, wrong ones or forged headers gets 401", || {
        assert_eq!(code(pods), "401");
        assert_eq!(code(&format!("-H 'Authorization: Bearer nobody' {pods}")), "401");
        let forged = "-H 'X-Remote-User: system:admin' -H 'X-Remote-Group: system:masters' -H 'X-Remote-Uid: 0'";
        assert_eq!(code(&format!("{forged} {pods}")), "401");
        assert_eq!(code(&format!("--http1.1 {forged} {pods}")), "401");
    });
    step("forged headers add nothing to a real certificate", || {
        let tls = "/var/lib/rancher/k3s/server/tls";
        let proxy = format!("--cert {tls}/client-kube-proxy.crt --key {tls}/client-kube-proxy.key");
        let forged = "-H 'X-Remote-User: system:admin' -H 'X-Remote-Group: system:masters'";
        let secrets = "https://127.0.0.1:6443/api/v1/secrets";
        assert_eq!(code(&format!("{proxy} {forged} {secrets}")), "403");
    });
    step("a service account's token is a credential", || {
        server.succeed(
            "k3s kubectl create serviceaccount reader && k3s kubectl create clusterrolebinding reader --clusterrole=view --serviceaccount=default:reader",
        );
        let token = server.kubectl("create token reader");
        assert_eq!(code(&format!("-H 'Authorization: Bearer {}' {pods}", token.trim())), "200");
    });
    step("a public certificate without its key does not pass the handshake", || {
        let passes = |certificate, key| {
            on_node(server, async || {
                let credentials = Credentials::with(server, certificate, key)?;
                // In TLS 1.3 a client learns that it was refused when it first reads.
                let Ok(api) = Api::connect(&credentials).await else { return Ok(false) };
                Ok(api.send(Method::GET, "/readyz", None).await.is_ok())
            })
        };
        assert!(passes("client-admin.crt", "client-admin.key"));
        assert!(!passes("client-admin.crt", "client-kube-proxy.key"), "a key of another certificate was taken");
    });
}
