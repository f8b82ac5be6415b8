//! Servers behind one address, of which one after another is cut off: from its store, from the agents, from life. Clients on agents go on.

use std::time::Duration;

use cluster_tests::{Cluster, Database, PATIENCE, Store, Writer, step};

/// Where an agent's clients reach the API.
const BALANCER: u16 = 6444;

/// Longer than a node may be silent before it counts as lost (50 s, looked at every 5 s).
const LOST: Duration = Duration::from_secs(56);

#[test]
#[ignore = "minutes on two processors"]
fn from_postgresql() {
    clients_go_on(Store::Database(Database::Postgres));
}

#[test]
#[ignore = "minutes on two processors"]
fn from_other_members_of_etcd() {
    clients_go_on(Store::EmbeddedEtcd);
}

fn clients_go_on(store: Store) {
    let mut cluster = step("servers and two agents behind one address that no server was told of", || {
        Cluster::start(store, &["agent-one", "agent-two"])
    });
    let writers = step("clients write on each agent", || {
        [0, 1].map(|n| Writer::start(&cluster.agents[n], BALANCER, &cluster.servers[0]))
    });
    step("the server that an agent uses is cut off from its store: the agent goes to another one", || {
        let server = cluster.used_by(&cluster.agents[0]);
        let silent = writers[0].through(|| cluster.cut_off_from_store(server));
        println!("  nothing was written for {:.1} s", silent.as_secs_f64());
        assert!(silent < LOST, "the agent is lost with its server");
        assert_ne!(cluster.used_by(&cluster.agents[0]), server);
        assert_ne!(cluster.used_by(&cluster.agents[1]), server);
        cluster.network.unblock();
        cluster.wait_until_whole();
        cluster.servers[server].wait_until_succeeds("! k3s status | grep -F 'not as it should be'", PATIENCE);
    });
    step("the network between an agent and its server is cut", || {
        let server = cluster.used_by(&cluster.agents[0]);
        let silent = writers[0].through(|| cluster.agents[0].block(&cluster.servers[server]));
        println!("  nothing was written for {:.1} s", silent.as_secs_f64());
        cluster.network.unblock();
        cluster.wait_until_whole();
    });
    step("a server is killed", || {
        let server = cluster.used_by(&cluster.agents[1]);
        let silent = writers[1].through(|| cluster.servers[server].crash());
        println!("  nothing was written for {:.1} s", silent.as_secs_f64());
        cluster.servers[server].start();
        cluster.servers[server].start_k3s("");
        cluster.wait_until_whole();
    });
    step("what was acknowledged is there, and no node was ever lost", || {
        for writer in writers {
            writer.stop(&cluster.servers[0]);
        }
        let lost = cluster.servers[0].kubectl("get events -A --field-selector=reason=NodeNotReady -o name");
        assert_eq!(lost, "");
    });
}
