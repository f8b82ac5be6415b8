//! The store of the cluster's state: opened in this process, or asked where a child or somebody else runs it.

use std::{future::pending, sync::Arc, time::Duration};

use k3s_components::{Components, Launch, Paths, etcd, kine};
use k3s_config::{
    datastore::{ClientCertificate, Datastore as DatastoreConfig, Etcd},
    embedded_etcd::{EmbeddedEtcd, JoinedServer},
    server::ServerConfig,
};
use k3s_datastore::{
    Access, BoundEndpoint, Client, ClientError, Datastore, Endpoint, Options, RemoteOptions, RemoteServer,
};
use k3s_supervise::{Gate, Supervisor};
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    bootstrap_data::PREFIX,
    certificates::Certificates,
    etcd::{Join, Membership, OtherMembers, Starting},
    host::Host,
    snapshots::SnapshotSource,
    store_health::{RemoteStore, StoreProblem},
};

/// What a store needs for an answer, also on a busy machine and a slow disk.
const MOMENT: Duration = Duration::from_secs(2);

/// The store of a server.
#[derive(Debug)]
pub(crate) enum ClusterStore {
    /// In this process, which serves it to its own kube-apiserver.
    Embedded(Datastore),
    /// In another one, a child's or elsewhere: kube-apiserver asks it itself.
    Asked(Client),
    /// In this server's member of the cluster's own etcd: kube-apiserver asks that.
    Member(Arc<Membership>),
    /// In other servers' members of it: kube-apiserver asks them by the same port.
    OtherMembers(OtherMembers),
}

/// What a store is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a ServerConfig,
    pub(crate) paths: &'a Paths,
    pub(crate) host: &'a Host,
    /// What members of etcd know each other by.
    pub(crate) certificates: &'a Certificates,
    pub(crate) components: &'a Components,
    pub(crate) supervisor: &'a Supervisor,
    /// Says what is missing meanwhile; opened by whoever has its credentials too.
    pub(crate) gate: &'a Gate,
    /// Kubernetes'.
    pub(crate) version: &'a str,
}

impl ClusterStore {
    /// Opens the database; or starts the child that serves it, and waits until it answers, as a store elsewhere has to. `None` if
    /// `shutdown` came first.
    pub(crate) async fn open(opening: Opening<'_>, shutdown: &CancellationToken) -> Result<Option<Self>, Error> {
        let Opening { config, paths, components, supervisor, gate, .. } = opening;
        let servers = match &config.datastore {
            DatastoreConfig::Sqlite { path } => {
                return Ok(Some(Self::Embedded(Datastore::open(Options::new(path)).await?)));
            }
            DatastoreConfig::Sql(sql) => {
                let Launch { program, .. } = kine(sql, paths, components);
                supervisor.start([program])?;
                let socket = RemoteServer::Unix(paths.datastore_socket());
                RemoteOptions { servers: vec![socket], ca_file: None, client: None }
            }
            DatastoreConfig::Etcd(etcd) => remote(etcd),
            DatastoreConfig::EmbeddedEtcd(etcd) => {
                let member = shutdown.run_until_cancelled(Box::pin(start_member(etcd, &opening))).await;
                return Ok(member.transpose()?.map(|member| Self::Member(Arc::new(member))));
            }
            DatastoreConfig::OtherMembers(server) => return reach_others(server, &opening, shutdown).await,
        };
        let store = Self::Asked(Client::remote(&servers)?);
        let remote = store.remote(supervisor).expect("it is asked elsewhere");
        let answered = shutdown.run_until_cancelled(remote.answers(PREFIX, gate)).await;
        Ok(answered.map(|()| store))
    }

    /// For what k3s itself keeps in it.
    pub(crate) fn client(&self) -> Client {
        match self {
            Self::Embedded(datastore) => datastore.client(),
            Self::Asked(client) => client.clone(),
            Self::Member(member) => member.client(),
            Self::OtherMembers(others) => others.client(),
        }
    }

    /// Whether it answers within a moment.
    pub(crate) async fn answers(&self) -> bool {
        match timeout(MOMENT, self.client().get(PREFIX)).await {
            Ok(Ok(_)) => true,
            Err(_) | Ok(Err(ClientError::Unreachable(_))) => false,
            // kine says for its database that it is not there.
            Ok(Err(error)) => !StoreProblem::of(&error.to_string()).is_out_of_reach(),
        }
    }

    /// What snapshots are taken of.
    pub(crate) fn snapshot_source(&self) -> SnapshotSource<'_> {
        match self {
            Self::Embedded(datastore) => SnapshotSource::Sqlite(datastore),
            Self::Member(member) => SnapshotSource::Etcd(member),
            Self::Asked(_) | Self::OtherMembers(_) => SnapshotSource::Elsewhere,
        }
    }

    /// This server's member of etcd, where it is one.
    pub(crate) fn member(&self) -> Option<&Arc<Membership>> {
        match self {
            Self::Member(member) => Some(member),
            Self::Embedded(_) | Self::Asked(_) | Self::OtherMembers(_) => None,
        }
    }

    /// A store that others run, to be waited for and watched. A child of `supervisor` may serve it.
    pub(crate) fn remote(&self, supervisor: &Supervisor) -> Option<RemoteStore> {
        let (client, members) = match self {
            Self::Asked(client) => (client.clone(), None),
            Self::OtherMembers(others) => (others.client(), Some(others.seen())),
            Self::Embedded(_) | Self::Member(_) => return None,
        };
        Some(RemoteStore { client, supervisor: supervisor.clone(), members })
    }

    /// A client of the store, where servers that know nothing of each other share it.
    pub(crate) fn elsewhere(&self) -> Option<&Client> {
        match self {
            Self::Asked(client) => Some(client),
            Self::Embedded(_) | Self::Member(_) | Self::OtherMembers(_) => None,
        }
    }

    /// Binds the socket that kube-apiserver asks, where it does not ask elsewhere.
    pub(crate) async fn bind(&self, paths: &Paths) -> Result<Option<BoundEndpoint>, Error> {
        match self {
            Self::Embedded(_) => Ok(Some(Endpoint::Unix(paths.datastore_socket()).bind(&Access::default()).await?)),
            Self::Asked(_) | Self::Member(_) | Self::OtherMembers(_) => Ok(None),
        }
    }

    /// Serves that socket until `shutdown`.
    pub(crate) async fn serve(&self, socket: Option<BoundEndpoint>, shutdown: CancellationToken) -> Result<(), Error> {
        match (self, socket) {
            (Self::Embedded(datastore), Some(socket)) => Ok(socket.serve(datastore, shutdown).await?),
            _ => Ok(()),
        }
    }

    /// Counts in `registry` what the database does.
    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        match self {
            Self::Embedded(datastore) => datastore.register_metrics(registry),
            Self::OtherMembers(others) => others.register_metrics(registry),
            Self::Asked(_) | Self::Member(_) => {}
        }
    }

    /// Why the store of this process came to an end by itself. kube-apiserver waits for one elsewhere.
    pub(crate) async fn stopped(&self) -> Error {
        match self {
            Self::Embedded(datastore) => Error::Datastore(datastore.stopped().await),
            Self::Asked(_) | Self::Member(_) | Self::OtherMembers(_) => pending().await,
        }
    }

    /// Closes the database, or the way to it.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        match self {
            Self::Embedded(datastore) => Ok(datastore.close().await?),
            Self::OtherMembers(others) => {
                others.close().await;
                Ok(())
            }
            Self::Asked(_) | Self::Member(_) => Ok(()),
        }
    }
}

/// Starts this server's member, and waits until it has a vote and a leader.
async fn start_member(config: &EmbeddedEtcd, opening: &Opening<'_>) -> Result<Membership, Error> {
    let Opening { config: server, paths, host, certificates, components, supervisor, gate, version } = *opening;
    let starting =
        Starting { etcd: config, config: server, paths, host, certificates, components, supervisor, gate, version };
    let membership = starting.prepare().await?;
    let launch = etcd(config, membership.member(), paths, components);
    launch.install_files()?;
    supervisor.start([launch.program])?;
    membership.until_it_votes(gate).await?;
    Ok(membership)
}

/// Opens the way to other servers' members, and waits until one answers. `None` if `shutdown` came first.
async fn reach_others(
    server: &JoinedServer,
    opening: &Opening<'_>,
    shutdown: &CancellationToken,
) -> Result<Option<ClusterStore>, Error> {
    let Opening { config, paths, host, certificates, version, supervisor, gate, .. } = *opening;
    let reached = OtherMembers::reach(Join { server, config, paths, host, certificates, version, gate });
    let Some(others) = shutdown.run_until_cancelled(Box::pin(reached)).await.transpose()? else { return Ok(None) };
    let store = ClusterStore::OtherMembers(others);
    let remote = store.remote(supervisor).expect("others run it");
    if shutdown.run_until_cancelled(remote.answers(PREFIX, gate)).await.is_none() {
        store.close().await?;
        return Ok(None);
    }
    Ok(Some(store))
}

fn remote(etcd: &Etcd) -> RemoteOptions {
    let servers = etcd.endpoints.iter();
    RemoteOptions {
        servers: servers
            .map(|server| RemoteServer::Tcp { tls: server.tls, host: server.host.clone(), port: server.port })
            .collect(),
        ca_file: etcd.ca_file.clone(),
        client: etcd.client.clone().map(|ClientCertificate { certificate, key }| (certificate, key)),
    }
}
