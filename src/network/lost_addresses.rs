//! Noticing that the host has lost an address: what is connected from it hangs until somebody's patience ends.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{address, changes::AddressChanges, netlink::NetlinkError};

/// The addresses that go, as they go, of the network namespace of the thread that began to listen.
pub struct LostAddresses {
    changes: AddressChanges,
    /// Those that the host had when it was last looked.
    known: BTreeSet<IpAddr>,
}

impl LostAddresses {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub async fn listen() -> Result<Self, NetlinkError> {
        let changes = AddressChanges::listen()?;
        Ok(Self { changes, known: address::all().await? })
    }

    /// Waits until the host has lost addresses, and tells which. One that goes and comes back at once is not lost: connections from it go
    /// on.
    ///
    /// # Errors
    /// The kernel cannot be listened to any more.
    pub async fn next(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        loop {
            self.changes.next().await?;
            // Out of descriptors, most likely: the next change tells of this one too.
            let Ok(now) = address::all().await else { continue };
            let lost = lost(&mut self.known, now);
            if !lost.is_empty() {
                return Ok(lost);
            }
        }
    }
}

/// Which of the `known` addresses are not among those of `now`, which are known from here on.
fn lost(known: &mut BTreeSet<IpAddr>, now: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let lost = &*known - &now;
    *known = now;
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_is_lost_once_and_may_come_back() {
        let mut known = set(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(lost(&mut known, set(&["2001:db8::1", "192.0.2.2"])), set(&["192.0.2.1"]));
        assert_eq!(lost(&mut known, set(&["192.0.2.1", "192.0.2.2"])), set(&["2001:db8::1"]));
        assert_eq!(lost(&mut known, set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"])), set(&[]));
    }

    #[test]
    fn the_kernel_tells_of_addresses_that_go() {
        in_namespace(async || {
            sh("ip link add eth0 type veth peer name other; ip link set eth0 up; ip link set other up").await;
            sh("ip address add 10.9.0.2/24 dev eth0; ip address add 10.9.1.2/24 dev eth0").await;
            let mut changes = LostAddresses::listen().await.unwrap();
            sh("ip address add 10.9.2.2/24 dev eth0; ip address del 10.9.0.2/24 dev eth0").await;
            assert_eq!(changes.next().await.unwrap(), set(&["10.9.0.2"]));
            sh("ip link del eth0").await;
            let gone = changes.next().await.unwrap();
            assert!(gone.is_superset(&set(&["10.9.1.2", "10.9.2.2"])), "{gone:?}");
        });
    }
}
