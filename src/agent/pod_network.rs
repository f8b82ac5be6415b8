//! The node's place in the pod network, kept while cluster and host change around it.
//!
//! ```text
//! the cluster's nodes, watched or as last seen ─┐
//!                                               ├─► overlay ─► NAT ─► ways to other nodes ─► subnet.env ─► annotations
//! the host's addresses ─────────────────────────┘
//! ```
//!
//! What was last seen of the cluster is kept on disk: a node that starts while no server answers is on the network nevertheless.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use ipnet::IpNet;
use k3s_components::{Node, Paths};
use k3s_config::network::Overlay as Configured;
use k3s_controllers::{ClusterView, set_annotations};
use k3s_network::{
    AddressChanges, Family, NatRules, PodNat, SubnetEnv, Underlay,
    overlay::{self, Attachment, Backend, Member, Overlay, PeerError},
};
use k3s_supervise::{Backoff, Supervisor};
use kube::Client;
use tokio::{select, time::sleep};
use tracing::{info, warn};

use crate::{
    Error,
    api::{self, Renewed},
    cache::MembersCache,
    error::chain,
    network,
};

/// The keys of our sentences in the status.
const KEY: &str = "pod-network";
const ADDRESS_KEY: &str = "node-address";
/// Between attempts at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Keeps the node on the pod network until dropped. What fails is told in the status and tried again.
pub(crate) async fn run(
    node: &Node,
    paths: &Paths,
    view: &ClusterView,
    renewed: &Renewed,
    supervisor: &Supervisor,
) -> Result<(), Error> {
    let backend = match node.network.overlay {
        Configured::Vxlan => Backend::Vxlan,
        Configured::HostGw => Backend::HostGw,
        Configured::None => return Ok(()),
    };
    let mut changes = AddressChanges::listen()?;
    let cache = MembersCache::new(paths.agent().join("members.json"));
    let mut network = PodNetwork {
        node,
        backend,
        members: cache.load()?,
        cache,
        api: None,
        nat: NatRules::new(node.proxy_mode),
        pod_cidrs: Vec::new(),
        moved: None,
        told: String::new(),
    };
    let own = api::lasting_client(paths.kubelet_kubeconfig(), renewed.clone()).await?;
    let mut members = view.members(overlay::is_annotation);
    let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
    loop {
        let complete = network.reconcile(supervisor).await;
        let pause = backoff.advance();
        select! {
            members = members.changed() => network.learn(members, &own),
            changed = changes.next() => changed?,
            () = network.nat.lost() => {}
            () = sleep(pause), if !complete => {}
        }
        if complete {
            backoff.begin_anew();
        }
    }
}

struct PodNetwork<'a> {
    node: &'a Node,
    backend: Backend,
    members: Vec<Member>,
    cache: MembersCache,
    /// To write this node's annotations with, once the API has told who the members are.
    api: Option<Client>,
    nat: NatRules,
    /// The ranges that the node is on the network with.
    pod_cidrs: Vec<IpNet>,
    /// The node's address where that is another than at the start.
    moved: Option<IpAddr>,
    /// What was last said to be wrong or missing.
    told: String,
}

/// How far the node got.
enum Progress {
    /// Something has to come first.
    Waits(&'static str),
    /// It is on the network; these nodes' pods cannot be reached.
    Joined(Vec<PeerError>),
}

impl PodNetwork<'_> {
    fn learn(&mut self, members: Vec<Member>, api: &Client) {
        self.members = members;
        self.api = Some(api.clone());
        if let Err(error) = self.cache.store(&self.members) {
            warn!(error = chain(&error), "The cluster's nodes cannot be kept for a start without a server.");
        }
    }

    /// Brings the network up to what is known, and tells what is missing; `false` if something failed that is worth another try.
    async fn reconcile(&mut self, supervisor: &Supervisor) -> bool {
        let progress = self.join().await;
        let sentence = match &progress {
            Ok(Progress::Waits(what)) => format!("The pod network waits for {what}."),
            Ok(Progress::Joined(unreachable)) => {
                let sentences = unreachable.iter().map(|error| format!("Some pods cannot be reached: {error}."));
                sentences.collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("The pod network is not complete: {}.", chain(error)),
        };
        match &progress {
            _ if sentence.is_empty() || sentence == self.told => {}
            Ok(Progress::Waits(_)) => info!("{sentence}"),
            _ => warn!("{sentence}"),
        }
        if sentence.is_empty() {
            supervisor.clear(KEY);
        } else {
            supervisor.warn(KEY, sentence.as_str());
        }
        self.told = sentence;
        match self.moved {
            Some(now) => supervisor.warn(
                ADDRESS_KEY,
                format!(
                    "This node's address is now {now}. Its pods are reached by it; restart k3s to have kubelet and the API go by it too, which \
                     leaves pods running."
                ),
            ),
            None => supervisor.clear(ADDRESS_KEY),
        }
        progress.is_ok()
    }

    /// Does all there is to do for the members that are known; nothing until this node is one and has pod ranges.
    async fn join(&mut self) -> Result<Progress, Error> {
        let own = match own_member(&self.members, &self.node.config.name) {
            Ok(own) => own.clone(),
            Err(what) => return Ok(Progress::Waits(what)),
        };
        let plan = &self.node.network;
        let underlays = underlays(self.node, &own.pod_cidrs).await?;
        self.moved = underlays.iter().map(|underlay| underlay.address).find(|address| has_moved(self.node, *address));
        let overlay = Overlay {
            backend: self.backend,
            node: own.name.clone(),
            cluster_cidrs: plan.cluster_cidrs.clone(),
            pod_cidrs: own.pod_cidrs.clone(),
            underlays,
        };
        let attachment = overlay.attach().await?;
        self.translate(&own.pod_cidrs).await?;
        let unreachable = attachment.reconcile(&self.members).await?;
        let env = SubnetEnv {
            cluster_cidrs: plan.cluster_cidrs.clone(),
            pod_cidrs: own.pod_cidrs.clone(),
            mtu: attachment.mtu(),
        };
        env.write(Path::new(network::SUBNET_ENV))?;
        if self.pod_cidrs != own.pod_cidrs {
            if !self.pod_cidrs.is_empty() {
                warn!(
                    "This node was given other pod ranges: pods that run here have to be deleted to be reached again."
                );
            }
            let pods = own.pod_cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
            info!(pods, backend = %self.backend, "Joined the pod network.");
            self.pod_cidrs.clone_from(&own.pod_cidrs);
        }
        self.announce(&own, &attachment).await?;
        Ok(Progress::Joined(unreachable))
    }

    /// Lets what pods send out of the cluster take the node's address. By IPv6 only where that is asked for, as in flannel: pods may have
    /// addresses there that the outside knows.
    async fn translate(&mut self, pod_cidrs: &[IpNet]) -> Result<(), Error> {
        let plan = &self.node.network;
        let translated = pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() || plan.masquerade_ipv6);
        let nat = PodNat { pod_cidrs: translated.copied().collect(), cluster_cidrs: plan.cluster_cidrs.clone() };
        Ok(self.nat.set(nat).await?)
    }

    /// Tells the other nodes how this one is reached.
    async fn announce(&self, own: &Member, attachment: &Attachment) -> Result<(), Error> {
        let Some(api) = &self.api else { return Ok(()) };
        let external: &[IpAddr] = if self.node.network.overlay_external { &self.node.config.external_ips } else { &[] };
        let wanted = overlay::annotations(&attachment.endpoints(), external, &own.annotations);
        let differing: BTreeMap<_, _> =
            wanted.into_iter().filter(|(key, value)| own.annotations.get(*key) != Some(value)).collect();
        if !differing.is_empty() {
            set_annotations(api, &own.name, &differing).await.map_err(Error::Announce)?;
            let addresses: Vec<_> = attachment.endpoints().iter().map(|end| end.address().to_string()).collect();
            info!(addresses = addresses.join(","), "Told the other nodes how this one is reached.");
        }
        Ok(())
    }
}

/// The node called `name`, or what has to come about before there is one that can be on the network.
fn own_member<'a>(members: &'a [Member], name: &str) -> Result<&'a Member, &'static str> {
    match members.iter().find(|member| member.name == name) {
        None if members.is_empty() => Err("the API to tell who the cluster's nodes are"),
        None => Err("this node to register"),
        Some(own) if own.pod_cidrs.is_empty() => Err("kube-controller-manager to give this node a pod range"),
        Some(own) => Ok(own),
    }
}

/// Whether `address`, found by the default route, is none of those that the node started with.
fn has_moved(node: &Node, address: IpAddr) -> bool {
    node.config.overlay_interface.is_none() && !node.ips.contains(&address)
}

/// What the overlay travels over, for each family that pods have: the interface the user named, the one with the node's address, or the
/// one of the default route.
async fn underlays(node: &Node, pod_cidrs: &[IpNet]) -> Result<Vec<Underlay>, Error> {
    let mut underlays = Vec::new();
    for family in pod_cidrs.iter().map(|cidr| Family::of(cidr.addr())) {
        let of_family = |ips: &[IpAddr]| ips.iter().copied().find(|ip| Family::of(*ip) == family);
        underlays.push(match (&node.config.overlay_interface, of_family(&node.config.ips), of_family(&node.ips)) {
            (Some(name), _, _) => Underlay::of_interface(name, family).await?,
            (None, Some(given), _) => Underlay::of_address(given).await?,
            (None, None, found) => match (Underlay::of_default_route(family).await, found) {
                // A host may lose its default route and keep its address.
                (Err(_), Some(found)) => Underlay::of_address(found).await?,
                (underlay, _) => underlay?,
            },
        });
    }
    Ok(underlays)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, pod_cidrs: &[&str]) -> Member {
        let pod_cidrs = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Member { name: name.into(), pod_cidrs, annotations: BTreeMap::new() }
    }

    #[test]
    fn a_node_waits_to_be_a_member_with_pods() {
        let other = member("other", &["10.42.1.0/24"]);
        let waits_for = |members: &[Member]| own_member(members, "own").map(|own| own.name.clone());
        assert_eq!(waits_for(&[]), Err("the API to tell who the cluster's nodes are"));
        assert_eq!(waits_for(std::slice::from_ref(&other)), Err("this node to register"));
        let ranges = "kube-controller-manager to give this node a pod range";
        assert_eq!(waits_for(&[member("own", &[]), other.clone()]), Err(ranges));
        assert_eq!(waits_for(&[member("own", &["10.42.0.0/24"]), other]), Ok("own".into()));
    }
}
