//! Images for a node that has no registry, or one that is not always there.

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::registry::{Access, Registry};

const FOLDER: &str = "/var/lib/rancher/k3s/agent/images";

/// Fails unless containerd has an image of this name that is never collected.
fn pinned(name: &str) -> String {
    format!("k3s ctr -n k8s.io images ls name=={name} | grep -F io.cri-containerd.pinned=pinned")
}

#[test]
fn images_come_from_folders_and_lists() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let registry = Registry::plain(&server, 5000, Access::Open);
    registry.push("team/listed", "1", &server.path("/opt/k3s-test/images/demo.tar"));
    let listed = format!("{}/team/listed:1", registry.address());
    step("packaged images are known as those of the system's registry, which nobody has to reach", || {
        server.start_k3s("--system-default-registry=registry.example:5000");
        server.wait_until_ready();
        server.succeed(&pinned("docker.io/k3s-rs/pause:0.1.0"));
        server.succeed(&pinned("registry.example:5000/k3s-rs/pause:0.1.0"));
        server.wait_for_deployment("kube-system", "coredns");
        let image = server.kubectl("-n kube-system get deployment coredns -o jsonpath={..image}");
        assert!(image.starts_with("registry.example:5000/k3s-rs/coredns:"), "{image}");
    });
    step("an archive that comes into a folder while the node runs is imported", || {
        server.succeed(&format!("mkdir -p {FOLDER}/later && cp /opt/k3s-test/images/demo.tar {FOLDER}/later/"));
        server.wait_until_succeeds(&pinned("docker.io/k3s-rs/demo:0.1.0"), PATIENCE);
    });
    step("what a list names is pulled as soon as it can be", || {
        server.write(&format!("{FOLDER}/listed.txt"), &format!("# of the team\n{listed}\n"));
        server.wait_for_status("1 of the images that lists name are not pulled yet");
        let address = registry.address();
        server.write(
            "/etc/rancher/k3s/registries.yaml",
            &format!("mirrors:\n  \"{address}\":\n    endpoint: [\"http://{address}\"]\n"),
        );
        server.wait_until_succeeds(&pinned(&listed), PATIENCE);
        server.wait_until_succeeds("k3s status > /tmp/status && ! grep -q 'not pulled yet' /tmp/status", PATIENCE);
    });
    step("a broken archive is told and stops nothing", || {
        server.succeed(&format!("head -c 100000 /opt/k3s-test/images/demo.tar > {FOLDER}/broken.tar"));
        server.wait_for_status("1 of the image archives cannot be used: cannot import");
        server.succeed(&format!("rm {FOLDER}/broken.tar"));
        server.wait_until_succeeds("k3s status > /tmp/status && ! grep -q broken.tar /tmp/status", PATIENCE);
    });
    step("with k3s' record of imports an archive is read once", || {
        server.succeed(&format!("touch {FOLDER}/.cache.json"));
        for _ in 0..2 {
            server.stop_k3s();
            server.start_k3s("--system-default-registry=registry.example:5000");
            server.wait_until_ready();
        }
        server.wait_for_log("are not imported again");
        server.succeed(&format!("grep -q later/demo.tar {FOLDER}/.cache.json"));
        server.succeed(&pinned("docker.io/k3s-rs/demo:0.1.0"));
    });
}
