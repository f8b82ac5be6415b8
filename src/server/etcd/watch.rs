//! What is done about the members while this server runs: each server tells how its own does, and the leader's lets learners vote.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use k3s_config::datastore::ETCD;
use k3s_datastore::{Member, MemberStatus};
use k3s_supervise::{ObjectStatus, StatusLine, Supervisor, TaskError};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{
    learners::{Learners, Verdict},
    membership::{MemberState, Membership},
};
use crate::store_reach::StoreReach;

/// How often it is looked: nodes are sent to another server in time where there is no quorum.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often while a member learns: a server waits for its vote.
const LEARNING: Duration = Duration::from_secs(2);
/// The key of the warning in the status.
const WARNING: &str = "etcd";
/// The one about the disk.
const DISK: &str = "etcd-disk";

impl Membership {
    /// Looks after the member for as long as it is one.
    pub(crate) async fn watch(
        self: Arc<Self>,
        supervisor: Supervisor,
        line: StatusLine,
        mut reach: StoreReach,
    ) -> Result<(), TaskError> {
        self.tell_of_disk(&supervisor);
        let mut learners = Learners::default();
        loop {
            let began = Instant::now().into_std();
            let state = self.look().await;
            reach.saw(matches!(state, MemberState::Votes(_)), began);
            let mut interval = INTERVAL;
            match &state {
                MemberState::Votes(status) => {
                    let members = self.known_members().await;
                    self.tell(&members, status, &supervisor, &line);
                    self.remember(&members)?;
                    self.follow_address(status, &members).await;
                    if status.leader == Some(status.id) && members.iter().any(|member| member.is_learner) {
                        self.promote(&members, &mut learners).await;
                        interval = LEARNING;
                    }
                }
                MemberState::Removed => {
                    self.folder.set_removed()?;
                    line.set(state.to_string());
                    supervisor.warn(WARNING, format!("{}.", sentence(&state)));
                    // It would be started again for ever, and refused by the others each time.
                    supervisor.stop_program(ETCD).await?;
                    return Ok(());
                }
                MemberState::Learns | MemberState::NoQuorum { .. } | MemberState::Silent(_) => {
                    line.set(state.to_string());
                    supervisor.warn(WARNING, format!("{}.", sentence(&state)));
                    interval = LEARNING;
                }
            }
            // Somebody who joins is waited for at once.
            let _ = timeout(interval, self.joining.notified()).await;
        }
    }

    fn tell_of_disk(&self, supervisor: &Supervisor) {
        if self.disk.is_slow() {
            let (dir, took, election) =
                (self.folder.path().display(), self.disk.fdatasync, self.member.timeouts.election);
            supervisor.warn(
                DISK,
                format!(
                    "The disk of {dir} takes {took:.1?} to make a write durable, and etcd wants 10 ms: its election timeout is {election:?}; \
                     a faster disk makes the cluster faster."
                ),
            );
        }
    }

    /// Says who leads and who votes, and what etcd itself complains of.
    fn tell(&self, members: &[Member], status: &MemberStatus, supervisor: &Supervisor, line: &StatusLine) {
        let leader = members.iter().find(|member| Some(member.id) == status.leader);
        let leader = leader.map_or("not known yet", |member| member.name.as_str());
        let learners = members.iter().filter(|member| member.is_learner).count();
        line.set(format!(
            "{} is one of {} members with a vote and {learners} that learn, the leader is {leader}; {} MB; fdatasync takes {:.1?}, so the \
             election timeout is {:?}",
            self.member.name,
            members.len() - learners,
            status.bytes / 1_000_000,
            self.disk.fdatasync,
            self.member.timeouts.election,
        ));
        line.list(members.iter().map(|member| {
            ObjectStatus {
                object: if member.name.is_empty() { member.peer_urls.join(",") } else { member.name.clone() },
                state: match member {
                    _ if Some(member.id) == status.leader => "leader",
                    _ if member.is_learner => "learner",
                    _ => "voter",
                }
                .to_owned(),
                why: None,
            }
        }));
        if status.errors.is_empty() {
            supervisor.clear(WARNING);
        } else {
            let errors = status.errors.join(", ");
            supervisor.warn(
                WARNING,
                format!(
                    "etcd complains: {}; if it has no space, raise its quota with --etcd-arg=quota-backend-bytes=BYTES, or defragment it and \
                     disarm the alarm with etcdctl.",
                    errors.trim()
                ),
            );
        }
    }

    fn remember(&self, members: &[Member]) -> Result<(), TaskError> {
        let others = members.iter().filter(|member| member.name != self.member.name);
        let urls: Vec<_> = others.flat_map(|member| member.client_urls.clone()).collect();
        Ok(self.folder.set_peers(&urls)?)
    }

    /// A machine that has moved to another address is reached there by the others.
    async fn follow_address(&self, status: &MemberStatus, members: &[Member]) {
        let own = self.member.peer_url();
        let moved = |member: &&Member| member.id == status.id && !member.peer_urls.contains(&own);
        if members.iter().any(|member| moved(&member)) {
            match self.own.update(status.id, &own).await {
                Ok(()) => info!(url = own, "Told the other members of etcd where this one is now."),
                Err(error) => warn!(%error, "The other members of etcd do not know yet where this one is."),
            }
        }
    }

    async fn promote(&self, members: &[Member], learners: &mut Learners) {
        let learning: Vec<_> = members.iter().filter(|member| member.is_learner).collect();
        let applied = |member: &&Member| {
            let member = (*member).clone();
            async move { (member.id, self.status_of(&member).await.map(|status| status.applied)) }
        };
        let applied = join_all(learning.iter().map(applied)).await;
        for (id, verdict) in learners.judge(&applied, Instant::now()) {
            match verdict {
                // One that has not caught up is refused, and asked for again.
                Verdict::Promote => {
                    if self.own.promote(id).await.is_ok() {
                        info!(id = format!("{id:x}"), "A member of etcd has caught up and has its vote.");
                    }
                }
                Verdict::Remove => match self.own.remove(id).await {
                    Ok(()) => warn!(
                        id = format!("{id:x}"),
                        "Removed a member of etcd that has not caught up for five minutes: start its server again."
                    ),
                    Err(error) => warn!(%error, "A member of etcd that does not catch up cannot be removed."),
                },
            }
        }
    }
}

/// What it says, as a sentence's beginning.
fn sentence(state: &MemberState) -> String {
    let text = state.to_string();
    let mut letters = text.chars();
    match letters.next() {
        // etcd is written so at the beginning, too.
        Some(first) if !text.starts_with("etcd") => first.to_uppercase().chain(letters).collect(),
        _ => text,
    }
}
