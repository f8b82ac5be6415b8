//! One server as the balancer sees it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::Address;

/// A server that nobody dials stays preferred for so long.
const PREFERENCE: Duration = Duration::from_secs(60);
/// After a failed dial, what was known of a server's health counts again only so much later: k3s checks health once a second.
const DISTRUST: Duration = Duration::from_secs(1);

/// What is known of a server, by rising preference; the numbers are those of k3s' metric.
///
/// ```text
///  listed           dialled            healthy, in use
/// ───────▶ Unchecked ──────▶ Recovering ──────────────▶ Active ◀────────┐
///              │ dial            ▲  │ ▲ healthy, not      │  ▲ dialled  │
///              ▼ failed          │  │ │ in use            │  │          │
///            Failed ─────────────┘  │ └────────▶ Preferred ◀─┘ another  │ dialled
///              ▲  dialled, healthy  │                │       got active │
///              │                    │ dial failed    ▼ 60 s without use │
///              ├────────────────────┘             Healthy ──────────────┘
///              └─── dial failed or unhealthy ── Active, Preferred, Healthy
///
/// Standby: the registration address while it is in no list; goes to Unchecked when it is listed, and comes back when it is not.
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It could not be dialled, or its tunnel broke.
    Failed = 1,
    /// The registration address, kept for when every listed server fails.
    Standby = 2,
    /// Listed, and never dialled.
    Unchecked = 3,
    /// Dialled or healthy once since it failed.
    Recovering = 4,
    /// Healthy for a while, and not in use.
    Healthy = 5,
    /// Healthy of late: the first choice where none is in use.
    Preferred = 6,
    /// In use: at most one server is.
    Active = 7,
}

/// What a server's tunnel says of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Health {
    /// There is none yet.
    #[default]
    Unknown,
    /// It is connected.
    Ok,
    /// It broke, or could not be connected.
    Failed,
}

/// Why a server's state may change for the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Success {
    Dial,
    Health,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: Address,
    pub(crate) state: State,
    /// Since when.
    since: Instant,
    pub(crate) health: Health,
    /// By the address that they leave this host from.
    sources: BTreeMap<IpAddr, Source>,
}

/// The connections to one server from one of this host's addresses.
#[derive(Debug, Default)]
struct Source {
    connections: usize,
    /// Cancelled when they are to be closed; those that come later have a new one.
    over: CancellationToken,
}

impl State {
    /// Whether clients are better off elsewhere as soon as another server is in use.
    pub(crate) fn yields(self) -> bool {
        matches!(self, Self::Failed | Self::Standby | Self::Recovering | Self::Healthy)
    }

    /// Whether a broken tunnel says something new.
    fn trusted(self) -> bool {
        matches!(self, Self::Healthy | Self::Preferred | Self::Active)
    }
}

impl Server {
    pub(crate) fn new(address: Address, state: State, now: Instant) -> Self {
        Self { address, state, since: now, health: Health::default(), sources: BTreeMap::new() }
    }

    pub(crate) fn enter(&mut self, state: State, now: Instant) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.sources.values().map(|source| source.connections).sum()
    }

    /// Counts a further connection; what is returned is cancelled when it is to be closed.
    pub(crate) fn opened(&mut self, source: IpAddr) -> CancellationToken {
        let source = self.sources.entry(source).or_default();
        source.connections += 1;
        source.over.clone()
    }

    /// A connection has ended that was not closed.
    pub(crate) fn ended(&mut self, source: IpAddr) {
        if let Some(one) = self.sources.get_mut(&source) {
            one.connections = one.connections.saturating_sub(1);
            if one.connections == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// Ends every connection there is.
    pub(crate) fn close(&mut self) {
        for source in std::mem::take(&mut self.sources).into_values() {
            source.over.cancel();
        }
    }

    /// Ends those that leave from `source`, and says how many.
    pub(crate) fn close_from(&mut self, source: IpAddr) -> usize {
        let Some(source) = self.sources.remove(&source) else { return 0 };
        source.over.cancel();
        source.connections
    }

    /// Where a success leads, if anywhere.
    pub(crate) fn after(&self, success: Success, now: Instant) -> Option<State> {
        let age = now.saturating_duration_since(self.since);
        match (self.state, success) {
            (State::Failed, Success::Health) if age < DISTRUST => None,
            (State::Failed | State::Unchecked, _) => Some(State::Recovering),
            (State::Recovering, Success::Health) if !self.sources.is_empty() => Some(State::Active),
            (State::Recovering, Success::Health) => Some(State::Preferred),
            (State::Healthy | State::Preferred, Success::Dial) => Some(State::Active),
            (State::Preferred, Success::Health) if age > PREFERENCE => Some(State::Healthy),
            _ => None,
        }
    }

    /// A dial failed, or the tunnel broke: clients that hang on a server of good repute are let go.
    pub(crate) fn fail(&mut self, by_dial: bool, now: Instant) {
        if self.state.trusted() {
            self.enter(State::Failed, now);
            self.close();
        } else if by_dial && matches!(self.state, State::Unchecked | State::Recovering) {
            self.enter(State::Failed, now);
        } else if by_dial && self.state == State::Failed {
            self.since = now;
        }
    }
}
