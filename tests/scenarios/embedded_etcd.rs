//! Servers that keep the cluster's state in an etcd of their own.

use std::{collections::BTreeMap, time::Duration};

use cluster_tests::{Network, Node, PATIENCE, Process, Writer, step};

const FOLDER: &str = "/var/lib/rancher/k3s/server/db/etcd";

/// A pod that runs on the agent.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: after}
spec:
  containers:
    - name: demo
      image: docker.io/k3s-rs/demo:0.1.0
"#;

/// A pod that whoever execs into it finds running.
const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeSelector: {kubernetes.io/hostname: agent}
  containers:
    - name: web
      image: docker.io/k3s-rs/demo:0.1.0
      command: [sh, -c, "exec httpd -f -p 8080"]
"#;

/// Whether the children are those of before, but for etcd.
fn others_live(before: &BTreeMap<String, Process>, after: &BTreeMap<String, Process>) -> bool {
    before.iter().all(|(name, process)| name == "etcd" || after.get(name) == Some(process))
}

/// What `k3s status` says of the members: each one's name without its suffix, and what it is.
fn members(server: &Node) -> BTreeMap<String, String> {
    let status = server.status();
    let tasks = status["tasks"].as_array().cloned().unwrap_or_default();
    let task = tasks.into_iter().find(|task| task["name"] == "etcd-member").unwrap_or_default();
    let member = |object: &serde_json::Value| {
        let (name, state) = (object["object"].as_str()?, object["state"].as_str()?);
        Some((name.rsplit_once('-').map_or(name, |(node, _)| node).to_owned(), state.to_owned()))
    };
    task["objects"].as_array().into_iter().flatten().filter_map(member).collect()
}

/// Waits until a server knows these members and no others, all with a vote.
pub(crate) fn wait_for_voters(server: &Node, nodes: &[&Node]) {
    server.wait_for_status(&format!("of {} members with a vote and 0 that learn", nodes.len()));
    let expected: Vec<_> = nodes.iter().map(|node| node.name()).collect();
    let known = members(server);
    assert!(known.len() == nodes.len() && expected.iter().all(|name| known.contains_key(*name)), "{known:?}");
}

#[test]
fn a_first_server_runs_etcd_which_is_restarted_alone() {
    let network = Network::new();
    let mut server = Node::boot(&network, "one");
    let flags = "--token=s3cret --etcd-arg=quota-backend-bytes=4294967296";

    step("the store starts before the rest, with k3s' files", || {
        server.start_k3s(&format!("--cluster-init {flags}"));
        server.wait_until_ready();
        let settings = server.succeed(&format!("cat {FOLDER}/config"));
        assert!(settings.contains("\"quota-backend-bytes\": 4294967296"), "{settings}");
        assert!(server.succeed(&format!("cat {FOLDER}/name")).starts_with("one-"));
        server.wait_for_log("Measured the disk of etcd");
        let status = server.status();
        let moments = status["timeline"].as_array().expect("the status has a timeline");
        let at =
            |name: &str, what: &str| moments.iter().position(|moment| moment["name"] == name && moment["what"] == what);
        let (ready, started) = (at("etcd", "ready"), at("kube-apiserver", "starting"));
        assert!(ready.is_some() && ready < started, "{moments:?}");
    });
    step("the status tells of the member", || {
        server.wait_for_status("the leader is one-");
        assert_eq!(members(&server), BTreeMap::from([("one".to_owned(), "leader".to_owned())]));
        server.wait_for_status("fdatasync takes");
    });
    step("the cluster's authorities are in etcd, sealed by the token", || {
        // `/bootstrap/` to `/bootstrap0`, in base64.
        let range = r#"{"key": "L2Jvb3RzdHJhcC8=", "range_end": "L2Jvb3RzdHJhcDA=", "keys_only": true}"#;
        let found = server.succeed(&format!(
            "cd /var/lib/rancher/k3s/server/tls/etcd && curl -sf --cacert server-ca.crt --cert client.crt --key client.key https://127.0.0.1:2382/v3/kv/range -d '{range}'"
        ));
        let found: serde_json::Value = serde_json::from_str(&found).expect("etcd answers in JSON");
        let keys: Vec<_> = found["kvs"].as_array().into_iter().flatten().map(|kv| &kv["key"]).collect();
        // `/bootstrap/1ec1c26b50d5`: what s3cret seals.
        assert_eq!(keys, ["L2Jvb3RzdHJhcC8xZWMxYzI2YjUwZDU="]);
    });
    step("the node says which member it has", || {
        let annotation = "get node one -o jsonpath='{.metadata.annotations.etcd\\.k3s\\.cattle\\.io/node-name}'";
        let name = server.succeed(&format!("cat {FOLDER}/name"));
        server.wait_until_succeeds(&format!("test \"$(k3s kubectl {annotation})\" = {name}"), PATIENCE);
        assert_eq!(server.kubectl("get nodes -l node-role.kubernetes.io/etcd=true -o name"), "node/one\n");
    });
    step("metrics are shown on loopback alone", || {
        server.succeed("curl -sf http://127.0.0.1:2381/metrics | grep -q ^etcd_server_has_leader");
        server.fail(&format!("curl -sf http://{}:2381/metrics", server.address()));
    });
    step("etcd dies and is restarted alone", || {
        let before = server.components();
        server.kill(before["etcd"]);
        let after = server.wait_for_components(|running| running.get("etcd").is_some_and(|new| *new != before["etcd"]));
        assert!(others_live(&before, &after), "{before:?} became {after:?}");
        server.wait_until_succeeds("k3s kubectl create configmap after-etcd", PATIENCE);
        assert!(others_live(&before, &server.components()));
    });
    step("it goes on from its data, without being told that it is a member", || {
        server.stop_k3s();
        let log = server.succeed("cat /var/log/k3s.log");
        assert!(log.trim_end().ends_with("Stopped."), "{log}");
        server.crash();
        server.start();
        server.start_k3s(flags);
        server.wait_until_ready();
        server.kubectl("get configmap after-etcd");
    });
    step("a member whose data is lost does not begin anew by itself", || {
        server.stop_k3s();
        server.succeed(&format!("mv {FOLDER} /var/lib/lost"));
        let refused = server.fail(&format!("timeout 60 k3s server --cluster-init {flags}"));
        assert!(refused.contains("holds nothing, but this server has run a cluster"), "{refused}");
    });
}

#[test]
fn three_servers_outlive_one_of_them() {
    let network = Network::new();
    let (mut one, two, mut three) =
        (Node::boot(&network, "one"), Node::boot(&network, "two"), Node::boot(&network, "three"));
    let agent = Node::boot(&network, "agent");
    let flags = "--token=s3cret --disable-agent";
    let join = |server: &Node| format!("--token=s3cret --server=https://{}:6443", server.address());

    step("a second and a third server join the first", || {
        one.start_k3s(&format!("--cluster-init {flags}"));
        one.wait_for_log("The Kubernetes API is served.");
        // They need not wait for each other.
        two.start_k3s(&join(&one));
        three.start_k3s(&join(&one));
        for server in [&two, &three] {
            server.wait_until_ready();
        }
        for server in [&one, &two, &three] {
            wait_for_voters(server, &[&one, &two, &three]);
        }
        for file in ["server-ca.crt", "client-ca.key", "etcd/peer-ca.key", "service.key"] {
            let digest = format!("sha256sum < /var/lib/rancher/k3s/server/tls/{file}");
            assert_eq!(one.succeed(&digest), three.succeed(&digest), "{file}");
        }
        one.kubectl("create configmap stored --from-literal=key=value");
        assert_eq!(three.kubectl("get configmap stored -o jsonpath={.data.key}"), "value");
    });
    step("a server with other settings, or another token, is told so", || {
        let differs = agent.fail(&format!("timeout 60 k3s server {} --cluster-cidr=10.50.0.0/16", join(&one)));
        assert!(differs.contains("--cluster-cidr is 10.50.0.0/16 here and 10.42.0.0/16 there"), "{differs}");
        let refused =
            agent.fail(&format!("timeout 60 k3s server --token=other --server=https://{}:6443", one.address()));
        assert!(refused.contains("does not accept the token"), "{refused}");
        agent.fail("ls /var/lib/rancher/k3s/server/tls/server-ca.crt");
    });
    step("an agent learns where all servers are", || {
        agent
            .write("/etc/rancher/k3s/config.yaml", &format!("server: https://{}:6443\ntoken: s3cret\n", one.address()));
        agent.restart_k3s_agent("");
        one.wait_until_node_ready("agent");
        let state = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json";
        for server in [&one, &two, &three] {
            agent.wait_until_succeeds(&format!("grep -q '\"{}:6443\"' {state}", server.address()), PATIENCE);
        }
    });
    step("the first server dies, and writes go on", || {
        one.crash();
        two.wait_until_written("without-one");
        three.kubectl("get configmap without-one");
        agent.wait_until_succeeds(
            "k3s kubectl --kubeconfig=/var/lib/rancher/k3s/agent/kubelet.kubeconfig --request-timeout=2s get node agent",
            PATIENCE,
        );
    });
    step("without a quorum the last one says what to do", || {
        three.crash();
        two.wait_for_status("1 of 3 members answer and 2 are needed: start the servers that are away");
        three.start();
        three.start_k3s("--token=s3cret");
        two.wait_until_written("quorum-again");
    });
    step("the first server comes back", || {
        one.start();
        one.start_k3s(flags);
        one.wait_until_succeeds("k3s kubectl get configmap quorum-again", PATIENCE);
    });
    step("a deleted node takes its member along", || {
        one.wait_until_node_ready("three");
        one.kubectl("delete node three --timeout=120s");
        wait_for_voters(&one, &[&one, &two]);
        three.wait_for_status("etcd: restart it with --server=https://HOST:6443 of another server to join again");
    });
    step("a removed member that comes back is told so, and joins anew when it is asked to", || {
        three.stop_k3s();
        let refused = three.fail("timeout 60 k3s server --token=s3cret");
        assert!(
            refused.contains("was removed from the cluster's etcd: to join again, start it with --server="),
            "{refused}"
        );
        three.start_k3s(&join(&two));
        wait_for_voters(&one, &[&one, &two, &three]);
        three.wait_until_ready();
        three.succeed("ls -d /var/lib/rancher/k3s/server/db/etcd-backup-*");
    });
}

/// Needs `strace`, by which whatever a server or its children make durable takes a fifth of a second more.
#[test]
#[ignore = "minutes of waiting for a disk"]
fn three_servers_bear_with_slow_disks() {
    const SLOW: &str =
        "strace -f --seccomp-bpf -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_exit=200000";
    let network = Network::new();
    let (mut one, two, three) =
        (Node::boot(&network, "one"), Node::boot(&network, "two"), Node::boot(&network, "three"));
    let flags = "--token=s3cret --disable-agent";

    step("they come up, and say what is slow", || {
        one.start_k3s_with(SLOW, &format!("--cluster-init {flags}"));
        one.wait_for_log("The Kubernetes API is served.");
        for server in [&two, &three] {
            server.start_k3s_with(SLOW, &format!("--server=https://{}:6443 {flags}", one.address()));
        }
        for server in [&one, &two, &three] {
            wait_for_voters(server, &[&one, &two, &three]);
            server.wait_for_status("to make a write durable, and etcd wants 10 ms");
            server.wait_until_succeeds("k3s kubectl get --raw=/readyz", PATIENCE);
        }
    });
    step("two minutes of writes change no leader and end no child", || {
        let changes = |server: &Node| {
            server.succeed("curl -sf http://127.0.0.1:2381/metrics | grep ^etcd_server_leader_changes_seen_total")
        };
        let seen = || [&one, &two, &three].map(|server| (changes(server), server.components()));
        let before = seen();
        let writer = Writer::start(&two, 6443, &one);
        let longest = writer.through_all(Duration::from_secs(120), || {});
        println!("  a write took {:.1} s at most", longest.as_secs_f64());
        assert_eq!(seen(), before);
        writer.stop(&three);
    });
    step("a server dies, and writes go on", || {
        let writer = Writer::start(&two, 6443, &one);
        let silent = writer.through(|| one.crash());
        println!("  nothing was written for {:.1} s", silent.as_secs_f64());
        writer.stop(&three);
    });
}

#[test]
fn a_server_without_etcd_uses_that_of_the_others() {
    let network = Network::new();
    let (one, two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    let (plain, agent) = (Node::boot(&network, "plain"), Node::boot(&network, "agent"));
    let flags = "--token=s3cret --disable-agent";
    let join = |server: &Node| format!("{flags} --server=https://{}:6443", server.address());

    step("it joins the servers that have etcd, and runs none", || {
        one.start_k3s(&format!("--cluster-init {flags}"));
        one.wait_for_log("The Kubernetes API is served.");
        let refused = plain.fail(&format!("timeout 60 k3s server --disable-etcd {flags}"));
        assert!(refused.contains("--disable-etcd: it needs a server that runs etcd"), "{refused}");
        plain.start_k3s(&format!("--disable-etcd {}", join(&one)));
        plain.wait_for_log("The Kubernetes API is served.");
        assert!(!plain.components().contains_key("etcd"), "{:?}", plain.components());
        plain.fail(&format!("ls {FOLDER}"));
        wait_for_voters(&one, &[&one]);
    });
    step("what is written through one is read through the other", || {
        plain.kubectl("create configmap stored --from-literal=key=value");
        assert_eq!(one.kubectl("get configmap stored -o jsonpath={.data.key}"), "value");
        let digest = "sha256sum < /var/lib/rancher/k3s/server/tls/server-ca.crt";
        assert_eq!(one.succeed(digest), plain.succeed(digest));
    });
    step("an agent joins by way of it", || {
        agent.start_k3s_agent(&plain, "");
        one.wait_until_node_ready("agent");
    });
    step("it learns of another member", || {
        two.start_k3s(&join(&one));
        wait_for_voters(&one, &[&one, &two]);
        plain.wait_for_log(&format!("{}:2379", two.address()));
    });
    step("it comes up again by what it knows, out of reach of the server that it joined by", || {
        plain.stop_k3s();
        plain.block(&one);
        plain.start_k3s(&format!("--disable-etcd {}", join(&one)));
        plain.wait_until_succeeds("k3s kubectl get configmap stored", PATIENCE);
    });
}

#[test]
fn servers_of_etcd_alone_and_a_server_of_the_control_plane_alone() {
    let network = Network::new();
    let (etcd, two) = (Node::boot(&network, "etcd"), Node::boot(&network, "two"));
    let (plane, agent) = (Node::boot(&network, "plane"), Node::boot(&network, "agent"));
    let etcd_alone = "--token=s3cret --disable-apiserver --disable-controller-manager --disable-scheduler";
    let taint = "--node-taint=node-role.kubernetes.io/etcd=true:NoExecute";
    let join = format!("--server=https://{}:6443", etcd.address());
    let roles = |role: &str| plane.kubectl(&format!("get nodes -l node-role.kubernetes.io/{role}=true -o name"));
    let exec = || {
        let echoed = "echo hello | k3s kubectl exec -i web -- cat";
        plane.wait_until_succeeds(&format!("test \"$({echoed})\" = hello"), PATIENCE);
    };

    step("a server of etcd alone comes first, and says what it waits for", || {
        let refused = etcd.fail(&format!("timeout 60 k3s server {etcd_alone}"));
        assert!(refused.contains("--disable-apiserver: it is for a server that runs etcd"), "{refused}");
        etcd.start_k3s(&format!("--cluster-init {etcd_alone} {taint}"));
        etcd.wait_for_log("etcd is served");
        etcd.wait_for_status(&format!("no server with kube-apiserver has joined yet: start one with {join}"));
        wait_for_voters(&etcd, &[&etcd]);
        let told = etcd.succeed("curl -sk https://127.0.0.1:6443/readyz");
        assert!(told.contains("apiserver disabled"), "{told}");
        assert_eq!(etcd.succeed("curl -sk https://127.0.0.1:6443/ping"), "pong");
        let saved = etcd.succeed("k3s etcd-snapshot save");
        assert!(saved.contains("server/db/snapshots/on-demand-etcd-"), "{saved}");
    });
    step("each verb works there, or says why not", || {
        let listed = etcd.succeed("k3s etcd-snapshot ls");
        let name = listed.lines().nth(1).and_then(|row| row.split_whitespace().next()).expect("it lists the snapshot");
        etcd.succeed(&format!("k3s etcd-snapshot prune --snapshot-retention=1 && k3s etcd-snapshot delete {name}"));
        assert!(etcd.succeed("k3s certificate check").contains("is ok, expires at"));
        assert!(etcd.succeed("k3s secrets-encrypt status").contains("Encryption Status: Disabled"));
        let no_api =
            "the cluster has no API yet: no server with kube-apiserver has joined yet: start one with --server=";
        for verb in ["token list", "token create", "node forget plane"] {
            let refused = etcd.execute(&format!("k3s {verb}"));
            assert!(refused.code == 69 && refused.stderr.contains(no_api), "{verb}: {refused}");
        }
        let refused = etcd.execute("k3s secrets-encrypt rotate-keys");
        assert!(refused.code == 65 && refused.stderr.contains("this server runs no kube-apiserver"), "{refused}");
        let refused = etcd.fail("k3s kubectl get nodes");
        assert!(
            refused.contains("k3s: the cluster has no API yet that kubectl could ask: no server with"),
            "{refused}"
        );
        assert!(etcd.execute("k3s kubectl config view").code == 0);
    });
    step("a server without etcd joins, and both nodes get Ready", || {
        plane.start_k3s(&format!("--token=s3cret --disable-etcd {join}"));
        for node in [&plane, &etcd] {
            plane.wait_until_node_ready(node.name());
        }
        let children = |server: &Node| server.components().into_keys().collect::<Vec<_>>();
        etcd.wait_until_component_ready("kube-proxy");
        assert_eq!(children(&etcd), ["containerd", "etcd", "kube-proxy", "kubelet"]);
        assert!(!children(&plane).contains(&"etcd".to_owned()));
        plane.wait_until_succeeds("k3s kubectl get node -l node-role.kubernetes.io/etcd=true | grep etcd", PATIENCE);
        assert_eq!((roles("etcd").as_str(), roles("control-plane").as_str()), ("node/etcd\n", "node/plane\n"));
    });
    step("the API is served by the one, and reached from the other by its load balancer", || {
        let published = plane.kubectl("get endpoints kubernetes -o jsonpath={.subsets[*].addresses[*].ip}");
        assert_eq!(published, plane.address().to_string());
        etcd.wait_for_status(&format!("the load balancer leads to kube-apiserver at {}:6443", plane.address()));
        etcd.kubectl("get node plane");
        etcd.succeed("k3s token list");
        let refused = etcd.fail("k3s secrets-encrypt rotate-keys");
        assert!(refused.contains("this server runs no kube-apiserver"), "{refused}");
    });
    step("an agent joins by way of the server of etcd, and goes to the other", || {
        agent.give_demo_image();
        agent.start_k3s_agent(&etcd, "");
        plane.wait_until_node_ready("agent");
        let state = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json";
        agent.wait_until_succeeds(&format!("grep -q '\"{}:6443\"' {state}", plane.address()), PATIENCE);
        agent.fail(&format!("grep -q '\"{}:6443\"' {state}", etcd.address()));
    });
    step("a pod runs, and exec reaches it; servers reach each node's kubelet", || {
        plane.apply(WEB);
        plane.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/web --timeout=20s", PATIENCE);
        exec();
        let stats = plane.kubectl("get --raw /api/v1/nodes/etcd/proxy/stats/summary");
        assert!(stats.contains("\"nodeName\""), "{stats}");
    });
    step("the server of etcd is restarted, and the control plane works on", || {
        etcd.stop_k3s();
        etcd.start_k3s(&format!("{etcd_alone} {taint}"));
        plane.wait_until_written("after");
        etcd.wait_until_succeeds("k3s kubectl --request-timeout=5s get configmap after", PATIENCE);
        plane.wait_until_node_ready("etcd");
        exec();
    });
    step("both are stopped, and the control plane is started first", || {
        plane.stop_k3s();
        etcd.stop_k3s();
        plane.start_k3s(&format!("--token=s3cret --disable-etcd {join}"));
        plane.wait_for_log("The datastore does not answer yet");
        etcd.start_k3s(&format!("{etcd_alone} {taint}"));
        plane.wait_until_succeeds("k3s kubectl --request-timeout=5s get configmap after", PATIENCE);
        exec();
    });
    step("another one joins, gets its vote, and goes with its node", || {
        two.start_k3s(&format!("{join} {etcd_alone} {taint}"));
        wait_for_voters(&etcd, &[&etcd, &two]);
        plane.wait_until_node_ready("two");
        plane.wait_until_succeeds("k3s kubectl get node two -o yaml | grep -q managed-etcd-controller", PATIENCE);
        plane.kubectl("delete node two --timeout=120s");
        wait_for_voters(&etcd, &[&etcd]);
    });
}

#[test]
fn a_server_on_sqlite_becomes_the_first_of_several() {
    let network = Network::new();
    let (one, two, agent) = (Node::boot(&network, "one"), Node::boot(&network, "two"), Node::boot(&network, "agent"));
    let flags = "--token=s3cret --disable-agent";
    let sqlite = "/var/lib/rancher/k3s/server/db/state.db";
    // In the order of their last changes; what changes by itself left out.
    let objects = || {
        let kinds =
            "namespaces,configmaps,secrets,serviceaccounts,clusterroles,clusterrolebindings,services,priorityclasses";
        let columns = "custom-columns=RV:.metadata.resourceVersion,UID:.metadata.uid,KIND:.kind,NAME:.metadata.name";
        let listed = one.succeed(&format!("k3s kubectl get {kinds} -A --no-headers -o {columns} | sort -n"));
        let objects = listed.lines().map(|line| line.trim().split_once(' ').expect("it has columns"));
        objects
            .map(|(revision, object)| (revision.parse::<u64>().expect("a number"), object.trim().to_owned()))
            .collect::<Vec<_>>()
    };

    let before = step("a cluster of one server, on SQLite, with an agent", || {
        one.start_k3s(flags);
        one.wait_for_log("The Kubernetes API is served.");
        agent.give_demo_image();
        agent.start_k3s_agent(&one, "");
        one.wait_until_node_ready("agent");
        one.kubectl("create configmap first");
        one.kubectl("create configmap second");
        one.kubectl("annotate configmap first changed=last");
        one.wait_until_succeeds("k3s kubectl get serviceaccount default", PATIENCE);
        one.stop_k3s();
        // Controllers of the old run have written their last.
        one.start_k3s(&format!("{flags} --disable-scheduler --disable-controller-manager"));
        one.wait_until_succeeds("k3s kubectl get configmap second", PATIENCE);
        let before = objects();
        one.stop_k3s();
        before
    });
    step("with --cluster-init it goes on in etcd, with every object and the order of their changes", || {
        one.start_k3s(&format!("--cluster-init {flags} --disable-scheduler --disable-controller-manager"));
        one.wait_for_log("is in etcd; the SQLite file of before is kept");
        one.wait_until_succeeds("k3s kubectl get configmap second", PATIENCE);
        let after = objects();
        let names = |objects: &[(u64, String)]| objects.iter().map(|(_, object)| object.clone()).collect::<Vec<_>>();
        let kept: Vec<_> = names(&after).into_iter().filter(|object| names(&before).contains(object)).collect();
        assert_eq!(kept.len(), before.len(), "{before:?} became {after:?}");
        let list = one.kubectl("get --raw /api/v1/namespaces?limit=1");
        let list: serde_json::Value = serde_json::from_str(&list).expect("a list is JSON");
        let listed_at = list["metadata"]["resourceVersion"].as_str().and_then(|revision| revision.parse::<u64>().ok());
        assert!(listed_at > before.last().map(|(revision, _)| *revision), "{}", list["metadata"]);
        let order = |objects: &[(u64, String)]| {
            names(objects)
                .into_iter()
                .filter(|object| object.contains("first") || object.contains("second"))
                .collect::<Vec<_>>()
        };
        assert_eq!(order(&after), order(&before));
        one.succeed(&format!("ls {sqlite}.migrated && ! ls {sqlite} && ! ls -d {FOLDER}-*"));
        one.stop_k3s();
    });
    step("nodes of before find what is new", || {
        one.start_k3s(flags);
        one.wait_for_log("The Kubernetes API is served.");
        one.apply(POD);
        one.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/after --timeout=5s", PATIENCE);
    });
    step("a second server joins", || {
        two.start_k3s(&format!("{flags} --server=https://{}:6443", one.address()));
        wait_for_voters(&two, &[&one, &two]);
        two.wait_until_succeeds("k3s kubectl get configmap first", PATIENCE);
    });
    step("one whose state is a cluster of its own does not join another", || {
        two.stop_k3s();
        two.succeed(&format!("rm -r {FOLDER} && touch {sqlite}"));
        let refused = two.fail(&format!("timeout 60 k3s server {flags} --server=https://{}:6443", one.address()));
        assert!(refused.contains("holds the state of a cluster of its own: leave --server out"), "{refused}");
    });
}

#[test]
fn a_move_to_etcd_that_is_killed_begins_anew() {
    const OBJECTS: usize = 400;
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let flags = "--token=s3cret --disable-agent --disable-scheduler --disable-controller-manager";
    let db = "/var/lib/rancher/k3s/server/db";
    let names = || server.kubectl("get configmaps -o name | sort");
    let killed_at = |path: &str, flags: &str| {
        let k3s = server.start_k3s(flags);
        server.succeed(&format!(
            "until test -e {path}; do sleep 0.01; done; kill -KILL {0}; tail --pid={0} -f /dev/null",
            k3s.pid
        ));
    };

    let before = step("a cluster on SQLite, with many objects", || {
        server.start_k3s(flags);
        server.wait_for_log("The Kubernetes API is served.");
        let object = |n: usize| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: many-{n}}}\ndata: {{value: {}}}\n",
                "x".repeat(2000)
            )
        };
        server.apply(&(0..OBJECTS).map(object).collect::<Vec<_>>().join("---\n"));
        let before = names();
        assert!(before.lines().count() >= OBJECTS, "{before}");
        server.stop_k3s();
        before
    });
    for (place, meanwhile) in [("etcd-moving/member", "filled"), ("etcd-restoring/member", "made of what it holds")] {
        step(&format!("killed while etcd is {meanwhile}, the server goes on with SQLite"), || {
            killed_at(&format!("{db}/{place}"), &format!("--cluster-init {flags}"));
            server.fail(&format!("ls {FOLDER}"));
            server.start_k3s(flags);
            server.wait_until_succeeds("k3s kubectl get configmap many-0", PATIENCE);
            assert_eq!(names(), before);
            server.stop_k3s();
        });
    }
    step("killed when etcd has it all, the server goes on with etcd", || {
        killed_at(FOLDER, &format!("--cluster-init {flags}"));
        server.start_k3s(&format!("--cluster-init {flags}"));
        server.wait_until_succeeds("k3s kubectl get configmap many-0", PATIENCE);
        assert_eq!(names(), before);
        server.wait_for_status("is one of 1 members with a vote");
        server.succeed(&format!("ls {db}/state.db.migrated && ! ls {db}/state.db && ! ls -d {FOLDER}-*"));
        server.kubectl("create configmap after");
        server.stop_k3s();
        server.start_k3s(flags);
        server.wait_until_succeeds("k3s kubectl get configmap after", PATIENCE);
    });
}

#[test]
fn a_cluster_goes_on_from_one_member_or_from_a_snapshot() {
    let network = Network::new();
    let (one, two, fresh) = (Node::boot(&network, "one"), Node::boot(&network, "two"), Node::boot(&network, "fresh"));
    let flags = "--token=s3cret --disable-agent";
    let join = |server: &Node| format!("{flags} --server=https://{}:6443", server.address());

    step("two servers, and a snapshot of what they hold", || {
        one.start_k3s(&format!("--cluster-init {flags}"));
        one.wait_for_log("The Kubernetes API is served.");
        two.start_k3s(&join(&one));
        wait_for_voters(&two, &[&one, &two]);
        two.wait_for_log("The Kubernetes API is served.");
        one.kubectl("create configmap before");
        let saved = one.succeed("k3s etcd-snapshot save --snapshot-compress");
        assert!(saved.starts_with("Saved /var/lib/rancher/k3s/server/db/snapshots/on-demand-one-"), "{saved}");
        let listed = one.succeed("k3s snapshot ls");
        assert!(listed.contains("on-demand-one-") && listed.contains("1ec1c26b50d5"), "{listed}");
        one.kubectl("create configmap after");
    });
    step("the other server is lost for good: the last one is the only member", || {
        two.stop_k3s();
        one.wait_for_status("1 of 2 members answer and 2 are needed");
        one.stop_k3s();
        let reset = one.succeed("k3s server --cluster-reset --token=s3cret");
        assert!(reset.contains("is the only member of etcd, with the data that it had"), "{reset}");
        let again = one.fail("k3s server --cluster-reset --token=s3cret");
        assert!(again.contains("the cluster was reset already: start the server without --cluster-reset"), "{again}");
        one.start_k3s(flags);
        one.wait_until_succeeds("k3s kubectl get configmap after", PATIENCE);
        wait_for_voters(&one, &[&one]);
    });
    step("the other server joins anew", || {
        two.succeed(&format!("mv {FOLDER} /var/lib/lost"));
        two.start_k3s(&join(&one));
        wait_for_voters(&one, &[&one, &two]);
        two.wait_until_succeeds("k3s kubectl get configmap after", PATIENCE);
    });
    step("a fresh machine goes on from the snapshot, with the token", || {
        let name = one.succeed("cd /var/lib/rancher/k3s/server/db/snapshots && ls");
        let from = one.path(format!("/var/lib/rancher/k3s/server/db/snapshots/{}", name.trim()));
        std::fs::copy(from, fresh.path("/var/lib/snapshot")).expect("a snapshot is a file");
        let restore = "k3s server --cluster-init --cluster-reset --cluster-reset-restore-path=/var/lib/snapshot";
        let refused = fresh.fail(&format!("{restore} --token=other"));
        assert!(refused.contains("encrypted with different token"), "{refused}");
        fresh.fail(&format!("ls {FOLDER}"));
        let restored = fresh.succeed(&format!("{restore} --token=s3cret"));
        assert!(restored.contains("Restored /var/lib/snapshot; fresh-"), "{restored}");
        fresh.start_k3s(flags);
        fresh.wait_until_succeeds("k3s kubectl get configmap before", PATIENCE);
        fresh.fail("k3s kubectl get configmap after");
        let digest = "sha256sum < /var/lib/rancher/k3s/server/tls/server-ca.key";
        assert_eq!(fresh.succeed(digest), one.succeed(digest));
    });
    step("snapshots are pruned and deleted", || {
        one.succeed("k3s snapshot save && k3s snapshot prune --snapshot-retention=1");
        let left = one.succeed("ls /var/lib/rancher/k3s/server/db/snapshots");
        assert_eq!(left.lines().count(), 1, "{left}");
        one.succeed(&format!("k3s snapshot delete {}", left.trim()));
        assert_eq!(one.succeed("ls /var/lib/rancher/k3s/server/db/snapshots"), "");
    });
}
