//! Images from registries as registries.yaml tells: mirrors, credentials, TLS; and what becomes of it while the node runs.

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::{
    refusal::{CONFIGURATION, last_line},
    registry::{Access, CA, Registry},
};

const FILE: &str = "/etc/rancher/k3s/registries.yaml";
const CERTS: &str = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d";

/// What the node is to say of one registry, which is the mirror of another.
fn settings(registry: &Registry, password: &str) -> String {
    let address = registry.address();
    format!(
        "mirrors:
  images.example:
    endpoint: [\"https://{address}\"]
    rewrite: {{\"^(.*)$\": \"cache/$1\"}}
configs:
  \"{address}\":
    auth: {{username: puller, password: {password}}}
    tls: {{ca_file: {CA}}}
"
    )
}

#[test]
fn images_come_from_where_registries_yaml_says() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let registry = Registry::with_tls(&server, 5000, Access::Basic("puller", "first-secret"));
    let archive = server.path("/opt/k3s-test/images/demo.tar");
    for tag in ["1", "2", "3", "4"] {
        registry.push("cache/team/demo", tag, &archive);
    }
    let run = |name: &str, image: &str| {
        server.kubectl(&format!("run {name} --image={image} --image-pull-policy=Always"));
    };
    let is_ready = |name: &str| {
        server
            .wait_until_succeeds(&format!("k3s kubectl wait --for=condition=Ready pod/{name} --timeout=20s"), PATIENCE);
    };
    let waits = |name: &str| {
        let reason = "{.status.containerStatuses[0].state.waiting.reason}";
        server.wait_until_succeeds(
            &format!("k3s kubectl get pod {name} -o jsonpath='{reason}' | grep -E 'ErrImagePull|ImagePullBackOff'"),
            PATIENCE,
        );
    };
    step("a server pulls a pod's image from the mirror, with credentials and its authority", || {
        server.write(FILE, &settings(&registry, "first-secret"));
        server.succeed("k3s check-config | grep '^ok .*the configuration'");
        server.start_k3s("--disable=coredns");
        server.wait_until_ready();
        run("one", "images.example/team/demo:1");
        is_ready("one");
        let asked = registry.asked();
        assert!(asked.iter().any(|line| line.ends_with("/v2/cache/team/demo/manifests/1 200")), "{asked:?}");
        assert!(asked.iter().all(|line| !line.ends_with(" 401")), "nothing is asked without credentials: {asked:?}");
    });
    step("the secret is in no log and in no file that others read", || {
        server.fail("grep -rq first-secret /var/log/k3s.log");
        let encoded = "cHVsbGVyOmZpcnN0LXNlY3JldA==";
        server.fail(&format!("grep -q {encoded} /var/log/k3s.log"));
        server.succeed(&format!("test $(stat -c %a {CERTS}/images.example/hosts.toml) = 600"));
        server.succeed(&format!("test $(stat -c %a {CERTS}/images.example) = 700"));
    });
    step("a change is taken by the containerd that runs", || {
        let before = server.components()["containerd"];
        server.write(FILE, &settings(&registry, "wrong-secret"));
        server.wait_for_log("Images are pulled by new settings of registries.");
        run("two", "images.example/team/demo:2");
        waits("two");
        server.write(FILE, &settings(&registry, "first-secret"));
        is_ready("two");
        assert_eq!(server.components()["containerd"], before);
    });
    step("a broken file is told, and what was good stays", || {
        server.write(FILE, "mirrors:\n  images.example:\n    endpoints: []\n");
        let status = server.wait_for_status(&format!("{FILE} line 3: unknown field `endpoints`"));
        assert!(status.contains("stay as they were"), "{status}");
        run("three", "images.example/team/demo:3");
        is_ready("three");
        server.write(FILE, &settings(&registry, "first-secret"));
        server.wait_until_succeeds("k3s status > /tmp/status && ! grep -q registries.yaml /tmp/status", PATIENCE);
    });
    step("a registry that wants tokens gives them for the same credentials", || {
        let other = Registry::with_tls(&server, 5001, Access::Token("puller", "second-secret"));
        other.push("team/demo", "1", &archive);
        let address = other.address();
        server.write(
            FILE,
            &format!("configs:\n  \"{address}\":\n    auth: {{username: puller, password: second-secret}}\n    tls: {{insecure_skip_verify: true}}\n"),
        );
        run("other", &format!("{address}/team/demo:1"));
        is_ready("other");
        let asked = other.asked();
        assert!(asked.iter().any(|line| line == "GET /token 200"), "{asked:?}");
        // What is not in the file any more is not in containerd's folder either.
        server.succeed(&format!("test ! -e {CERTS}/images.example"));
        run("four", "images.example/team/demo:4");
        waits("four");
    });
    step("the node does not start by a broken file, and says where it is", || {
        server.stop_k3s();
        server.write(FILE, "configs:\n  registry.example:\n    auth: {identity_token: third-secret}\n");
        let refused = server.execute("k3s check-config");
        assert_eq!(refused.code, CONFIGURATION, "{refused}");
        let refused = server.execute("k3s server");
        assert_eq!(refused.code, CONFIGURATION, "{refused}");
        let told = last_line(&refused);
        assert!(told.contains(&format!("{FILE} line 3: identity_token is not served")), "{told}");
        assert!(!refused.to_string().contains("third-secret"), "{refused}");
    });
}
