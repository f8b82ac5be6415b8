//! Servers on one database, each through a kine of its own: a store that is a child fails and is restarted alone, and what is wrong with
//! the database is in the status.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use cluster_tests::{Database, Network, Node, PATIENCE, Process, step};

#[test]
fn servers_share_postgresql() {
    servers_share(Database::Postgres);
}

#[test]
fn servers_share_mariadb() {
    servers_share(Database::MariaDb);
}

#[test]
fn servers_share_nats() {
    if env::var_os("NATS_SERVER").is_none() {
        return println!("NATS_SERVER names no server of NATS.");
    }
    servers_share(Database::Nats);
}

#[test]
fn what_is_wrong_with_postgresql_is_told() {
    what_is_wrong_is_told(Database::Postgres);
}

#[test]
fn what_is_wrong_with_mariadb_is_told() {
    what_is_wrong_is_told(Database::MariaDb);
}

#[test]
fn a_server_shares_its_table_with_another_kine() {
    let network = Network::new();
    let database = Node::boot(&network, "database");
    let (ours, other) = (Node::boot(&network, "ours"), Node::boot(&network, "other"));
    let engine = Database::Postgres;
    engine.install(&database);
    engine.start(&database);
    engine.create_database(&database);
    let servers = [(&ours, engine.endpoint(&database)), (&other, "http://127.0.0.1:2379".to_owned())];
    step("one server has a kine of its own, another asks one that nobody supervises", || {
        let kine = "/opt/k3s/libexec/k3s/kine --listen-address=tcp://127.0.0.1:2379 --metrics-bind-address=0";
        other.background(&format!("exec {kine} --endpoint='{}'", engine.endpoint(&database)));
        other.wait_for_open_port(2379, PATIENCE);
        for (server, endpoint) in &servers {
            server.write("/etc/rancher/k3s/config.yaml", &format!("datastore-endpoint: {endpoint}\ntoken: s3cret\n"));
            server.start_k3s("--disable-agent");
            server.wait_until_succeeds("k3s kubectl get namespace default", PATIENCE);
        }
        assert!(ours.components().contains_key("kine") && !other.components().contains_key("kine"));
    });
    step("watchers of both see all that either writes, in one order", || {
        const WRITES: usize = 20;
        for (server, _) in &servers {
            let seen = "-o jsonpath='{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}'";
            server.background_into(&format!("exec k3s kubectl get configmaps --watch {seen}"), "/tmp/seen");
            server.wait_until_succeeds("grep kube-root-ca.crt /tmp/seen", PATIENCE);
        }
        for number in 0..WRITES {
            let (server, _) = &servers[number % servers.len()];
            server.kubectl(&format!("create configmap written-{number}"));
        }
        let seen = servers.each_ref().map(|(server, _)| {
            let all = format!("test $(grep -c written /tmp/seen) -eq {WRITES}");
            server.wait_until_succeeds(&all, PATIENCE);
            server.succeed("grep written /tmp/seen")
        });
        assert_eq!(seen[0], seen[1]);
    });
}

/// Writes one ConfigMap after another through this server, and notes those that the API has acknowledged.
fn start_writer(server: &Node) {
    server.write(
        "/tmp/writer",
        "n=0
         while test ! -e /tmp/enough; do
           n=$((n + 1))
           k3s kubectl --request-timeout=5s create configmap written-$n >/dev/null 2>&1 && echo configmap/written-$n >> /tmp/acknowledged
         done
         touch /tmp/wrote",
    );
    server.background("exec sh /tmp/writer");
    server.wait_until_succeeds("test -s /tmp/acknowledged", PATIENCE);
}

/// Ends the writer; everything that was acknowledged to it is there.
fn stop_writer(server: &Node) {
    server.succeed("touch /tmp/enough");
    server.wait_until_succeeds("test -e /tmp/wrote", PATIENCE);
    server.succeed("k3s kubectl get configmaps -o name | sort > /tmp/stored && sort /tmp/acknowledged > /tmp/expected");
    let lost = server.succeed("comm -23 /tmp/expected /tmp/stored");
    assert!(lost.is_empty(), "acknowledged and lost:\n{lost}");
    println!("  {} acknowledged writes are there", server.succeed("wc -l < /tmp/expected").trim());
}

/// Waits until a write through `server` succeeds, and tells how long that took.
fn wait_for_write(server: &Node, name: &str, what: &str) {
    let began = Instant::now();
    server.wait_until_written(name);
    println!("  {:.1} s to the first write after {what}", began.elapsed().as_secs_f64());
}

/// Whether all but kine run as they did, and what loses its lease when nothing can be written for ten seconds.
fn others_live(before: &BTreeMap<String, Process>, after: &BTreeMap<String, Process>) -> bool {
    let leases = ["kube-controller-manager", "kube-scheduler"];
    before
        .iter()
        .filter(|(name, _)| *name != "kine" && !leases.contains(&name.as_str()))
        .all(|(name, process)| after.get(name) == Some(process))
}

fn servers_share(engine: Database) {
    let network = Network::new();
    let mut database = Node::boot(&network, "database");
    let (mut one, mut two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    let mut agent = Node::boot(&network, "agent");
    engine.install(&database);
    for server in [&one, &two] {
        let config = format!("datastore-endpoint: {}\ntoken: s3cret\n", engine.endpoint(&database));
        server.write("/etc/rancher/k3s/config.yaml", &config);
    }
    step("a server waits for its database, and says so", || {
        one.start_k3s("");
        one.wait_for_status("waiting for datastore (nobody answers at its address");
        engine.start(&database);
        engine.create_database(&database);
        one.wait_until_ready();
        one.wait_until_component_ready("kine");
    });
    step("the password is on no command line, in no log and in no status", || {
        for command in [
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
            "cat /var/log/k3s.log",
            "k3s status -o json",
            "k3s kubectl get nodes -o yaml",
        ] {
            assert!(!one.succeed(command).contains(Database::PASSWORD), "`{command}` tells the password");
        }
    });
    step("another server and an agent join", || {
        one.kubectl("create configmap stored --from-literal=key=value");
        two.start_k3s("--disable-agent");
        two.wait_until_succeeds("k3s kubectl get configmap stored", PATIENCE);
        agent.give_demo_image();
        agent.start_k3s_agent(&one, "");
        two.wait_until_node_ready("agent");
    });
    step("what is written through one server is read through the other at once", || {
        for n in 0..10 {
            for (writer, reader) in [(&one, &two), (&two, &one)] {
                let name = format!("from-{}-{n}", writer.name());
                writer.kubectl(&format!("create configmap {name}"));
                reader.kubectl(&format!("get configmap {name}"));
            }
        }
        one.kubectl("run pod --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=Never --overrides='{\"spec\":{\"nodeName\":\"agent\"}}'");
        two.kubectl("wait --for=condition=Ready pod/pod --timeout=120s");
    });
    let before = one.components();
    step("kine dies and is restarted alone", || {
        one.kill(before["kine"]);
        let after = one.wait_for_components(|running| running.get("kine").is_some_and(|new| *new != before["kine"]));
        assert!(others_live(&before, &after), "{before:?} became {after:?}");
        wait_for_write(&one, "after-kine", "kine was killed");
    });
    step("the database is killed while clients write, and comes back", || {
        start_writer(&one);
        engine.kill(&database);
        one.wait_until_succeeds("! k3s kubectl --request-timeout=5s create configmap unheard", PATIENCE);
        // A client of NATS keeps what it is to ask until there is a server again.
        let problem = if engine == Database::Nats { "it does not answer" } else { "nobody answers at its address" };
        one.wait_for_status(&format!("The datastore is not as it should be: {problem}"));
        engine.start(&database);
        wait_for_write(&one, "after-database", "the database was started again");
        wait_for_write(&two, "after-database-too", "that");
        stop_writer(&one);
        let after = one.components();
        assert!(others_live(&before, &after), "{before:?} became {after:?}");
        one.wait_until_succeeds("! k3s status | grep -F 'not as it should be'", PATIENCE);
    });
    step("a server is killed: the other one and the agent go on", || {
        start_writer(&two);
        one.crash();
        wait_for_write(&two, "without-one", "the other server was killed");
        two.wait_until_node_ready("agent");
        stop_writer(&two);
        one.start();
        one.start_k3s("");
        one.wait_until_succeeds("k3s kubectl get configmap without-one", PATIENCE);
        one.wait_until_ready();
    });
    step("all of them are switched off at once, and on again", || {
        for node in [&mut one, &mut two, &mut agent, &mut database] {
            node.crash();
            node.start();
        }
        one.start_k3s("");
        two.start_k3s("--disable-agent");
        agent.restart_k3s_agent("");
        engine.start(&database);
        wait_for_write(&one, "after-all", "all were started again");
        two.wait_until_succeeds("k3s kubectl get configmap stored after-all", PATIENCE);
        two.wait_until_node_ready("agent");
    });
    step("both stop gracefully", || {
        two.stop_k3s();
        one.stop_k3s();
        let log = one.succeed("cat /var/log/k3s.log");
        assert!(log.trim_end().ends_with("Stopped."), "{log}");
    });
}

fn what_is_wrong_is_told(engine: Database) {
    let network = Network::new();
    let (database, server) = (Node::boot(&network, "database"), Node::boot(&network, "server"));
    engine.limit_disk(&database, 300);
    engine.install(&database);
    engine.start(&database);
    let config = format!("datastore-endpoint: {}\ntoken: s3cret\n", engine.endpoint(&database));
    server.write("/etc/rancher/k3s/config.yaml", &config);
    let waits = |problem: &str| server.wait_for_status(&format!("waiting for datastore ({problem}"));
    let warns = |problem: &str| server.wait_for_status(&format!("The datastore is not as it should be: {problem}"));
    let recovers = |name: &str, what: &str| {
        wait_for_write(&server, name, what);
        server.wait_until_succeeds("! k3s status | grep -F 'not as it should be'", PATIENCE);
    };

    step("another password", || {
        engine.set_password(&database, "another");
        server.start_k3s("--disable-agent");
        waits("it refuses the user or the password of --datastore-endpoint");
        engine.set_password(&database, Database::PASSWORD);
    });
    step("no database", || {
        // MariaDB tells users without rights nothing else.
        waits(match engine {
            Database::MariaDb => "the user of --datastore-endpoint lacks rights",
            _ => "it has no database of the name in --datastore-endpoint",
        });
        engine.create_database(&database);
        server.wait_until_succeeds("k3s kubectl get namespace default", PATIENCE);
    });
    let before = server.components();
    step("read-only", || {
        engine.set_read_only(&database, true);
        warns("it can be read and not written");
        server.kubectl("get namespace default");
        server.fail("k3s kubectl --request-timeout=5s create secret generic hidden --from-literal=word=neversaid");
        let log = server.succeed("cat /var/log/k3s.log");
        assert!(log.contains("what it quotes is left out"), "kine does not say what failed:\n{log}");
        assert!(!log.contains("neversaid"), "the log tells a Secret");
        engine.set_read_only(&database, false);
        recovers("after-read-only", "it could be written again");
    });
    step("stopped", || {
        engine.signal(&database, "STOP");
        warns("it does not answer");
        engine.signal(&database, "CONT");
        recovers("after-stopped", "it went on");
    });
    step("full", || {
        engine.fill_disk(&database);
        // Values that fit into a row: where a larger one does not fit, MariaDB ends itself. No database makes them smaller. kubectl sends 300
        // requests at once, and 50 a second from then on.
        let many = "word=$(head -c 2250 /dev/urandom | base64 -w 0)
            for n in $(seq 250); do
                printf -- '---\\n{apiVersion: v1, kind: ConfigMap, metadata: {generateName: many-}, data: {word: %s}}\\n' $word
            done > /tmp/many.yaml
            for batch in $(seq 6); do
                k3s kubectl create -f /tmp/many.yaml > /tmp/created || exit 0
            done
            exit 1";
        server.wait_until_succeeds(many, Duration::from_secs(120));
        warns("it has no space left");
        engine.free_disk(&database);
        recovers("after-full", "there was room again");
    });
    step("nothing but what has a lease was restarted", || {
        let after = server.components();
        assert!(others_live(&before, &after) && after["kine"] == before["kine"], "{before:?} became {after:?}");
    });
    step("the database is away, and the server stops in time", || {
        engine.kill(&database);
        warns("nobody answers at its address");
        let began = Instant::now();
        server.stop_k3s();
        println!("  stopped after {:.1} s", began.elapsed().as_secs_f64());
    });
}
