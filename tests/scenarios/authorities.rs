//! The certificate authorities of a cluster that runs are replaced, and everything that is signed by them goes over.

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::worker::POD;

/// New authorities below a new root, which each old one has signed too: what k3s' `rotate-default-ca-certs.sh` makes.
const SUCCESSORS: &str = r#"
set -e
old=/var/lib/rancher/k3s/server/tls new=/tmp/new/tls
mkdir -p $new/etcd && cd $new
printf '[ca]\nbasicConstraints=critical,CA:true\nkeyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' > ca.cnf
key() { openssl ecparam -name prime256v1 -genkey -noout -out $1; }
sign() { openssl x509 -req -days 3650 -extfile ca.cnf -extensions ca "$@" 2>/dev/null; }
key root.key
openssl req -new -key root.key -subj /CN=new-root -out root.csr
sign -in root.csr -signkey root.key -out root.crt
for ca in server-ca client-ca request-header-ca etcd/server-ca etcd/peer-ca; do
  key $ca.key
  openssl req -new -key $ca.key -subj /CN=new-$(basename $ca) -out new.csr
  sign -in new.csr -CA root.crt -CAkey root.key -CAcreateserial -out new.crt
  sign -in root.csr -CA $old/$ca.crt -CAkey $old/$ca.key -CAcreateserial -CAserial serial -out cross.crt
  cat new.crt cross.crt root.crt $old/$ca.crt > $ca.crt
done
key service.key
cat $old/service.key >> service.key
rm root.* new.* cross.crt serial ca.cnf
"#;

#[test]
fn a_cluster_goes_over_to_other_authorities() {
    let network = Network::new();
    let [server, agent] = ["server", "agent"].map(|name| Node::boot(&network, name));
    let issuer = |node: &Node, port: u16| {
        node.wait_until_succeeds(
            &format!("openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -issuer"),
            PATIENCE,
        )
    };
    step("a cluster with a pod that has a service account's token", || {
        server.start_k3s("");
        agent.give_demo_image();
        agent.start_k3s_agent(&server, "");
        server.wait_until_ready();
        server.wait_until_node_ready("agent");
        server.apply(POD);
        server.kubectl("wait --for=condition=Ready pod/worker --timeout=120s");
    });
    let token = server.kubectl("create token default");
    step("authorities that the old ones do not vouch for are refused, and nothing changes", || {
        server.succeed(SUCCESSORS);
        let ca = "/tmp/new/tls/server-ca";
        server.succeed(&format!(
            "mkdir -p /tmp/stranger/tls && cp {ca}.key /tmp/stranger/tls/ &&
             openssl req -x509 -new -key {ca}.key -subj /CN=stranger -days 3650 -out /tmp/stranger/tls/server-ca.crt"
        ));
        let refused = server.fail("k3s certificate rotate-ca --path=/tmp/stranger");
        assert!(refused.contains("tls/server-ca.crt") && refused.contains("--force"), "{refused}");
    });
    step("the server stores others, and takes them at its next start", || {
        let told = server.succeed("k3s certificate rotate-ca --path=/tmp/new");
        assert!(told.contains("Whole tokens"), "{told}");
        assert!(!issuer(&server, 6443).contains("new-server-ca"));
        server.stop_k3s();
        server.start_k3s("");
        // While it starts, it shows what it showed last.
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        assert!(issuer(&server, 6443).contains("new-server-ca"));
    });
    step("the node that has not heard of them yet works on", || {
        server.wait_until_succeeds("k3s kubectl exec worker -- true", PATIENCE);
        assert!(!issuer(&agent, 10250).contains("new-server-ca"));
    });
    step("started again with the token of before, it works on, and says what it needs", || {
        agent.stop_k3s();
        agent.restart_k3s_agent("");
        agent.wait_for_status("give the token of this cluster");
        agent.wait_until_component_ready("kubelet");
    });
    step("with the new token it has certificates of theirs", || {
        agent.stop_k3s();
        agent.start_k3s_agent(&server, "");
        agent.wait_until_component_ready("kubelet");
        assert!(issuer(&agent, 10250).contains("new-server-ca"));
        server.wait_until_succeeds("k3s kubectl logs worker | grep -qx hello", PATIENCE);
        server.kubectl("run next --image=docker.io/k3s-rs/demo:0.1.0 --restart=Never --overrides='{\"spec\":{\"nodeName\":\"agent\"}}' -- sleep 1000");
        server.kubectl("wait --for=condition=Ready pod/next --timeout=120s");
    });
    step("a token from before is good still", || {
        server.succeed(&format!(
            "k3s kubectl --token={} --kubeconfig=/dev/null --server=https://127.0.0.1:6443 \
             --certificate-authority=/var/lib/rancher/k3s/server/tls/server-ca.crt auth whoami | grep -q serviceaccount:default:default",
            token.trim()
        ));
    });
}
