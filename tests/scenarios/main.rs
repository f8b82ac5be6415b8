//! What a user may rely on, each a story on real nodes with the real `k3s` and the real components.

mod api;
mod refusal;
mod registry;
mod worker;

mod addons;
mod agent_autonomy;
mod agent_failover;
mod agent_identity;
mod agentless;
mod agents;
mod aggregated_apis;
mod authorities;
mod bad_input;
mod chart_registry;
mod charts;
mod controllers;
mod database;
mod embedded_etcd;
mod images;
mod manifests;
mod network_policy;
mod pod_network;
mod registries;
mod reload;
mod restarts;
mod service_lb;
mod single_node;
mod slow_readers;
mod snapshot;
mod stop;
mod supervisor_api;
mod two_nodes;
mod two_servers;
mod users_files;
mod watches;
