//! One server as the balancer sees it.

use std::time::{Duration, Instant};

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
    pub(crate) connections: usize,
    /// Falls when this server's connections are to be closed; those that come later have a new one.
    pub(crate) over: CancellationToken,
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
        let (health, over) = (Health::default(), CancellationToken::new());
        Self { address, state, since: now, health, connections: 0, over }
    }

    pub(crate) fn enter(&mut self, state: State, now: Instant) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    /// Ends every connection there is.
    pub(crate) fn close(&mut self) {
        self.over.cancel();
        self.over = CancellationToken::new();
        self.connections = 0;
    }

    /// Where a success leads, if anywhere.
    pub(crate) fn after(&self, success: Success, now: Instant) -> Option<State> {
        let age = now.saturating_duration_since(self.since);
        match (self.state, success) {
            (State::Failed, Success::Health) if age < DISTRUST => None,
            (State::Failed | State::Unchecked, _) => Some(State::Recovering),
            (State::Recovering, Success::Health) if self.connections > 0 => Some(State::Active),
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
