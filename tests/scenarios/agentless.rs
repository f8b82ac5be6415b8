//! A control plane without a node, configured by the file.

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::refusal::{DATA_ERROR, refused};

#[test]
fn an_agentless_server_serves_the_api_and_runs_no_node() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    step("the API is served", || {
        let config =
            "disable-agent: true\nsupervisor-metrics: true\nwrite-kubeconfig-mode: '0644'\nresource-profile: small\n";
        server.write("/etc/rancher/k3s/config.yaml", config);
        server.start_k3s("");
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        assert_eq!(server.succeed("stat -Lc %a /etc/rancher/k3s/k3s.yaml").trim(), "644");
        server.kubectl("create configmap stored --from-literal=key=value");
        assert_eq!(server.kubectl("get configmap stored -o jsonpath={.data.key}"), "value");
    });
    step("no node is there, and nothing that one needs", || {
        assert_eq!(server.kubectl("get nodes -o name"), "");
        let children: Vec<_> = server.components().into_keys().collect();
        assert_eq!(children, ["kube-apiserver", "kube-controller-manager", "kube-scheduler"]);
        server.fail("pgrep -x containerd || pgrep -x kubelet || pgrep -x kube-proxy || ip link show cni0 || ip link show flannel.1");
    });
    step("programs are set up for little memory, as the file asks", || {
        let told = server.succeed("k3s status | grep ^resource-profile && k3s check-config | grep resource");
        assert_eq!(told.matches("small (as asked for; the ").count(), 2, "{told}");
        let collector = |program: &str| {
            server.succeed(&format!("tr '\\0' '\\n' < /proc/$(pgrep -x {program})/environ | grep ^GOGC"))
        };
        assert_eq!(collector("kube-scheduler"), "GOGC=25\n");
    });
    step("metrics of the datastore follow those of kube-apiserver", || {
        let page = server.kubectl("get --raw /metrics");
        for metric in
            ["apiserver_request_total{", "k3s_datastore_revision ", "k3s_datastore_requests_total{method=\"KV/Txn\""]
        {
            assert!(page.lines().any(|line| line.starts_with(metric)), "{metric} is not in {page}");
        }
    });
    step("it ends when asked to, and leaves no process", || {
        server.succeed("pid=$(pgrep -x k3s); kill -TERM $pid; tail --pid=$pid -f /dev/null");
        server.fail("pgrep -x k3s || pgrep kube-");
    });
    let data = "/var/lib/rancher/k3s/server";
    step("files that a power cut emptied come from the datastore", || {
        let torn = ["cred/passwd", "tls/server-ca.crt", "tls/server-ca.key", "tls/service.key"];
        for file in torn {
            server.succeed(&format!("cp {data}/{file} /tmp/$(basename {file}) && : > {data}/{file}"));
        }
        server.start_k3s("");
        server.wait_until_succeeds("k3s kubectl get configmap stored", PATIENCE);
        for file in torn {
            server.succeed(&format!("cmp {data}/{file} /tmp/$(basename {file})"));
        }
        server.succeed("test $(grep -c 'are replaced' /var/log/k3s.log) = 1");
        server.stop_k3s();
    });
    step("a database that is gone or empty is no new cluster, unless it is meant", || {
        let lost = "holds nothing, but this server has run a cluster";
        server.succeed(&format!("cp {data}/db/state.db /tmp/ && : > {data}/db/state.db"));
        refused(&server.execute("k3s server"), DATA_ERROR, lost);
        server.succeed(&format!("rm {data}/db/state.db"));
        refused(&server.execute("k3s server"), DATA_ERROR, lost);
        server.fail(&format!("test -e {data}/db/state.db"));
        server.succeed(&format!("mv /tmp/state.db {data}/db/"));
        server.start_k3s("");
        server.wait_until_succeeds("k3s kubectl get configmap stored", PATIENCE);
        server.stop_k3s();
        server.succeed(&format!("rm {data}/db/state.db {data}/tls/dynamic-cert.json"));
        server.start_k3s("");
        server.wait_until_succeeds("k3s kubectl get namespace default", PATIENCE);
        server.fail("k3s kubectl get configmap stored");
    });
}
