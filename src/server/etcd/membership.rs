//! This server's member: made ready to start, waited for, and asked.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use http::Uri;
use k3s_components::{CLIENT_PORT, Components, EtcdMember, EtcdStart, Paths};
use k3s_config::{
    embedded_etcd::{EmbeddedEtcd, JoinedServer},
    server::ServerConfig,
};
use k3s_datastore::{
    Client, EtcdCluster, Knowledge, Member, MemberStatus, RemoteOptions, RemoteServer,
    snapshot::{Save, Snapshot, SnapshotError, save_etcd},
};
use k3s_supervise::{Gate, Supervisor};
use k3s_supervisor_api::{MemberDocument, MembersDocument};
use tokio::{
    sync::{Mutex, Notify},
    task::spawn_blocking,
    time::sleep,
};
use tracing::{info, warn};

use super::{
    disk::DiskSpeed,
    error::EtcdError,
    folder::{EtcdFolder, node_of},
    join::{Join, NewMember},
    moving::{self, Moving},
};
use crate::{Error, certificates::Certificates, host::Host};

/// How often a member that starts is looked at.
const POLL: Duration = Duration::from_millis(500);

/// What a member is made of.
pub(crate) struct Starting<'a> {
    pub(crate) etcd: &'a EmbeddedEtcd,
    pub(crate) config: &'a ServerConfig,
    pub(crate) paths: &'a Paths,
    pub(crate) host: &'a Host,
    pub(crate) certificates: &'a Certificates,
    pub(crate) components: &'a Components,
    pub(crate) supervisor: &'a Supervisor,
    /// Says what is waited for.
    pub(crate) gate: &'a Gate,
    /// Kubernetes'.
    pub(crate) version: &'a str,
}

/// This server's member of the cluster's etcd.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(super) member: EtcdMember,
    pub(super) folder: EtcdFolder,
    pub(super) disk: DiskSpeed,
    /// What this server shows members, and checks them by.
    paths: Paths,
    /// The member itself, asked by loopback.
    pub(super) own: EtcdCluster,
    client: Client,
    /// A server has begun to join.
    pub(super) joining: Notify,
    /// One snapshot at a time.
    saving: Mutex<()>,
}

/// How the member does.
#[derive(Debug)]
pub(super) enum MemberState {
    /// It has a vote, and there is a leader.
    Votes(MemberStatus),
    /// It has no vote yet.
    Learns,
    /// Too few members with a vote answer for a leader to be elected.
    NoQuorum { answering: usize, voters: usize },
    /// It does not answer.
    Silent(String),
    /// The others say that it was removed.
    Removed,
}

impl Starting<'_> {
    /// Makes the member ready, with all that it needs: authorities of the cluster that it joins, certificates, a place among the members.
    ///
    /// # Errors
    /// It cannot be a member until somebody has changed something.
    pub(crate) async fn prepare(&self) -> Result<Membership, Error> {
        let folder = EtcdFolder::new(&self.etcd.dir);
        self.check_earlier(&folder)?;
        let sqlite = self.paths.sqlite();
        if sqlite.exists() {
            if !folder.has_member() {
                self.moving().run(&sqlite, &folder).await?;
            }
            moving::clear(&folder)?;
            moving::retire(&sqlite)?;
        }
        folder.create().map_err(EtcdError::from)?;
        folder.forget_reset().map_err(EtcdError::from)?;
        let name = folder.member_name(&self.host.name).map_err(EtcdError::from)?;
        let disk = measure(&folder).await?;
        let mut member =
            EtcdMember { name, address: self.host.ips[0], start: EtcdStart::New, timeouts: disk.timeouts() };
        match &self.etcd.join {
            Some(server) if !folder.has_member() => {
                let new = NewMember { name: &member.name, peer_url: member.peer_url() };
                let members = self.join(server).run(&new).await?;
                let clients = members.iter().flat_map(|member| member.client_urls.clone()).collect::<Vec<_>>();
                folder.set_peers(&clients).map_err(EtcdError::from)?;
                let reached_at = |member: Member| Some((member.name, member.peer_urls.into_iter().next()?));
                member.start = EtcdStart::Join(members.into_iter().filter_map(reached_at).collect());
            }
            _ => {
                self.certificates.ensure(SystemTime::now())?;
            }
        }
        Ok(Membership::new(member, folder, disk, self.paths.clone())?)
    }

    /// What was here before decides over what can be.
    fn check_earlier(&self, folder: &EtcdFolder) -> Result<(), EtcdError> {
        if folder.is_removed() {
            if self.etcd.join.is_none() {
                return Err(EtcdError::Removed { dir: folder.path().to_owned() });
            }
            let kept = folder.set_aside()?;
            info!(kept = %kept.display(), "This server was removed from the cluster's etcd and joins it again; its data of before is kept.");
        }
        let sqlite = self.paths.sqlite();
        if self.etcd.join.is_some() && !folder.has_member() && sqlite.exists() {
            return Err(EtcdError::Sqlite { path: sqlite });
        }
        Ok(())
    }

    fn join<'a>(&'a self, server: &'a JoinedServer) -> Join<'a> {
        let Self { config, paths, host, certificates, version, gate, .. } = *self;
        Join { server, config, paths, host, certificates, version, gate }
    }

    fn moving(&self) -> Moving<'_> {
        let Self { etcd, paths, host, certificates, components, supervisor, gate, .. } = *self;
        Moving { etcd, paths, host, certificates, components, supervisor, gate }
    }
}

/// Measures the disk that the member will write to.
pub(super) async fn measure(folder: &EtcdFolder) -> Result<DiskSpeed, EtcdError> {
    let dir = folder.path().to_owned();
    let failed = |source| EtcdError::Disk { path: folder.path().to_owned(), source };
    // A panic of it is in the log.
    let measured = spawn_blocking(move || DiskSpeed::measure(&dir)).await.map_err(|error| failed(error.into()))?;
    let disk = measured.map_err(failed)?;
    let timeouts = disk.timeouts();
    info!(
        fdatasync = ?disk.fdatasync,
        heartbeat = ?timeouts.heartbeat,
        election_timeout = ?timeouts.election,
        "Measured the disk of etcd: its timeouts go by how long a write takes to be durable."
    );
    Ok(disk)
}

impl Membership {
    pub(super) fn new(
        member: EtcdMember,
        folder: EtcdFolder,
        disk: DiskSpeed,
        paths: Paths,
    ) -> Result<Self, EtcdError> {
        let options = on_loopback(&paths);
        Ok(Self {
            own: EtcdCluster::new(&options)?,
            client: Client::remote(&options)?,
            joining: Notify::new(),
            saving: Mutex::new(()),
            member,
            folder,
            disk,
            paths,
        })
    }

    /// As etcd is started.
    pub(crate) fn member(&self) -> &EtcdMember {
        &self.member
    }

    /// For what k3s itself keeps in etcd.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Waits until the member has a vote and a leader; `gate` says meanwhile what is missing.
    ///
    /// # Errors
    /// It was removed from the cluster, which is remembered.
    pub(crate) async fn until_it_votes(&self, gate: &Gate) -> Result<(), EtcdError> {
        let mut told = None;
        loop {
            match self.look().await {
                MemberState::Votes(status) => {
                    info!(member = self.member.name, bytes = status.bytes, "etcd has a leader and answers.");
                    return Ok(());
                }
                MemberState::Removed => {
                    self.folder.set_removed()?;
                    return Err(EtcdError::Removed { dir: self.folder.path().to_owned() });
                }
                state => {
                    let sentence = state.to_string();
                    // That it starts is no news.
                    if !matches!(state, MemberState::Silent(_)) && told.as_ref() != Some(&sentence) {
                        warn!(member = self.member.name, "{sentence}.");
                        told = Some(sentence.clone());
                    }
                    gate.waiting(sentence);
                }
            }
            sleep(POLL).await;
        }
    }

    /// All members, as most of them agree; for a server that is about to join.
    ///
    /// # Errors
    /// There is no quorum.
    pub(crate) async fn document(&self) -> Result<MembersDocument, EtcdError> {
        let members = self.own.members(Knowledge::Agreed).await?;
        self.joining.notify_one();
        let members = members.into_iter().map(|member| MemberDocument {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            is_learner: member.is_learner,
        });
        Ok(MembersDocument { members: members.collect() })
    }

    /// Saves what this member has.
    ///
    /// # Errors
    /// [`SnapshotError::UnderWay`] while another one is saved, and any other of its kind; nothing of the snapshot stays then.
    pub(crate) async fn save_snapshot(&self, save: Save) -> Result<Snapshot, SnapshotError> {
        let _saving = self.saving.try_lock().map_err(|_| SnapshotError::UnderWay)?;
        save_etcd(&self.own, save).await
    }

    /// Removes the member called `name`, by the others' agreement. One that is gone already was removed.
    ///
    /// # Errors
    /// There is no quorum, or would be none any more.
    pub(super) async fn remove(&self, name: &str) -> Result<(), EtcdError> {
        let named = async || {
            let members = self.own.members(Knowledge::Agreed).await?;
            Ok::<_, EtcdError>(members.into_iter().find(|member| member.name == name))
        };
        let Some(member) = named().await? else { return Ok(()) };
        match self.own.remove(member.id).await {
            Ok(()) => info!(member = name, "Removed a member from etcd."),
            // Another server was faster.
            Err(_) if named().await?.is_none() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// How the member does now.
    pub(super) async fn look(&self) -> MemberState {
        let status = match self.own.status().await {
            Ok(status) => status,
            Err(_) if self.was_removed().await => return MemberState::Removed,
            Err(error) => return MemberState::Silent(error.to_string()),
        };
        match status.leader {
            _ if status.is_learner => MemberState::Learns,
            Some(_) => MemberState::Votes(status),
            None if self.was_removed().await => MemberState::Removed,
            None => {
                let voters: Vec<_> =
                    self.known_members().await.into_iter().filter(|member| !member.is_learner).collect();
                let others = voters.iter().filter(|member| member.name != self.member.name);
                let asked = join_all(others.map(async |member| self.status_of(member).await.is_some())).await;
                let answering = 1 + asked.into_iter().filter(|answers| *answers).count();
                MemberState::NoQuorum { answering, voters: voters.len() }
            }
        }
    }

    /// The members that this one knows of.
    pub(super) async fn known_members(&self) -> Vec<Member> {
        self.own.members(Knowledge::Own).await.unwrap_or_default()
    }

    /// The nodes of all members; `None` while this one does not answer.
    pub(crate) async fn nodes(&self) -> Option<BTreeSet<String>> {
        let members = self.own.members(Knowledge::Own).await.ok()?;
        Some(members.iter().map(|member| node_of(&member.name).to_owned()).collect())
    }

    /// What another member says of itself.
    pub(super) async fn status_of(&self, member: &Member) -> Option<MemberStatus> {
        self.at(&member.client_urls)?.status().await.ok()
    }

    /// Whether one of the others says, in agreement with most of them, that this member is none.
    async fn was_removed(&self) -> bool {
        let peers = self.folder.peers().unwrap_or_default();
        let listed = join_all(
            peers.iter().map(async |url| self.at(std::slice::from_ref(url))?.members(Knowledge::Agreed).await.ok()),
        );
        let is_ours = |member: &Member| member.name == self.member.name || self.is_unnamed_own(member);
        listed.await.into_iter().flatten().any(|members| !members.iter().any(is_ours))
    }

    /// Until it has started for the first time, a member is known by its address.
    fn is_unnamed_own(&self, member: &Member) -> bool {
        member.name.is_empty() && member.peer_urls.contains(&self.member.peer_url())
    }

    fn at(&self, urls: &[String]) -> Option<EtcdCluster> {
        cluster_at(&self.paths, urls)
    }
}

/// etcd at these URLs of members; `None` if none of them is one.
pub(super) fn cluster_at<'a>(paths: &Paths, urls: impl IntoIterator<Item = &'a String>) -> Option<EtcdCluster> {
    let servers: Vec<_> = urls.into_iter().filter_map(|url| server(url)).collect();
    if servers.is_empty() {
        return None;
    }
    cluster_of(paths, servers)
}

/// etcd at these servers; `None` while this one has nothing to show them.
pub(super) fn cluster_of(paths: &Paths, servers: Vec<RemoteServer>) -> Option<EtcdCluster> {
    EtcdCluster::new(&options(paths, servers)).ok()
}

/// Any node of this name, whatever its suffix.
pub(super) fn is_of_node(member: &Member, node: &str) -> bool {
    node_of(&member.name) == node
}

/// etcd as this host's programs ask it: a member, or the way to those of other servers.
pub(super) fn on_loopback(paths: &Paths) -> RemoteOptions {
    options(paths, vec![RemoteServer::Tcp { tls: true, host: "127.0.0.1".to_owned(), port: CLIENT_PORT }])
}

fn options(paths: &Paths, servers: Vec<RemoteServer>) -> RemoteOptions {
    let file = |name: &str| paths.tls("etcd").join(name);
    RemoteOptions {
        servers,
        ca_file: Some(file("server-ca.crt")),
        client: Some((file("client.crt"), file("client.key"))),
    }
}

/// Where a member is, by its URL.
pub(super) fn server(url: &str) -> Option<RemoteServer> {
    let uri: Uri = url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(RemoteServer::Tcp { tls: uri.scheme_str() == Some("https"), host, port: uri.port_u16()? })
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Votes(_) => f.write_str("etcd has a leader"),
            Self::Learns => f.write_str("this server's etcd member learns, and gets its vote once it has caught up"),
            Self::NoQuorum { answering, voters } => {
                let needed = voters / 2 + 1;
                write!(
                    f,
                    "etcd has no leader, as {answering} of {voters} members answer and {needed} are needed: start the servers that are away; \
                     if they are lost for good, stop this one and run `k3s server --cluster-reset` once"
                )
            }
            Self::Silent(why) => write!(f, "etcd does not answer yet: {why}"),
            Self::Removed => f.write_str(
                "this server was removed from the cluster's etcd: restart it with --server=https://HOST:6443 of another server to join again, or remove it",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_reached_at_their_urls() {
        for (url, expected) in [
            ("https://10.0.0.2:2379", Some(("10.0.0.2", 2379))),
            ("https://[fd00::2]:2379", Some(("fd00::2", 2379))),
            ("https://10.0.0.2", None),
            ("", None),
        ] {
            let found = server(url);
            let expected = expected.map(|(host, port)| RemoteServer::Tcp { tls: true, host: host.into(), port });
            assert_eq!(found, expected, "{url}");
        }
    }

    #[test]
    fn a_lost_quorum_says_what_to_do() {
        let sentence = MemberState::NoQuorum { answering: 1, voters: 3 }.to_string();
        assert!(
            sentence.starts_with("etcd has no leader, as 1 of 3 members answer and 2 are needed: start the servers")
        );
        assert!(sentence.contains("k3s server --cluster-reset"));
    }
}
