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
    step("an object that the store does not take says how large it is", || {
        let large = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: large}\nspec: {a: TEXT}\n";
        let large = large.replace("TEXT", &"x".repeat(2_200_000));
        write("too-large.yaml", &large);
        server.wait_for_status("too-large.yaml: document 1, line 1: Widget large: it has 2.");
        server.wait_for_status("MiB, and the API takes 1.5 MiB at most: divide it");
        server.succeed(&format!("rm {FOLDER}/too-large.yaml"));
    });
    step("an object that moves from one file to another stays, whichever comes first", || {
        let map = |name: &str, round: u32| {
            format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{round: '{round}'}}\n")
        };
        for round in 0..10 {
            let (one, other) = (map("fixed-a", round), map("fixed-z", round));
            let (a, z) = if round % 2 == 0 {
                (one + &map("moving", round), other)
            } else {
                (one, other + &map("moving", round))
            };
            write("a-moving.yaml", &a);
            write("z-moving.yaml", &z);
            for name in ["fixed-a", "fixed-z", "moving"] {
                until(&format!("k3s kubectl get configmap {name} -o jsonpath={{.data.round}} | grep -qx {round}"));
            }
            for name in ["a-moving", "z-moving"] {
                until(&format!(
                    "sum=$(sha256sum < {FOLDER}/{name}.yaml | cut -d' ' -f1); k3s kubectl get addon {name} -n kube-system -o jsonpath={{.spec.checksum}} | grep -qx $sum"
                ));
            }
            server.kubectl("get configmap moving");
        }
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
        write("mine.yaml", &APP.replace("name: app", "name: mine"));
        server.start_k3s("--disable-agent --disable=coredns,mine,trafik");
        until("k3s kubectl get --raw /readyz");
        until(&format!("! test -e {FOLDER}/mine.yaml"));
        server.fail("k3s kubectl get configmap mine");
        server.wait_for_status("disable=trafik: no manifest in the folder is called so");
        is_gone("deployment coredns -n kube-system");
        is_gone("addon coredns -n kube-system");
        server.fail(&format!("test -e {FOLDER}/coredns.yaml"));
        println!("{}", server.succeed("k3s status"));
    });
}
