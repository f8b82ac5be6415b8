//! The supervisor API behind the front, for the tests of this folder.

use std::{ops::Deref, path::Path, sync::Arc, time::SystemTime};

use k3s_config::server::EncryptionProvider;
use k3s_datastore::{Datastore, Options};
use k3s_front::testing::{Ca, Settings, Setup as Front};
use k3s_identity::{Password, TokenFiles};
use k3s_pki::{ServerPki, ServerRequest};
use k3s_tunnel::{Egress, Tunnels};
use serde_json::json;
use tokio::sync::watch;

use super::{Cluster, Reserved, Routes};
use crate::{
    NodeDialer,
    admin_client::{AdminClient, AdminClientSender},
    encryption::{self, SecretsEncryption},
    node_passwords::{NodePasswords, OwnNode},
    token::ServerToken,
};

/// The server token's password.
pub(super) const TOKEN: &str = "server-s3cret";
/// The agent token's password.
pub(super) const AGENT_TOKEN: &str = "agent-s3cret";
/// The password of the server's own node, `server`.
pub(super) const NODE_PASSWORD: &str = "node-s3cret";

/// A front that serves the supervisor API of a server whose own API is not there yet.
pub(super) struct Setup {
    pub(super) front: Front,
    pub(super) egress: watch::Sender<Egress>,
    pub(super) takes_nodes: watch::Sender<bool>,
    /// `<data>/server`
    pub(super) server_dir: tempfile::TempDir,
    pub(super) datastore: Datastore,
    _core: AdminClientSender,
}

impl Setup {
    pub(super) async fn start() -> Self {
        let (client_ca, server_ca) = (Ca::new("client-ca"), Ca::new("server-ca"));
        let server_dir = tempfile::tempdir().unwrap();
        store(&client_ca, server_dir.path(), "client-ca");
        store(&server_ca, server_dir.path(), "server-ca");
        let pki = Arc::new(ServerPki::ensure(server_dir.path(), &ServerRequest::example(SystemTime::now())).unwrap());
        TokenFiles::ensure(server_dir.path(), Some(TOKEN), Some(AGENT_TOKEN), pki.server_ca.bundle()).unwrap();
        let datastore = Datastore::open(Options::new(server_dir.path().join("state.db"))).await.unwrap();
        let (admin_client_sender, admin_client) = AdminClient::pending();
        let own_node = OwnNode { name: "server".into(), password: Password::new(NODE_PASSWORD), lost: None };
        let (egress, known) = watch::channel(Egress::new(None, "127.0.0.1".parse().unwrap()));
        let (takes_nodes, nodes_taken) = watch::channel(true);
        let token = Arc::new(ServerToken::new(
            server_dir.path().to_owned(),
            pki.server_ca.bundle().to_vec(),
            true,
            datastore.client(),
            Password::new(TOKEN),
        ));
        let settings = encryption::Settings {
            server_dir: server_dir.path().to_owned(),
            provider: EncryptionProvider::AesCbc,
            reader: encryption::Reader::NextStart,
            is_shared: false,
            own_node: None,
        };
        let routes = Routes::new(Cluster {
            server_dir: server_dir.path().to_owned(),
            charts: None,
            pki: pki.clone(),
            node_passwords: Arc::new(NodePasswords::new(admin_client.clone(), Some(own_node))),
            admin_client,
            reserved: Reserved {
                own_node: Some("server".into()),
                server: ["192.0.2.1", "api.example.com", "*.api.example.com"].map(|san| san.parse().unwrap()).into(),
                services: vec!["10.43.0.0/16".parse().unwrap()],
                cluster_domain: "cluster.local".into(),
            },
            encryption: Arc::new(SecretsEncryption::new(settings, token.clone())),
            token,
            dialer: NodeDialer { tunnels: Tunnels::default(), egress: known },
            takes_nodes: nodes_taken,
            etcd: None,
            others: None,
            config: json!({"ClusterDomain": "cluster.local"}),
        });
        let front = Front::serve(client_ca, server_ca, Arc::new(routes), Settings::default()).await;
        Self { front, egress, takes_nodes, server_dir, datastore, _core: admin_client_sender }
    }
}

impl Deref for Setup {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

/// Puts an authority where a server finds it, in `tls` below `server_dir`.
fn store(ca: &Ca, server_dir: &Path, stem: &str) {
    std::fs::create_dir_all(server_dir.join("tls")).unwrap();
    std::fs::write(server_dir.join(format!("tls/{stem}.crt")), &ca.pem).unwrap();
    std::fs::write(server_dir.join(format!("tls/{stem}.key")), &ca.key).unwrap();
}
