//! How other servers' members of etcd do, as a server that runs none sees them: each of them is asked, past the balancer.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use k3s_balancer::{Address, Health};
use k3s_components::Paths;
use k3s_datastore::{EtcdCluster, RemoteServer};

use super::membership::cluster_of;

/// Bytes of an error that a sentence quotes.
const QUOTED: usize = 160;
/// What TLS says of a server that another authority vouches for.
const FOREIGN: &str = "invalid peer certificate";

/// What a member said when it was asked last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It knows a leader: it reads and writes.
    Led,
    /// It is cut off from too many of the others, or they elect one.
    NoLeader,
    /// Nothing that could be used.
    Silent(String),
}

/// What all of them said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MembersSeen(BTreeMap<Address, Answer>);

/// Asks them, by connections that are kept.
#[derive(Debug)]
pub(super) struct Asked {
    paths: Paths,
    members: BTreeMap<Address, EtcdCluster>,
}

impl Asked {
    pub(super) fn new(paths: Paths) -> Self {
        Self { paths, members: BTreeMap::new() }
    }

    /// Asks all of `listed`, and forgets who is not listed any more.
    pub(super) async fn look(&mut self, listed: impl IntoIterator<Item = Address>) -> MembersSeen {
        let mut known = std::mem::take(&mut self.members);
        for address in listed {
            let member = known.remove(&address).or_else(|| {
                let server = RemoteServer::Tcp { tls: true, host: address.host().to_owned(), port: address.port() };
                cluster_of(&self.paths, vec![server])
            });
            self.members.extend(member.map(|member| (address, member)));
        }
        let answers = join_all(self.members.iter().map(async |(address, member)| {
            let answer = match member.status().await {
                Ok(status) if status.leader.is_some() => Answer::Led,
                Ok(_) => Answer::NoLeader,
                Err(error) => Answer::Silent(error.to_string()),
            };
            (address.clone(), answer)
        }));
        MembersSeen(answers.await.into_iter().collect())
    }

    /// One that can tell who the members are.
    pub(super) fn led(&self, seen: &MembersSeen) -> Option<&EtcdCluster> {
        self.members.iter().find(|(address, _)| seen.0.get(address) == Some(&Answer::Led)).map(|(_, member)| member)
    }
}

impl MembersSeen {
    /// What the balancer is to go by: a member without a leader is left as soon as another one has it, and kept where none is better.
    pub(super) fn health(&self) -> impl Iterator<Item = (&Address, Health)> {
        let otherwise = if self.is_led() { Health::Failed } else { Health::Unknown };
        self.0.iter().map(move |(address, answer)| match answer {
            Answer::Led => (address, Health::Ok),
            Answer::NoLeader | Answer::Silent(_) => (address, otherwise),
        })
    }

    /// Whether one of them reads and writes.
    pub(super) fn is_led(&self) -> bool {
        self.0.values().any(|answer| *answer == Answer::Led)
    }

    /// How etcd does while it answers, as the rest of a sentence.
    pub(crate) fn in_use(&self) -> String {
        let led = self.0.iter().filter(|(_, answer)| **answer == Answer::Led).map(|(address, _)| address);
        format!("etcd of other servers: {}", joined(led))
    }

    /// What is wrong, and what to do, as the rest of a sentence; `None` while one of them reads and writes, or before they were asked.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.is_led() || self.0.is_empty() {
            return None;
        }
        let silent = |address: &Address| match &self.0[address] {
            Answer::Silent(why) => Some(why.as_str()),
            Answer::Led | Answer::NoLeader => None,
        };
        let away: Vec<_> = self.0.keys().filter(|address| silent(address).is_some()).collect();
        let foreign = |address: &&&Address| silent(address).is_some_and(|why| why.contains(FOREIGN));
        if let Some(address) = away.iter().find(foreign) {
            return Some(format!(
                "the etcd at {address} is of another cluster than the one that this server has joined: correct --server, or start this server \
                 with another --data-dir to join that one"
            ));
        }
        let (count, answering) = (self.0.len(), self.0.len() - away.len());
        if away.is_empty() {
            return Some(format!("the members of etcd at {} answer and have no leader yet", joined(self.0.keys())));
        }
        let why = silent(away[0]).unwrap_or_default();
        Some(format!(
            "etcd has no leader, as {answering} of {count} members answer and {} are needed: start the servers that are away, {} ({})",
            count / 2 + 1,
            joined(away),
            &why[..why.floor_char_boundary(QUOTED)]
        ))
    }
}

fn joined<'a>(addresses: impl IntoIterator<Item = &'a Address>) -> String {
    addresses.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(members: &[(&str, Answer)]) -> MembersSeen {
        MembersSeen(members.iter().map(|(host, answer)| (Address::new(*host, 2379), answer.clone())).collect())
    }

    fn silent(why: &str) -> Answer {
        Answer::Silent(why.to_owned())
    }

    #[test]
    fn what_is_away_is_named() {
        let problem = |members: &[(&str, Answer)]| seen(members).problem();
        let refused = || silent("https://10.0.0.1:2379: Connection refused (os error 111)");
        assert_eq!(
            problem(&[("10.0.0.1", refused())]).as_deref(),
            Some(
                "etcd has no leader, as 0 of 1 members answer and 1 are needed: start the servers that are away, 10.0.0.1:2379 \
                 (https://10.0.0.1:2379: Connection refused (os error 111))"
            )
        );
        let sentence = problem(&[("10.0.0.1", refused()), ("10.0.0.2", Answer::NoLeader), ("10.0.0.3", refused())]);
        let sentence = sentence.expect("they have no leader");
        assert!(sentence.starts_with("etcd has no leader, as 1 of 3 members answer and 2 are needed"), "{sentence}");
        assert!(sentence.contains("10.0.0.1:2379, 10.0.0.3:2379 ("), "{sentence}");
        assert_eq!(
            problem(&[("10.0.0.1", Answer::NoLeader)]).as_deref(),
            Some("the members of etcd at 10.0.0.1:2379 answer and have no leader yet")
        );
        let foreign = silent("https://10.0.0.1:2379: invalid peer certificate: UnknownIssuer");
        let sentence = problem(&[("10.0.0.1", foreign)]).expect("it is none of this cluster");
        assert!(sentence.contains("is of another cluster than the one that this server has joined"), "{sentence}");
        assert_eq!(problem(&[("10.0.0.1", refused()), ("10.0.0.2", Answer::Led)]), None);
        assert_eq!(problem(&[]), None);
    }

    #[test]
    fn a_member_without_a_leader_is_left_for_one_that_has_it() {
        let health = |members: &[(&str, Answer)]| seen(members).health().map(|(_, health)| health).collect::<Vec<_>>();
        let no_leader = Answer::NoLeader;
        assert_eq!(health(&[("a", no_leader.clone()), ("b", Answer::Led)]), [Health::Failed, Health::Ok]);
        assert_eq!(health(&[("a", no_leader), ("b", silent("away"))]), [Health::Unknown, Health::Unknown]);
    }
}
