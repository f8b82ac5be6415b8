//! Whether this server reaches the store of the cluster's state. While it does not, nodes are better off with another server that does:
//! their tunnels end here, which is how their balancers learn of it, as of a server that has died.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k3s_controllers::Derived;
use tokio::sync::watch;
use tracing::{info, warn};

/// A store may be away for so long before nodes are sent elsewhere: longer than an election among etcd's members or the restart of a
/// database, since what goes through tunnels breaks off; and shorter than the 50 s after which a silent node counts as lost.
const BEARABLE: Duration = Duration::from_secs(10);

/// Told by whoever asks the store.
#[derive(Debug)]
pub(crate) struct StoreReach {
    /// Where all servers are, as far as it was known at last.
    servers: Derived<BTreeSet<SocketAddr>>,
    silence: Silence,
    /// Whether nodes are to be here.
    takes_nodes: Arc<watch::Sender<bool>>,
}

/// Since when a store has not answered.
#[derive(Debug, Default)]
struct Silence(Option<Instant>);

impl StoreReach {
    pub(crate) fn new(servers: Derived<BTreeSet<SocketAddr>>, takes_nodes: Arc<watch::Sender<bool>>) -> Self {
        Self { servers, silence: Silence::default(), takes_nodes }
    }

    /// The store was asked at `asked`, and has answered by now or not.
    pub(crate) fn saw(&mut self, answered: bool, asked: Instant) {
        let is_bearable = self.silence.is_bearable_after(answered, asked, Instant::now());
        let has_others = self.servers.current().is_some_and(|servers| servers.len() > 1);
        let takes_nodes = is_bearable || !has_others;
        if self.takes_nodes.send_replace(takes_nodes) == takes_nodes {
            return;
        }
        if takes_nodes {
            info!("The datastore answers this server again: nodes may come.");
        } else {
            warn!("The datastore has not answered this server for {BEARABLE:?}: its nodes are sent to other servers.");
        }
    }
}

impl Silence {
    fn is_bearable_after(&mut self, answered: bool, asked: Instant, now: Instant) -> bool {
        self.0 = if answered { None } else { self.0.or(Some(asked)) };
        self.0.is_none_or(|since| now.saturating_duration_since(since) < BEARABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stay_through_a_short_silence_and_come_back_with_the_first_answer() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        for (asked, until, answered, bearable) in [
            (0, 0, true, true),
            (10, 15, false, true),
            (17, 19, false, true),
            (19, 20, false, false),
            (30, 30, true, true),
            (40, 45, false, true),
        ] {
            assert_eq!(silence.is_bearable_after(answered, at(asked), at(until)), bearable, "{asked}");
        }
    }
}
