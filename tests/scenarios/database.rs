//! Two servers on one PostgreSQL, each through a kine of its own: a store that is a child fails and is restarted alone.

use cluster_tests::{Network, Node, PATIENCE, step};

const PASSWORD: &str = "hunter2";

/// Starts PostgreSQL, on the files that an earlier start has left.
fn start_postgres(database: &Node) {
    database.background("cd / && exec setpriv --reuid=postgres --regid=postgres --clear-groups $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/postgres -D /var/lib/pg -k /tmp -h 0.0.0.0");
}

fn make_postgres(database: &Node) {
    database.write("/tmp/password", PASSWORD);
    database.succeed(
        "mkdir -m 700 /var/lib/pg && chown postgres /var/lib/pg /tmp/password && cd /
         as='setpriv --reuid=postgres --regid=postgres --clear-groups'
         $as $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/initdb -D /var/lib/pg -A scram-sha-256 --pwfile=/tmp/password --no-sync
         echo 'CREATE DATABASE k3s;' | $as $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/postgres --single -D /var/lib/pg postgres
         echo 'host all all 0.0.0.0/0 scram-sha-256' >> /var/lib/pg/pg_hba.conf",
    );
}

#[test]
fn servers_share_a_database_and_only_kine_falls_with_it() {
    let network = Network::new();
    let database = Node::boot(&network, "database");
    let (one, two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    let endpoint = format!("postgres://postgres:{PASSWORD}@{}:5432/k3s?sslmode=disable", database.address());
    for server in [&one, &two] {
        let config = format!("datastore-endpoint: {endpoint}\ntoken: s3cret\n");
        server.write("/etc/rancher/k3s/config.yaml", &config);
    }

    step("a server waits for its database, and says so", || {
        one.start_k3s("");
        one.wait_for_status("waiting for datastore (no answer yet:");
        make_postgres(&database);
        start_postgres(&database);
        one.wait_until_ready();
    });
    step("the password is on no command line, in no log and in no status", || {
        for command in [
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
            "cat /var/log/k3s.log",
            "k3s status -o json",
            "k3s kubectl get nodes -o yaml",
        ] {
            assert!(!one.succeed(command).contains(PASSWORD), "`{command}` tells the password");
        }
    });
    step("another server finds what the first one wrote", || {
        one.kubectl("create configmap stored --from-literal=key=value");
        two.start_k3s("--disable-agent");
        two.wait_until_succeeds("k3s kubectl get configmap stored", PATIENCE);
        two.kubectl("create configmap back");
        one.kubectl("get configmap back");
    });
    let before = one.components();
    let others_live = |running: &std::collections::BTreeMap<String, cluster_tests::Process>| {
        before.iter().all(|(name, process)| name == "kine" || running.get(name) == Some(process))
    };
    step("kine dies and is restarted alone", || {
        one.kill(before["kine"]);
        let after = one.wait_for_components(|running| running.get("kine").is_some_and(|new| *new != before["kine"]));
        assert!(others_live(&after), "{before:?} became {after:?}");
        one.wait_until_succeeds("k3s kubectl create configmap after-kine", PATIENCE);
    });
    step("the database goes away and comes back: nothing else restarts", || {
        database.succeed("pkill -QUIT -o -x postgres; while pgrep -x postgres; do sleep 0.1; done");
        one.wait_until_succeeds("! k3s kubectl --request-timeout=5s create configmap unheard", PATIENCE);
        start_postgres(&database);
        one.wait_until_succeeds("k3s kubectl create configmap after-database", PATIENCE);
        let after = one.components();
        assert!(others_live(&after), "{before:?} became {after:?}");
    });
    step("both stop gracefully", || {
        two.stop_k3s();
        one.stop_k3s();
        let log = one.succeed("cat /var/log/k3s.log");
        assert!(log.trim_end().ends_with("Stopped."), "{log}");
    });
}
