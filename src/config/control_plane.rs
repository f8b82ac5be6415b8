//! What a server's control plane goes by: its programs, and the controllers in the server's own process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::{
    datastore::Datastore,
    network::ClusterNetwork,
    resources::Profile,
    server::{ControlPlaneArgs, DisabledParts, EgressMode, ServerConfig},
};

/// The part of a server's configuration that its control plane has to know.
#[derive(Debug, Clone, Copy)]
pub struct ControlPlaneConfig<'a> {
    /// The address plan.
    pub network: &'a ClusterNetwork,
    /// Where cluster state is kept.
    pub datastore: &'a Datastore,
    /// Where kube-apiserver listens.
    pub api_server: SocketAddr,
    /// Where the front is reached from this host.
    pub front: SocketAddr,
    /// Where the cluster reaches the front.
    pub published: SocketAddr,
    /// Which connections go through nodes' tunnels.
    pub egress_mode: EgressMode,
    /// Parts left out.
    pub disabled: DisabledParts,
    /// Users' arguments.
    pub args: &'a ControlPlaneArgs,
    /// How much memory programs are set up for.
    pub profile: Profile,
    /// klog verbosity.
    pub verbosity: u8,
}

impl ServerConfig {
    /// The control plane's part, for a server whose API is advertised at this address and whose memory has decided on this profile.
    pub fn control_plane(&self, advertised: IpAddr, profile: Profile) -> ControlPlaneConfig<'_> {
        ControlPlaneConfig {
            network: &self.network,
            datastore: &self.datastore,
            api_server: (Ipv4Addr::LOCALHOST, self.apiserver_port()).into(),
            front: (self.reached_at(), self.https_listen_port).into(),
            published: (advertised, self.advertise_port).into(),
            egress_mode: self.egress_mode,
            disabled: self.disabled,
            args: &self.args,
            profile,
            verbosity: self.verbosity,
        }
    }
}
