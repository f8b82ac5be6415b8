//! How a server takes nodes in, seen with nothing but curl and OpenSSL: what agents of k3s send, and what they get.

use cluster_tests::{Network, Node, PATIENCE, step};

/// Of a machine called edge-1.
const PASSWORD: &str = "0123456789abcdef0123456789abcdef";
/// Of another one.
const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// curl as an agent would, on the server itself; prints the code in a last line.
fn ask(server: &Node, path: &str, options: &str) -> (u16, String) {
    let curl = "curl --silent --show-error --cacert /var/lib/rancher/k3s/server/tls/server-ca.crt --write-out '\n%{http_code}'";
    let answer = server.succeed(&format!("{curl} {options} https://127.0.0.1:6443{path}"));
    let (text, code) = answer.trim_end().rsplit_once('\n').expect("the code is in a line of its own");
    (code.parse().expect("a code is a number"), text.to_owned())
}

/// As an agent with the token.
fn agent() -> &'static str {
    "--user node:s3cret"
}

/// With the headers of a node.
fn node(name: &str, password: &str) -> String {
    format!(
        "--header 'k3s-Node-Name: {name}' --header 'k3s-Node-Password: {password}' --header 'k3s-Node-IP: 10.99.0.77'"
    )
}

#[test]
fn a_server_takes_nodes_in_and_keeps_their_names_for_them() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    step("the server starts, and says so while it does", || {
        server.start_k3s("--token=s3cret");
        server.wait_for_open_port(6443, PATIENCE);
        server.wait_until_succeeds(
            "test $(curl -sko /dev/null -w '%{http_code}' -u node:s3cret https://127.0.0.1:6443/v1-k3s/readyz) = 200",
            PATIENCE,
        );
        assert_eq!(ask(&server, "/v1-k3s/readyz", agent()), (200, "ok".into()));
    });
    step("the server's own node has its name to itself", || {
        let secret = "-n kube-system get secret server.node-password.k3s -o";
        server.wait_until_succeeds(&format!("k3s kubectl {secret} name"), PATIENCE);
        assert_eq!(
            server.kubectl(&format!("{secret} jsonpath='{{.type}} {{.immutable}}'")),
            "k3s.cattle.io/node-password true"
        );
        let hash = server.succeed(&format!("k3s kubectl {secret} jsonpath='{{.data.hash}}' | base64 -d"));
        let fields: Vec<&str> = hash.split(':').collect();
        let ["$1", salt, "15", "8", "1", key] = fields[..] else { panic!("{hash} is not a hash of k3s'") };
        let derived = server.succeed(&format!(
            "openssl kdf -keylen 64 -kdfopt pass:$(cat /etc/rancher/node/password) -kdfopt hexsalt:{salt} \
             -kdfopt n:32768 -kdfopt r:8 -kdfopt p:1 -binary SCRYPT | base64 -w0 | tr -d ="
        ));
        assert_eq!(derived.trim(), key, "by OpenSSL's scrypt");
    });
    step("a machine gets certificates for its key, and the name with them", || {
        server.succeed("openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/edge-1.key -subj / -outform DER -out /tmp/edge-1.csr");
        let signed = format!("{} {} --data-binary @/tmp/edge-1.csr -o", agent(), node("Edge-1", PASSWORD));
        for name in ["serving-kubelet", "client-kubelet", "client-kube-proxy", "client-k3s-controller"] {
            let (code, _) = ask(&server, &format!("/v1-k3s/{name}.crt"), &format!("{signed} /tmp/{name}.crt"));
            assert_eq!(code, 200, "{name}");
        }
        let tls = "/var/lib/rancher/k3s/server/tls";
        server.succeed(&format!("openssl verify -CAfile {tls}/server-ca.crt -verify_hostname edge-1 -verify_ip 10.99.0.77 /tmp/serving-kubelet.crt"));
        server
            .succeed(&format!("openssl verify -CAfile {tls}/client-ca.crt -purpose sslclient /tmp/client-kubelet.crt"));
        let subject = server.succeed("openssl x509 -noout -subject -nameopt RFC2253 -in /tmp/client-kubelet.crt");
        assert_eq!(subject.trim(), "subject=CN=system:node:edge-1,O=system:nodes");
        server.kubectl("-n kube-system get secret edge-1.node-password.k3s");
    });
    step("another machine of that name is refused, and both sides say what mends it", || {
        let (code, text) =
            ask(&server, "/v1-k3s/client-kubelet.crt", &format!("{} {}", agent(), node("edge-1", OTHER)));
        assert_eq!(code, 403, "{text}");
        for part in [
            "unable to verify password for node edge-1: hash does not match",
            "k3s node forget edge-1",
            "--with-node-id",
        ] {
            assert!(text.contains(part), "{text}");
            server.succeed(&format!("grep -q -- '{part}' /var/log/k3s.log"));
        }
    });
    step("a certificate counts while there is the node", || {
        let own = "--cert /tmp/client-kubelet.crt --key /tmp/edge-1.key";
        let asked = format!("{own} {} --data-binary @/tmp/edge-1.csr", node("edge-1", PASSWORD));
        assert_eq!(ask(&server, "/v1-k3s/client-kubelet.crt", &asked).0, 401);
        server.apply("{apiVersion: v1, kind: Node, metadata: {name: edge-1}}");
        assert_eq!(ask(&server, "/v1-k3s/client-kubelet.crt", &asked).0, 200);
        let other = format!("{own} {} --data-binary @/tmp/edge-1.csr", node("server", PASSWORD));
        let (code, text) = ask(&server, "/v1-k3s/client-kubelet.crt", &other);
        assert!(code == 400 && text.contains("header node name does not match auth node name"), "{code} {text}");
    });
    step("no machine gets a certificate for an address that is another's", || {
        let addresses = r#"{"status": {"addresses": [{"type": "InternalIP", "address": "10.99.0.78"}]}}"#;
        server.kubectl(&format!("patch node edge-1 --subresource=status --type=merge -p '{addresses}'"));
        let own = server.address();
        for (ips, code) in [
            ("::ffff:10.43.0.1".to_owned(), 400),
            (format!("10.99.0.66,{own}"), 400),
            (format!("::ffff:{own}"), 400),
            ("::ffff:10.99.0.78".to_owned(), 409),
            ("10.99.0.66".to_owned(), 200),
        ] {
            let headers = "--header 'k3s-Node-Name: evil' --header 'k3s-Node-Password: x'";
            let asked = format!("{} {headers} --header 'k3s-Node-IP: {ips}'", agent());
            let (found, text) = ask(&server, "/v1-k3s/serving-kubelet.crt", &asked);
            assert_eq!(found, code, "{ips}: {text}");
        }
    });
    step("the password goes with the node", || {
        let owner = "k3s kubectl -n kube-system get secret edge-1.node-password.k3s -o jsonpath='{.metadata.ownerReferences[0].uid}'";
        server.wait_until_succeeds(
            &format!("test \"$({owner})\" = $(k3s kubectl get node edge-1 -o 'jsonpath={{.metadata.uid}}')"),
            PATIENCE,
        );
        server.kubectl("delete node edge-1");
        server.wait_until_succeeds("! k3s kubectl -n kube-system get secret edge-1.node-password.k3s", PATIENCE);
        let (code, _) = ask(&server, "/v1-k3s/client-kubelet.crt", &format!("{} {}", agent(), node("edge-1", OTHER)));
        assert_eq!(code, 200, "the name is free");
    });
    step("a bootstrap token opens what nodes may ask, until it is deleted", || {
        let token = server.succeed("k3s token create | sed 's/.*:://'");
        let bearer = format!("--header 'Authorization: Bearer {}'", token.trim());
        let (code, config) = ask(&server, "/v1-k3s/config", &bearer);
        assert!(code == 200 && config.contains("\"ClusterDNS\":\"10.43.0.10\""), "{code} {config}");
        assert_eq!(ask(&server, "/v1-k3s/encrypt/status", &bearer).0, 403);
        server.succeed(&format!("k3s token delete {}", &token[..6]));
        // The server knows the tokens by a watch.
        let code = format!("curl -sko /dev/null -w '%{{http_code}}' {bearer} https://127.0.0.1:6443/v1-k3s/config");
        server.wait_until_succeeds(&format!("test $({code}) = 401"), PATIENCE);
    });
    step("nodes are told where the API is", || {
        let (_, addresses) = ask(&server, "/v1-k3s/apiservers", agent());
        assert_eq!(addresses.trim(), format!("[\"{}:6443\"]", server.address()));
    });
    step("a name that cannot be remembered yet is lent, and checked later", || {
        server.apply(
            "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: closed}, webhooks: [{
              name: closed.example.com, clientConfig: {url: 'https://127.0.0.1:1/'}, failurePolicy: Fail, sideEffects: None,
              rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [secrets]}], admissionReviewVersions: [v1],
            }]}",
        );
        let asked =
            |password| ask(&server, "/v1-k3s/client-kubelet.crt", &format!("{} {}", agent(), node("edge-2", password)));
        server.wait_until_succeeds("! k3s kubectl create secret generic probe --dry-run=server", PATIENCE);
        assert_eq!(asked(PASSWORD).0, 200);
        assert_eq!(asked(OTHER).0, 503, "it is the first one's until then");
        server.kubectl("delete validatingwebhookconfiguration closed");
        server.wait_until_succeeds("k3s kubectl -n kube-system get secret edge-2.node-password.k3s", PATIENCE);
        let told =
            "k3s kubectl get events --field-selector reason=NodePasswordValidationComplete -o name | grep edge-2";
        server.wait_until_succeeds(told, PATIENCE);
        assert_eq!((asked(OTHER).0, asked(PASSWORD).0), (403, 200));
    });
    step("what older releases remember stays remembered", || {
        let hash = server.kubectl("-n kube-system get secret edge-2.node-password.k3s -o jsonpath={.data.hash}");
        server.apply(&format!("{{apiVersion: v1, kind: Secret, type: Opaque, immutable: true, data: {{hash: {hash}}}, metadata: {{namespace: kube-system, name: edge-3.node-password.k3s}}}}"));
        server.apply("{apiVersion: v1, kind: Node, metadata: {name: edge-4}}");
        server.succeed("pid=$(pgrep -x k3s); kill -TERM $pid; tail --pid=$pid -f /dev/null");
        server.write(
            "/var/lib/rancher/k3s/server/cred/node-passwd",
            &format!("{OTHER},gone,gone,\n{PASSWORD},edge-4,edge-4,\n"),
        );
        server.start_k3s("--token=s3cret");
        let ready =
            "test $(curl -sko /dev/null -w '%{http_code}' -u node:s3cret https://127.0.0.1:6443/v1-k3s/readyz) = 200";
        server.wait_until_succeeds(ready, PATIENCE);
        for name in ["edge-3", "edge-4"] {
            let kind =
                server.kubectl(&format!("-n kube-system get secret {name}.node-password.k3s -o jsonpath={{.type}}"));
            assert_eq!(kind, "k3s.cattle.io/node-password", "{name}");
            let asked =
                |password| ask(&server, "/v1-k3s/client-kubelet.crt", &format!("{} {}", agent(), node(name, password)));
            assert_eq!((asked(OTHER).0, asked(PASSWORD).0), (403, 200), "{name}");
        }
        server.fail("test -e /var/lib/rancher/k3s/server/cred/node-passwd || k3s kubectl -n kube-system get secret gone.node-password.k3s");
    });
    step("no secret is where other users and other programs see it", || {
        server.fail("tr '\\0' '\\n' < /proc/$(pgrep -x k3s)/cmdline | grep s3cret");
        server.succeed("tr '\\0' ' ' < /proc/$(pgrep -x k3s)/cmdline | grep -F ' --token=******'");
        server.fail("grep -l K3S_ $(pgrep -P $(pgrep -x k3s) | sed 's,.*,/proc/&/environ,')");
    });
    step("no secret is in the log", || {
        server.fail(&format!(
            "grep -e s3cret -e {PASSWORD} -e {OTHER} -e $(cat /etc/rancher/node/password) /var/log/k3s.log"
        ));
    });
}
