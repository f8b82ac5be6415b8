//! What a node needs from its host's network: settings, its own addresses, the overlay, CNI configuration and NAT for pods.
//!
//! Everything here is idempotent: a start after a crash, an upgrade or a takeover finds what is right and leaves it alone, so that
//! running pods notice nothing. What is ours is named, and each part that outlives the process can be removed again.

mod address;
mod announcements;
mod attachments;
mod changes;
mod cni;
mod command;
mod external_ports;
mod host;
mod leftovers;
mod lost_addresses;
mod nat;
mod netlink;
pub mod overlay;
#[cfg(test)]
mod policies_in_kernel;
mod subnet_env;
mod table;
#[cfg(test)]
mod test_namespace;

pub use address::{AddressError, Family, Underlay};
pub use attachments::{Attached, Attachments};
pub use changes::AddressChanges;
pub use cni::{BRIDGE, CniConfig, CniError};
pub use command::CommandError;
pub use external_ports::{ExternalPort, ExternalPorts};
pub use host::{
    Conntrack, HostPlan, HostReport, NftablesUnusable, ProxyMode, Warning, nftables_usable, obstacles, prepare,
};
pub use leftovers::{LeftoverError, remove_leftovers};
pub use lost_addresses::LostAddresses;
pub use nat::{NatError, NatRules, PodNat};
pub use netlink::NetlinkError;
pub use subnet_env::SubnetEnv;
pub use table::{ForeignTables, Table, TableError};
