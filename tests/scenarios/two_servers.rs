//! Two servers on one datastore: one cluster, one token, which lives on when one of them dies.

use cluster_tests::{Network, Node, PATIENCE, step};

const TOKEN: &str = "s3cret";

/// What both servers are given, beside the token.
fn on(store: &Node) -> String {
    format!("--datastore-endpoint=http://{}:2379", store.address())
}

/// The digest of one of the cluster's authorities and keys.
fn digest(server: &Node, file: &str) -> String {
    server.succeed(&format!("sha256sum < /var/lib/rancher/k3s/server/tls/{file}"))
}

/// Waits until the API is published at these servers and no others.
fn wait_for_endpoints(server: &Node, published: &[&Node]) {
    let mut expected: Vec<_> = published.iter().map(|node| node.address().to_string()).collect();
    expected.sort();
    let listed = "k3s kubectl get endpointslices -l kubernetes.io/service-name=kubernetes -o jsonpath='{.items[*].endpoints[*].addresses[*]}'";
    server.wait_until_succeeds(
        &format!("test \"$({listed} | tr ' ' '\\n' | sort | tr '\\n' ' ')\" = '{} '", expected.join(" ")),
        PATIENCE,
    );
}

/// Asks `k3s` to end, and waits for it.
fn stop(server: &Node) {
    server.succeed("pid=$(pgrep -x k3s); kill -TERM $pid; tail --pid=$pid -f /dev/null");
}

#[test]
fn two_servers_share_a_datastore_and_one_outlives_the_other() {
    let network = Network::new();
    let store = Node::boot(&network, "store");
    let (mut one, two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    let flags = format!("{} --token={TOKEN}", on(&store));

    step("a server waits for its datastore, and says so", || {
        one.start_k3s(&format!("{flags} --tls-san=register.example"));
        one.wait_until_succeeds(
            "k3s status | grep 'waiting for datastore (nobody answers at its address: .*http://'",
            PATIENCE,
        );
        assert_eq!(one.succeed("grep -c 'The datastore does not answer yet' /var/log/k3s.log").trim(), "1");
    });
    step("both start on the empty datastore at once, and one makes the authorities", || {
        two.start_k3s(&flags);
        store.background(
            "exec k3s datastore serve --endpoint=sqlite:///var/lib/store.db --listen=http://0.0.0.0:2379 --insecure-listen",
        );
        for server in [&one, &two] {
            server.wait_until_ready();
        }
        for file in ["server-ca.crt", "server-ca.key", "client-ca.key", "request-header-ca.key", "service.key"] {
            assert_eq!(digest(&one, file), digest(&two, file), "{file}");
        }
        let token = "cat /var/lib/rancher/k3s/server/token";
        assert_eq!(one.succeed(token), two.succeed(token));
    });
    step("one API answers through both", || {
        one.kubectl("create configmap stored --from-literal=key=value");
        assert_eq!(two.kubectl("get configmap stored -o jsonpath={.data.key}"), "value");
        let nodes = two.kubectl("get nodes -l node-role.kubernetes.io/control-plane=true -o name");
        assert_eq!(nodes, "node/one\nnode/two\n");
    });
    step("a name of one server is a name of each", || {
        let ask = "curl --fail --silent --cacert /var/lib/rancher/k3s/server/tls/server-ca.crt";
        let named = "--resolve register.example:6443:127.0.0.1 https://register.example:6443/cacerts";
        two.wait_until_succeeds(&format!("{ask} {named}"), PATIENCE);
    });
    step("snapshots are for whoever has the datastore", || {
        let refused = one.fail(&format!("K3S_DATASTORE_ENDPOINT=http://{}:2379 k3s snapshot save", store.address()));
        assert!(refused.contains("kept by an external datastore"), "{refused}");
    });
    step("another token is refused, and nothing is written", || {
        let refused = store.fail(&format!("timeout 60 k3s server {} --token=other", on(&store)));
        assert!(refused.contains("encrypted with different token"), "{refused}");
        store.fail("ls /var/lib/rancher/k3s/server/tls/server-ca.crt");
    });
    step("other settings are refused, each by its name, and nothing is written", || {
        let settings = "--cluster-cidr=10.52.0.0/16 --cluster-domain=other.local --disable-helm-controller";
        let refused = store.execute(&format!("timeout 60 k3s server {flags} {settings}"));
        for told in [
            "--cluster-cidr is 10.52.0.0/16 here and 10.42.0.0/16 there",
            "--cluster-domain is other.local here and cluster.local there",
            "--disable-helm-controller is true here and false there",
        ] {
            crate::refusal::refused(&refused, crate::refusal::CONFIGURATION, told);
        }
        store.fail("ls /var/lib/rancher/k3s/server/tls/server-ca.crt");
    });
    step("authorities of another cluster are refused, each file by its name, and left as they are", || {
        let authority = "sha256sum /var/lib/rancher/k3s/server/tls/server-ca.key";
        let own_cluster = store.start_k3s(&format!("--disable-agent --token={TOKEN}"));
        store.wait_for_log("The Kubernetes API is served.");
        store.succeed(&format!("kill -TERM {0}; tail --pid={0} -f /dev/null", own_cluster.pid));
        let own = store.succeed(authority);
        let refused = store.execute(&format!("timeout 60 k3s server --disable-agent {flags}"));
        for told in ["/server/tls/server-ca.key", "/server/tls/client-ca.crt", "newer than datastore"] {
            crate::refusal::refused(&refused, crate::refusal::CONFIGURATION, told);
        }
        assert_eq!(store.succeed(authority), own);
    });
    step("the API is published at both servers", || wait_for_endpoints(&two, &[&one, &two]));
    step("a bootstrap token is made, listed and deleted", || {
        let token = one.succeed("k3s token create --description=lab --ttl=1h");
        let (hash, bare) = token.trim().split_once("::").expect("a token in full");
        assert!(one.succeed("cat /var/lib/rancher/k3s/server/token").starts_with(hash));
        let id = &bare[..6];
        let secret =
            format!("-n kube-system get secret bootstrap-token-{id} -o jsonpath='{{.type}} {{.data.description}}'");
        assert_eq!(two.kubectl(&secret), "bootstrap.kubernetes.io/token bGFi");
        let listed = two.succeed("k3s token list");
        assert!(listed.contains(id) && !listed.contains(&bare[7..]), "{listed}");
        one.succeed(&format!("k3s token delete {bare}"));
        let missing = one.fail(&format!("k3s token delete {id}"));
        assert!(missing.contains("there is no bootstrap token"), "{missing}");
    });
    step("the token is exchanged, and a server that stops gracefully is gone at once", || {
        one.succeed("k3s token rotate --new-token=n3w");
        one.succeed("grep -q '::server:n3w$' /var/lib/rancher/k3s/server/token");
        let again = one.fail("k3s token rotate --new-token=n3w");
        assert!(again.contains("the new token is the one in use"), "{again}");
        stop(&two);
        wait_for_endpoints(&one, &[&one]);
    });
    step("the other server starts with the new token only", || {
        let refused = two.fail(&format!("timeout 60 k3s server {flags}"));
        assert!(refused.contains("encrypted with different token"), "{refused}");
        two.start_k3s(&format!("{} --token=n3w", on(&store)));
        wait_for_endpoints(&one, &[&one, &two]);
        assert_eq!(
            two.succeed("cat /var/lib/rancher/k3s/server/cred/passwd"),
            one.succeed("cat /var/lib/rancher/k3s/server/cred/passwd")
        );
    });
    step("a node's password is forgotten", || {
        let secret = "k3s kubectl -n kube-system get secret two.node-password.k3s";
        one.wait_until_succeeds(secret, PATIENCE);
        one.succeed("k3s node forget two");
        one.fail(secret);
        assert!(one.fail("k3s node forget nobody").contains("no password of a node nobody is stored"));
    });
    step("when one dies, the other serves, and is published alone", || {
        one.crash();
        two.kubectl("create configmap written-alone");
        wait_for_endpoints(&two, &[&two]);
    });
    step("a clock behind the last known time is waited for", || {
        stop(&two);
        two.succeed("touch -d '3 days' /var/lib/rancher/k3s/clock");
        two.start_k3s(&format!("{} --token=n3w", on(&store)));
        two.wait_until_succeeds(
            "k3s status | grep 'waiting for clock (time synchronisation: the clock is 2 days behind'",
            PATIENCE,
        );
        stop(&two);
    });
}
