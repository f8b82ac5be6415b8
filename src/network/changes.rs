//! Noticing that the host's addresses or routes changed.

use std::{pin::Pin, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{Either, select},
    stream::BoxStream,
};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::time::timeout;

use crate::netlink::NetlinkError;

/// What a host changes at once, such as an address with its route, comes within this time.
const BURST: Duration = Duration::from_millis(500);

/// The kernel's own announcements, of the network namespace of the thread that began to listen.
pub struct AddressChanges {
    /// Moves what the kernel says to `messages`, until the socket breaks.
    connection: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    messages: BoxStream<'static, ()>,
}

impl AddressChanges {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub fn listen() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        Ok(Self { connection: Some(Box::pin(connection)), messages: messages.map(drop).boxed() })
    }

    /// Waits for a change; several in a short time are one. Nothing is missed between two calls. A socket that breaks is replaced, and counts
    /// as a change: what changed meanwhile is not told.
    ///
    /// # Errors
    /// The kernel cannot be listened to any more.
    pub async fn next(&mut self) -> Result<(), NetlinkError> {
        if self.heard().await.is_err() {
            *self = Self::listen()?;
            return Ok(());
        }
        let rest = async { while self.heard().await.is_ok() {} };
        // A socket that breaks meanwhile is told by the next call.
        let _ = timeout(BURST, rest).await;
        Ok(())
    }

    async fn heard(&mut self) -> Result<(), NetlinkError> {
        if let Some(connection) = &mut self.connection
            && let Either::Left((Some(()), _)) = select(self.messages.next(), connection).await
        {
            return Ok(());
        }
        self.connection = None;
        Err(NetlinkError::Broken { doing: "follow addresses".into(), reason: "the socket closed".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_namespace::{in_namespace, sh};

    #[test]
    fn a_change_is_heard_once() {
        in_namespace(async || {
            sh("ip link add eth0 type veth peer name other; ip link set eth0 up; ip link set other up").await;
            let mut changes = AddressChanges::listen().unwrap();
            sh("ip address add 10.9.0.2/24 dev eth0; ip route add default via 10.9.0.1").await;
            changes.next().await.unwrap();
            sh("ip address del 10.9.0.2/24 dev eth0").await;
            changes.next().await.unwrap();
        });
    }
}
