//! Servers that share a store, agents that know none of them, and the one address in front.

use crate::{database::Database, k3s::PATIENCE, network::Network, node::Node};

/// What servers keep their cluster in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// SQLite, on one server.
    Sqlite,
    /// A database on a node of its own, for two servers.
    Database(Database),
    /// A member of etcd on each of three servers.
    EmbeddedEtcd,
}

/// A cluster whose agents come by a fixed registration address that no server was told of (`--tls-san`).
#[derive(Debug)]
pub struct Cluster {
    /// What its servers share.
    pub store: Store,
    /// Where the database is, if it is one.
    pub database: Option<Node>,
    /// They have no nodes of their own.
    pub servers: Vec<Node>,
    /// Leads whoever comes to its port 6443 to one of the servers, in turn.
    pub fixed: Node,
    /// The cluster's nodes.
    pub agents: Vec<Node>,
    /// What all of them are on.
    pub network: Network,
}

impl Cluster {
    /// The token of servers and agents.
    const TOKEN: &str = "s3cret";

    /// Starts one with agents of these names, and waits until each knows where all servers are.
    #[track_caller]
    pub fn start(store: Store, agents: &[&str]) -> Self {
        let network = Network::new();
        let boot = |names: &[&str]| names.iter().map(|name| Node::boot(&network, name)).collect::<Vec<_>>();
        let cluster = Self {
            store,
            database: boot(store.database().map(|_| "database").as_slice()).pop(),
            servers: boot(store.servers()),
            fixed: Node::boot(&network, "fixed"),
            agents: boot(agents),
            network: network.clone(),
        };
        if let (Some(database), Some(node)) = (store.database(), &cluster.database) {
            database.install(node);
            database.start(node);
            database.create_database(node);
        }
        cluster.start_servers();
        cluster.start_agents();
        cluster.wait_until_whole();
        cluster
    }

    /// Switches everything off at once, and on again.
    #[track_caller]
    pub fn restart(&mut self) {
        let Self { database, servers, fixed, agents, .. } = self;
        for node in database.iter_mut().chain(servers).chain([fixed]).chain(agents) {
            node.crash();
            node.start();
        }
        if let (Some(database), Some(node)) = (self.store.database(), &self.database) {
            database.start(node);
        }
        self.servers.iter().for_each(|server| drop(server.start_k3s("")));
        self.lead_to(&self.servers);
        self.agents.iter().for_each(|agent| drop(agent.restart_k3s_agent("")));
    }

    /// Waits until each server answers and each agent is ready and knows where all servers are.
    #[track_caller]
    pub fn wait_until_whole(&self) {
        for server in &self.servers {
            server.wait_until_succeeds("k3s kubectl --request-timeout=5s get --raw=/readyz", PATIENCE);
            for agent in &self.agents {
                let tunnel = format!("ss -Htn state established dst {}:6443 | grep -q .", server.address());
                agent.wait_until_succeeds(&tunnel, PATIENCE);
                server.wait_until_node_ready(agent.name());
            }
        }
    }

    /// The server whose API the clients on an agent use, by its place among the servers.
    #[track_caller]
    pub fn used_by(&self, agent: &Node) -> usize {
        let connections = |server: &Node| {
            let listed = agent.succeed(&format!("ss -Htn state established dst {}:6443 | wc -l", server.address()));
            listed.trim().parse::<u32>().expect("wc counts")
        };
        // Each has a tunnel; one has more.
        let counted = self.servers.iter().map(connections).enumerate();
        counted.max_by_key(|(_, connections)| *connections).map_or(0, |(index, _)| index)
    }

    /// Drops everything between a server and its store: the database, or the other servers.
    #[track_caller]
    pub fn cut_off_from_store(&self, server: usize) {
        let server = &self.servers[server];
        match &self.database {
            Some(database) => server.block(database),
            None => {
                self.servers.iter().filter(|other| other.name() != server.name()).for_each(|other| server.block(other));
            }
        }
    }

    #[track_caller]
    fn start_servers(&self) {
        let address = self.fixed.address();
        for (index, server) in self.servers.iter().enumerate() {
            let store = match (self.store, &self.database) {
                (Store::Database(database), Some(node)) => format!("datastore-endpoint: {}", database.endpoint(node)),
                (Store::EmbeddedEtcd, _) if index == 0 => "cluster-init: true".to_owned(),
                (Store::EmbeddedEtcd, _) => format!("server: https://{address}:6443"),
                (Store::Sqlite | Store::Database(_), _) => String::new(),
            };
            let config = format!("token: {}\ndisable-agent: true\n{store}\n", Self::TOKEN);
            server.write("/etc/rancher/k3s/config.yaml", &config);
        }
        // The first one makes what the others join.
        let (first, others) = self.servers.split_at(1);
        self.lead_to(first);
        for servers in [first, others] {
            servers.iter().for_each(|server| drop(server.start_k3s("")));
            servers.iter().for_each(|server| server.wait_for_log("The Kubernetes API is served."));
        }
        self.lead_to(&self.servers);
    }

    #[track_caller]
    fn start_agents(&self) {
        for agent in &self.agents {
            let config = format!("server: https://{}:6443\ntoken: {}\n", self.fixed.address(), Self::TOKEN);
            agent.write("/etc/rancher/k3s/config.yaml", &config);
            agent.restart_k3s_agent("");
        }
    }

    #[track_caller]
    fn lead_to(&self, servers: &[Node]) {
        self.fixed.lead_to(&servers.iter().collect::<Vec<_>>());
    }
}

impl Store {
    fn servers(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &["one"],
            Self::Database(_) => &["one", "two"],
            Self::EmbeddedEtcd => &["one", "two", "three"],
        }
    }

    /// The database that it is.
    pub fn database(self) -> Option<Database> {
        match self {
            Self::Database(database) => Some(database),
            Self::Sqlite | Self::EmbeddedEtcd => None,
        }
    }
}

impl Node {
    /// Makes this node a fixed registration address: whoever comes to its port 6443 is led to one of the servers, in turn, whether it
    /// answers or not.
    #[track_caller]
    pub fn lead_to(&self, servers: &[&Self]) {
        let count = servers.len();
        let turns = servers.iter().enumerate().map(|(turn, server)| format!("{turn} : {}", server.address()));
        let turns = turns.collect::<Vec<_>>().join(", ");
        self.succeed(&format!(
            "sysctl -qw net.ipv4.ip_forward=1 && nft -f - <<'END'
table ip registration
flush table ip registration
table ip registration {{
  chain in {{
    type nat hook prerouting priority dstnat;
    tcp dport 6443 dnat to numgen inc mod {count} map {{ {turns} }}
  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    tcp dport 6443 masquerade
  }}
}}
END"
        ));
    }
}
