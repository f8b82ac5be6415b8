//! The folder of manifests: what a user does with it, on the real API.

use cluster_tests::{Network, Node, PATIENCE, step};

const FOLDER: &str = "/var/lib/rancher/k3s/server/manifests";

const APP: &str = include_str!("../manifests/app.yaml");

const WIDGETS: &str = concat!(
    "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: first}\n---\n",
    include_str!("../manifests/widget-crd.yaml"),
);

#[test]
fn what_lies_in_the_folder_is_in_the_cluster() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let write = |name: &str, contents: &str| server.write(&format!("{FOLDER}/{name}"), contents);
    let until = |command: &str| server.wait_until_succeeds(command, PATIENCE);
    let is_gone = |object: &str| until(&format!("! k3s kubectl get {object} 2>/dev/null"));
    step("an agentless server, and files that were there before it", || {
        server.succeed(&format!("mkdir -p {FOLDER}"));
        write("app.yaml", APP);
        server.start_k3s("--disable-agent");
        until("k3s kubectl get configmap,service app");
        let addons = server.kubectl("get addons -n kube-system");
        assert!(addons.contains("coredns") && addons.contains(&format!("{FOLDER}/app.yaml")), "{addons}");
    });
    step("a key and an item that leave a manifest leave the object", || {
        write("app.yaml", &APP.replace(", second: two", "").replace(", {name: metrics, port: 9090}", ""));
        until("k3s kubectl get configmap app -o jsonpath='{.data}' | grep -qx '{\"first\":\"one\"}'");
        until("k3s kubectl get service app -o jsonpath='{.spec.ports[*].name}' | grep -qx http");
    });
    step("a definition and its object come in one file, whatever their order", || {
        write("widgets.yaml", WIDGETS);
        until("k3s kubectl get widget first");
    });
    step("a broken file says where, harms no other, and is applied once it is mended", || {
        write("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mended}\n---\nkind: [\n");
        server.wait_for_status("broken.yaml: document 2, line");
        until(
            "k3s kubectl get events -n kube-system -o jsonpath='{.items[*].message}' | grep -q 'broken.yaml.*document 2, line'",
        );
        write("other.yaml", &APP.replace("name: app", "name: other"));
        until("k3s kubectl get configmap other");
        write("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mended}\n");
        until("k3s kubectl get configmap mended");
        until("k3s status | grep -Eq '^broken.yaml +deploy +applied'");
    });
    step("an object of 1 MiB", || {
        let large = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata:\n  a: {}\n",
            "x".repeat(1_000_000)
        );
        write("large.yaml", &large);
        until("k3s kubectl get configmap large");
    });
    step("an object that leaves a file goes, one that somebody else made stays", || {
        server.kubectl("create configmap foreign");
        write("other.yaml", "# nothing left\n");
        is_gone("configmap other");
        is_gone("service other");
        server.kubectl("get configmap foreign");
    });
    step("a file that is deleted leaves its objects, unless its folder speaks for them", || {
        server.succeed(&format!(
            "rm {FOLDER}/app.yaml; mkdir -p /tmp/one /tmp/two; touch /tmp/one/.authoritative /tmp/two/.authoritative"
        ));
        server.write("/tmp/one/farm.yaml", &APP.replace("name: app", "name: farm"));
        server.succeed(&format!("ln -sfn /tmp/one {FOLDER}/nixos"));
        until("k3s kubectl get configmap,service farm");
        server.succeed(&format!("ln -sfn /tmp/two {FOLDER}/nixos"));
        is_gone("configmap farm");
        is_gone("service farm");
        is_gone("addon farm -n kube-system");
        server.kubectl("get configmap,service app");
    });
    step("a restart with --disable takes an add-on away, with its file", || {
        server.stop_k3s();
        server.start_k3s("--disable-agent --disable=coredns");
        until("k3s kubectl get --raw /readyz");
        is_gone("deployment coredns -n kube-system");
        is_gone("addon coredns -n kube-system");
        server.fail(&format!("test -e {FOLDER}/coredns.yaml"));
        println!("{}", server.succeed("k3s status"));
    });
}
