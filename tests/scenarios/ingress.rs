//! Traefik as users of k3s have it: packaged, from an empty machine that reaches no registry, set by a HelmChartConfig.

use std::time::Instant;

use cluster_tests::{Network, Node, PATIENCE, step};

/// A web server that says who it is.
const SITE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: SITE, labels: {app: SITE}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, 'echo SITE > /www/index.html && exec httpd -f -p 8080 -h /www']
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: SITE}
spec:
  selector: {app: SITE}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

/// An Ingress with a certificate before one of them, and an IngressRoute before the other.
const ROUTES: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop}
spec:
  tls: [{hosts: [shop.test], secretName: shop}]
  rules:
  - host: shop.test
    http:
      paths: [{path: /, pathType: Prefix, backend: {service: {name: shop, port: {name: http}}}}]
---
apiVersion: traefik.io/v1alpha1
kind: IngressRoute
metadata: {name: blog}
spec:
  entryPoints: [web]
  routes:
  - match: Host(`blog.test`)
    kind: Rule
    services: [{name: blog, port: http}]
";

/// Values by the names of Traefik's own chart.
const CONFIG: &str = "
apiVersion: helm.cattle.io/v1
kind: HelmChartConfig
metadata: {name: traefik, namespace: kube-system}
spec:
  valuesContent: |
    deployment: {replicas: 2}
    ports:
      web: {exposedPort: 8880, redirections: {entryPoint: {to: ':443', scheme: https}}}
    logs: {access: {enabled: true}}
    ingressRoute: {dashboard: {enabled: true}}
";

/// All that Traefik's add-on makes, and what is made for it, by name.
const LEFT: &str = "k3s kubectl get -A deployments,services,pods,jobs,secrets,serviceaccounts,ingressclasses,clusterroles,\
     clusterrolebindings,crds,addons,helmcharts -o name >/tmp/left && ! grep traefik /tmp/left";

#[test]
#[ignore = "target/dist has to have Traefik: `cargo xtask ingress`"]
fn traefik_routes_by_default_and_goes_when_it_is_disabled() {
    let network = Network::new();
    let [server, agent, client] = ["server", "agent", "client"].map(|name| Node::boot(&network, name));
    for node in [&server, &agent] {
        node.give_demo_image();
    }
    let started = Instant::now();
    let after = |what: &str| println!("{what} {:.1} s after the start", started.elapsed().as_secs_f32());
    step("by default it is there, and answers at the server's address", || {
        server.start_k3s_with_addons("");
        let answers =
            format!("curl -s -m 2 -o /dev/null -w '%{{http_code}}' http://{}/ | grep -qx 404", server.address());
        client.wait_until_succeeds(&answers, PATIENCE);
        after("traefik");
        let status = server.succeed("k3s status");
        assert!(status.lines().any(|line| line.starts_with("traefik.yaml") && line.contains("applied")), "{status}");
    });
    step("an Ingress and an IngressRoute route by host, at each node's address", || {
        agent.start_k3s_agent(&server, "");
        server.wait_until_node_ready("agent");
        for site in ["shop", "blog"] {
            server.apply(&SITE.replace("SITE", site));
        }
        server.succeed(
            "cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=shop.test \
             -addext subjectAltName=DNS:shop.test -keyout key -out certificate 2>/dev/null",
        );
        server.kubectl("create secret tls shop --cert=/tmp/certificate --key=/tmp/key");
        server.apply(ROUTES);
        for node in [&server, &agent] {
            for site in ["shop", "blog"] {
                let page = format!("{} | grep -qx {site}", fetch(node, "http", 80, site));
                client.wait_until_succeeds(&page, PATIENCE);
            }
        }
        after("both routes");
        client.fail(&fetch(&server, "http", 80, "nobody"));
    });
    step("TLS is that of the Secret", || {
        client.write("/tmp/certificate", &server.succeed("cat /tmp/certificate"));
        for node in [&server, &agent] {
            let page = format!("{} --cacert /tmp/certificate | grep -qx shop", fetch(node, "https", 443, "shop"));
            client.wait_until_succeeds(&page, PATIENCE);
        }
    });
    step("an Ingress tells where it is reached", || {
        let (server_ip, agent_ip) = (server.address(), agent.address());
        let addresses = "k3s kubectl get ingress shop -o jsonpath='{.status.loadBalancer.ingress[*].ip}'";
        let told = format!("{addresses} | grep -w {server_ip} | grep -qw {agent_ip}");
        server.wait_until_succeeds(&told, PATIENCE);
    });
    memory(&server, &agent);
    step("values of a HelmChartConfig are taken", || {
        server.apply(CONFIG);
        let replicas = "k3s kubectl -n kube-system get deployment traefik -o jsonpath='{.status.readyReplicas}'";
        server.wait_until_succeeds(&format!("{replicas} | grep -qx 2"), PATIENCE);
        let redirected = format!(
            "curl -s -m 5 -o /dev/null -w '%{{http_code}} %{{redirect_url}}' --resolve shop.test:8880:{0} \
             http://shop.test:8880/ | grep -qx '301 https://shop.test/'",
            agent.address()
        );
        client.wait_until_succeeds(&redirected, PATIENCE);
        client.wait_until_succeeds(&format!("! curl -s -m 2 http://{}:80/", agent.address()), PATIENCE);
        server.kubectl("get ingressroute traefik-dashboard -n kube-system");
    });
    step("a value that there is not is told by its name, and what runs stays", || {
        server.apply(&CONFIG.replace("logs:", "lgos:"));
        // The sentence has quotation marks, which a shell would take.
        let status = server.wait_for_status("lgos");
        assert!(status.contains("additional properties 'lgos' not allowed"), "{status}");
        let replicas = "-n kube-system get deployment traefik -o jsonpath={.status.readyReplicas}";
        assert_eq!(server.kubectl(replicas), "2");
        server.apply(CONFIG);
    });
    step("disabled, it goes as a whole", || {
        server.stop_k3s();
        server.start_k3s_with_addons("--disable=traefik");
        server.wait_until_succeeds(LEFT, PATIENCE);
        server.succeed("! ls /var/lib/rancher/k3s/server/manifests | grep traefik");
        client.wait_until_succeeds(&format!("! curl -s -m 2 http://{}:8880/", server.address()), PATIENCE);
        // The Ingress is its user's.
        assert_eq!(server.kubectl("get ingress shop -o jsonpath={.spec.rules[0].host}"), "shop.test");
    });
    step("a server that never had it makes none of it", || {
        let other = Node::boot(&network, "other");
        other.start_k3s_with_addons("--disable=traefik");
        other.wait_for_deployment("kube-system", "coredns");
        other.succeed(LEFT);
    });
}

/// A command that asks a node for a site.
fn fetch(node: &Node, scheme: &str, port: u16, site: &str) -> String {
    format!("curl -sSf -m 5 --resolve {site}.test:{port}:{} {scheme}://{site}.test:{port}/", node.address())
}

/// Prints what Traefik takes, wherever it runs.
fn memory(server: &Node, agent: &Node) {
    for node in [server, agent] {
        let pss = node.execute("cat /proc/$(pgrep -x traefik)/smaps_rollup | grep ^Pss: | tr -dc 0-9").stdout;
        if let Ok(kilobytes) = pss.parse::<u32>() {
            println!("traefik on {}: {} MiB PSS", node.name(), kilobytes / 1024);
        }
    }
}
