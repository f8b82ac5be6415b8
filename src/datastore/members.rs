//! An etcd's members, as they are listed, added, promoted and removed at one of them; and what a member says of itself.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::client::ClientError;
use crate::error::Error;
use crate::etcd::messages::{
    self, EmptyRequest, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberRequest,
    SnapshotResponse, StatusResponse,
};
use crate::remote::{Connected, Remote, RemoteOptions, StreamError};

/// An etcd, asked at the first of its members that lets itself be reached.
#[derive(Clone, Debug)]
pub struct EtcdCluster(Arc<Remote>);

/// One of its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in the cluster.
    pub id: u64,
    /// Its name; empty until it has started for the first time.
    pub name: String,
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// Where clients do; empty until it has started.
    pub client_urls: Vec<String>,
    /// Whether it only learns: it has no vote, and answers next to nothing.
    pub is_learner: bool,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub id: u64,
    /// The member that leads, as far as this one knows.
    pub leader: Option<u64>,
    /// Whether it only learns.
    pub is_learner: bool,
    /// How much of the common log it has applied.
    pub applied: u64,
    /// The newest revision that it knows.
    pub revision: i64,
    /// The size of its data, bytes.
    pub bytes: u64,
    /// What is wrong with it, in its own words.
    pub errors: Vec<String>,
}

/// Whether an answer has to be agreed upon by most members, or is the asked one's own knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Most members agree: there is no answer without a quorum.
    Agreed,
    /// What the member itself knows.
    Own,
}

impl EtcdCluster {
    /// Asks these members; connections are made when they are needed.
    ///
    /// # Errors
    /// [`Error::Tls`] names the file that cannot be used.
    pub fn new(options: &RemoteOptions) -> Result<Self, Error> {
        Ok(Self(Arc::new(Remote::new(options)?)))
    }

    /// A connection for many requests.
    pub(crate) async fn connect(&self) -> Result<Connected<'_>, ClientError> {
        self.0.first_reached().await
    }

    /// Its members.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], also where there is no quorum and `knowledge` has to be agreed; [`ClientError::Refused`].
    pub async fn members(&self, knowledge: Knowledge) -> Result<Vec<Member>, ClientError> {
        let request = MemberListRequest { linearizable: knowledge == Knowledge::Agreed };
        let reply: MemberListResponse = self.0.ask("/etcdserverpb.Cluster/MemberList", request).await?;
        Ok(reply.members.into_iter().map(Member::from).collect())
    }

    /// Adds a member that learns and is reached at `peer_url`; it has still to be started. Returns it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] while there is another learner, a member is away, or the address is taken;
    /// [`ClientError::Unreachable`].
    pub async fn add_learner(&self, peer_url: &str) -> Result<Option<Member>, ClientError> {
        let request = MemberAddRequest { peer_urls: vec![peer_url.to_owned()], is_learner: true };
        let reply: MemberAddResponse = self.0.ask("/etcdserverpb.Cluster/MemberAdd", request).await?;
        Ok(reply.member.map(Member::from))
    }

    /// Gives a learner its vote.
    ///
    /// # Errors
    /// [`ClientError::Refused`] while it has not caught up; [`ClientError::Unreachable`].
    pub async fn promote(&self, id: u64) -> Result<(), ClientError> {
        let request = MemberRequest { id, peer_urls: Vec::new() };
        self.0.ask::<_, MemberListResponse>("/etcdserverpb.Cluster/MemberPromote", request).await.map(drop)
    }

    /// Removes a member for good.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if too few would be left that answer, or it is none; [`ClientError::Unreachable`].
    pub async fn remove(&self, id: u64) -> Result<(), ClientError> {
        let request = MemberRequest { id, peer_urls: Vec::new() };
        self.0.ask::<_, MemberListResponse>("/etcdserverpb.Cluster/MemberRemove", request).await.map(drop)
    }

    /// Tells where a member is reached by the others.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it is none or the address is another's; [`ClientError::Unreachable`].
    pub async fn update(&self, id: u64, peer_url: &str) -> Result<(), ClientError> {
        let request = MemberRequest { id, peer_urls: vec![peer_url.to_owned()] };
        self.0.ask::<_, MemberListResponse>("/etcdserverpb.Cluster/MemberUpdate", request).await.map(drop)
    }

    /// How the asked member does.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`]; [`ClientError::Refused`].
    pub async fn status(&self) -> Result<MemberStatus, ClientError> {
        let reply: StatusResponse = self.0.ask("/etcdserverpb.Maintenance/Status", EmptyRequest {}).await?;
        Ok(MemberStatus {
            id: reply.header.as_ref().map_or(0, |header| header.member_id),
            revision: reply.header.map_or(0, |header| header.revision),
            leader: (reply.leader != 0).then_some(reply.leader),
            is_learner: reply.is_learner,
            applied: reply.raft_applied_index,
            bytes: u64::try_from(reply.db_size).unwrap_or(0),
            errors: reply.errors,
        })
    }

    /// The asked member's data as a file of etcd's, which `take` gets in pieces, with a digest of it at its end.
    ///
    /// # Errors
    /// [`StreamError::Client`] if it breaks off; [`StreamError::Taken`] is `take`'s own.
    pub async fn snapshot(&self, mut take: impl AsyncFnMut(Bytes) -> io::Result<()>) -> Result<(), StreamError> {
        let part = async |part: SnapshotResponse| take(part.blob).await;
        self.0.ask_for_stream("/etcdserverpb.Maintenance/Snapshot", EmptyRequest {}, part).await
    }
}

impl From<messages::Member> for Member {
    fn from(member: messages::Member) -> Self {
        let messages::Member { id, name, peer_urls, client_urls, is_learner } = member;
        Self { id, name, peer_urls, client_urls, is_learner }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::contract_at;

    #[tokio::test]
    async fn a_cluster_of_one_tells_of_itself() {
        contract_at(async |_, url| {
            let cluster = EtcdCluster::new(&RemoteOptions::at(&url)).unwrap();
            let members = cluster.members(Knowledge::Own).await.unwrap();
            let status = cluster.status().await.unwrap();
            assert_eq!((members.len(), members[0].is_learner), (1, false));
            assert_eq!((status.id, status.leader, status.is_learner), (members[0].id, Some(members[0].id), false));
            assert!(matches!(cluster.remove(members[0].id + 1).await, Err(ClientError::Refused(_))));
        })
        .await;
    }
}
