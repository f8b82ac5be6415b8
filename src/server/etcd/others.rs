//! The etcd of other servers' members, as a server that runs none reaches it (`--disable-etcd`).
//!
//! ```text
//! the first start: authorities and members, from --server ─┐
//! later ones: the members of the last life ────────────────┴─► 127.0.0.1:2379 ─► one of the members, which tells who they are
//! ```
//! kube-apiserver and this process ask the same port as beside a member, so that nobody else has to know. Each member is also asked by itself
//! how it does: one that is cut off from the others accepts connections still, and is left for one that is not.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use k3s_balancer::{Address, Balancer, Options};
use k3s_components::{CLIENT_PORT, Paths};
use k3s_config::embedded_etcd::JoinedServer;
use k3s_datastore::{Client, Knowledge, Member, RemoteServer};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    join::Join,
    members_seen::{Asked, MembersSeen},
    membership::{on_loopback, server},
};
use crate::Error;

/// The balancer's name in metrics and its state file's, as k3s has it.
const BALANCER: &str = "k3s-etcd-server-load-balancer";
/// How often they are asked how they do, and one of them who they are.
const ASKED_EACH: Duration = Duration::from_secs(5);
/// How often while none of them has a leader.
const TROUBLED: Duration = Duration::from_secs(1);

/// The way to them.
#[derive(Debug)]
pub(crate) struct OtherMembers {
    balancer: Balancer,
    client: Client,
    seen: watch::Receiver<MembersSeen>,
    /// Ends the two tasks that forward and follow.
    end: CancellationToken,
    tasks: TaskTracker,
}

impl OtherMembers {
    /// Opens the way to the members, by way of the server that this one joins.
    ///
    /// # Errors
    /// It cannot join until somebody has changed something, or etcd's port on loopback is taken.
    pub(crate) async fn reach(join: Join<'_>) -> Result<Self, Error> {
        let Join { server: JoinedServer { url, .. }, paths, certificates, .. } = join;
        let balancer = Balancer::new(Options {
            name: BALANCER.to_owned(),
            url: url.to_string(),
            default: Some(Address::new(&url.host, CLIENT_PORT)),
            state_file: paths.agent_etc(&format!("{BALANCER}.json")),
        })?;
        if has_joined(paths, &balancer) {
            certificates.ensure(SystemTime::now())?;
        } else {
            balancer.set_servers(addresses(&join.members().await?));
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, CLIENT_PORT));
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let client = Client::remote(&on_loopback(paths))?;
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (serving, following) = (balancer.clone(), balancer.clone());
        let (served, followed) = (end.clone(), end.clone());
        let (tell, seen) = watch::channel(MembersSeen::default());
        let asked = Asked::new(paths.clone());
        tasks.spawn(async move { serving.serve(listener, served).await });
        tasks.spawn(async move { followed.run_until_cancelled(follow(asked, &following, &tell)).await });
        Ok(Self { balancer, client, seen, end, tasks })
    }

    /// How they do, as it changes.
    pub(crate) fn seen(&self) -> watch::Receiver<MembersSeen> {
        self.seen.clone()
    }

    /// For what k3s itself keeps in etcd.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Counts in `registry` what goes to which member.
    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        self.balancer.register_metrics(registry);
    }

    /// Closes the way.
    pub(crate) async fn close(&self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Whether an earlier start has got the cluster's authorities and members.
fn has_joined(paths: &Paths, balancer: &Balancer) -> bool {
    !balancer.listed().is_empty() && paths.tls("etcd/client.crt").exists()
}

/// Keeps the list of members as they say it is, and leads to those that have a leader.
async fn follow(mut asked: Asked, balancer: &Balancer, tell: &watch::Sender<MembersSeen>) {
    loop {
        // Where none is listed, the server that this one has joined by.
        let servers = balancer.servers().borrow().clone();
        let seen = asked.look(servers).await;
        for (address, health) in seen.health() {
            balancer.set_health(address, health);
        }
        if let Some(member) = asked.led(&seen)
            && let Ok(members) = member.members(Knowledge::Own).await
        {
            balancer.set_servers(addresses(&members));
        }
        let pause = if seen.is_led() { ASKED_EACH } else { TROUBLED };
        tell.send_if_modified(|told| std::mem::replace(told, seen) != *told);
        sleep(pause).await;
    }
}

/// Where those with a vote are asked.
fn addresses(members: &[Member]) -> BTreeSet<Address> {
    let voters = members.iter().filter(|member| !member.is_learner);
    let servers = voters.flat_map(|member| &member.client_urls).filter_map(|url| server(url));
    let address = |server| match server {
        RemoteServer::Tcp { host, port, .. } => Some(Address::new(host, port)),
        RemoteServer::Unix(_) => None,
    };
    servers.filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_with_a_vote_are_asked_where_they_say() {
        let member = |name: &str, url: &str, is_learner| Member {
            id: 1,
            name: name.to_owned(),
            peer_urls: Vec::new(),
            client_urls: vec![url.to_owned()],
            is_learner,
        };
        let members = [
            member("one-1", "https://10.0.0.1:2379", false),
            member("two-1", "https://[fd00::2]:2379", false),
            member("three-1", "https://10.0.0.3:2379", true),
            member("four-1", "nowhere", false),
        ];
        let expected = [Address::new("10.0.0.1", 2379), Address::new("fd00::2", 2379)];
        assert_eq!(addresses(&members), expected.into());
    }
}
