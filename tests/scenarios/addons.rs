//! What a user has after the first minute: the packaged add-ons, from an empty machine that reaches no registry.

use std::time::Instant;

use cluster_tests::{Network, Node, PATIENCE, step};

const MANIFESTS: &str = "/var/lib/rancher/k3s/server/manifests";

/// Read by the first pod of cluster DNS: by its name it comes before `coredns.yaml`.
const CUSTOM: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns-custom, namespace: kube-system}
data:
  alias.override: |
    rewrite name alias.test kubernetes.default.svc.cluster.local
  zone.server: |
    zone.test:53 {
        hosts {
            192.0.2.44 host.zone.test
        }
    }
";

const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: docker.io/k3s-rs/demo:0.1.0, command: [sleep, '100000']}
";

/// A claim that names no storage class, and a pod that has its volume; any user may write to it.
const VOLUME: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 65534}
  containers:
  - name: user
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sleep, '100000']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: NAME}}
";

#[test]
fn addons_work_by_default_and_go_when_they_are_disabled() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    server.give_demo_image();
    server.succeed(&format!("mkdir -p {MANIFESTS}"));
    server.write(&format!("{MANIFESTS}/coredns-custom.yaml"), CUSTOM);
    let started = Instant::now();
    let after = |what: &str| println!("{what} {:.1} s after the start", started.elapsed().as_secs_f32());
    step("the node gets Ready", || {
        server.start_k3s_with_addons("");
        server.wait_until_ready();
        after("Ready");
    });
    step("cluster DNS answers for Services, nodes and what users add", || {
        server.apply(CLIENT);
        let address = server.address().to_string();
        for (name, answer) in [
            ("kubernetes.default.svc.cluster.local", "10.43.0.1"),
            ("server", &address),
            ("alias.test", "10.43.0.1"),
            ("host.zone.test", "192.0.2.44"),
        ] {
            let look_up = format!("k3s kubectl exec client -- timeout 5 nslookup -type=a {name}.");
            server.wait_until_succeeds(&format!("{look_up} | grep -E 'Address.* {answer}$'"), PATIENCE);
        }
        after("coredns");
    });
    volumes(&server, &after);
    step("kubectl top knows what nodes and pods use", || {
        server.wait_until_succeeds("k3s kubectl top nodes | grep -E '^server +[0-9]+m'", PATIENCE);
        after("kubectl top nodes");
        server.wait_until_succeeds("k3s kubectl top pods -A | grep -E 'coredns.* [1-9][0-9]*Mi'", PATIENCE);
    });
    step("runtime classes are there for runtimes that containerd finds", || {
        server.kubectl("get runtimeclass crun nvidia wasmtime");
    });
    step("an add-on that the package was made without is told of", || {
        let state = if cluster_tests::dist().join("share/k3s/charts").exists() { "applied" } else { "left out" };
        server.wait_until_succeeds(&format!("k3s status | grep -E '^traefik.yaml +deploy +{state}'"), PATIENCE);
    });
    memory(&server);
    disabled(&server);
}

fn volumes(server: &Node, after: &impl Fn(&str)) {
    step("a claim gets a volume, and data outlive the pod", || {
        server.apply(&VOLUME.replace("NAME", "first"));
        server.wait_until_succeeds("k3s kubectl exec first -- sh -c 'echo kept > /data/file'", PATIENCE);
        after("a volume");
        server.kubectl("delete pod first");
        server.apply(&VOLUME.replace("NAME", "first"));
        let file = server.wait_until_succeeds("k3s kubectl exec first -- cat /data/file", PATIENCE);
        assert_eq!(file, "kept\n");
        // Others on the node do not come to it.
        server.succeed("grep -qx kept /var/lib/rancher/k3s/storage/pvc-*_default_first/file");
        assert_eq!(server.succeed("stat -c %a /var/lib/rancher/k3s/storage").trim(), "700");
    });
    step("a volume's folder goes with its claim", || {
        give_back(server, "first", "/var/lib/rancher/k3s/storage");
    });
}

/// Deletes a claim and its pod, and waits until nothing is left of either, nor of who removed the folder.
fn give_back(server: &Node, name: &str, folder: &str) {
    server.kubectl(&format!("delete pod,pvc {name}"));
    server.wait_until_succeeds(&format!("! ls -d {folder}/pvc-*"), PATIENCE);
    let left = "k3s kubectl get pv,pods -A -o name >/tmp/left && ! grep -E 'persistentvolume/|helper-pod' /tmp/left";
    server.wait_until_succeeds(left, PATIENCE);
}

/// Prints what the programs of the add-ons take.
fn memory(server: &Node) {
    for program in ["coredns", "metrics-server", "local-path-provisioner"] {
        // The kernel keeps 15 letters of a name.
        let pss = format!("cat /proc/$(pgrep -x {program:.15})/smaps_rollup | grep ^Pss: | tr -dc 0-9");
        let kilobytes: u32 = server.succeed(&pss).parse().expect("a number of kB");
        println!("{program}: {} MiB PSS", kilobytes / 1024);
    }
}

fn disabled(server: &Node) {
    step("volumes go where a new flag says, and a disabled add-on goes", || {
        server.stop_k3s();
        server.start_k3s_with_addons("--disable=metrics-server --default-local-storage-path=/srv/volumes");
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        for gone in ["deployment metrics-server", "apiservice v1beta1.metrics.k8s.io"] {
            server.wait_until_succeeds(&format!("! k3s kubectl get -n kube-system {gone} 2>/dev/null"), PATIENCE);
        }
        server.wait_for_deployment("kube-system", "local-path-provisioner");
        server.apply(&VOLUME.replace("NAME", "second"));
        server.wait_until_succeeds("k3s kubectl exec second -- touch /data/file", PATIENCE);
        server.succeed("ls /srv/volumes/pvc-*_default_second/file");
        give_back(server, "second", "/srv/volumes");
    });
    step("nothing is left of what is disabled", || {
        server.stop_k3s();
        server.start_k3s_with_addons("--disable=traefik,metrics-server,servicelb,local-storage");
        let left = "k3s kubectl get -A deployments,storageclasses,apiservices,clusterroles,addons -o name";
        let names = "metrics-server|metrics.k8s.io|local-path|local-storage|traefik";
        server.wait_until_succeeds(&format!("{left} >/tmp/left && ! grep -E '{names}' /tmp/left"), PATIENCE);
        server.wait_until_succeeds(
            "k3s kubectl get pods -n kube-system -o name | grep -vc coredns | grep -qx 0",
            PATIENCE,
        );
        server.succeed(&format!("cd {MANIFESTS} && ! find . -name '*.yaml' | grep -E 'metrics|local|traefik'"));
    });
}
