//! Conditions of our own process that programs wait for.

use std::sync::Arc;

use crate::status_store::{GateState, StatusStore};

/// A named condition such as `datastore` or `images`, which something in this process opens. A program that is
/// [`after`](crate::program::Program::after) it starts once it is open. It says itself what is still missing.
#[derive(Debug, Clone)]
pub struct Gate {
    name: Arc<str>,
    store: Arc<StatusStore>,
}

impl Gate {
    pub(crate) fn new(name: &str, store: Arc<StatusStore>) -> Self {
        Self { name: name.into(), store }
    }

    /// Lets everything through that is after it, for good.
    pub fn open(&self) {
        self.store.set_gate(&self.name, GateState::Open);
    }

    /// Says that what it was waiting for is there: its own work is timed from here on, which else is from when it was made.
    pub fn begin(&self) {
        self.store.set_begun(&self.name);
    }

    /// Says what is being done or waited for, e.g. `importing coredns.tar (2 of 4)`. An open gate stays open.
    pub fn waiting(&self, what: impl Into<String>) {
        self.store.set_gate(&self.name, GateState::Closed { waiting_for: Some(what.into()) });
    }

    /// Says what another machine has to bring before it opens. An open gate stays open.
    pub fn waiting_for_others(&self, what: impl Into<String>) {
        self.store.set_gate(&self.name, GateState::Elsewhere { waiting_for: what.into() });
    }

    /// Says that it cannot be opened, and why. Another attempt may still call [`Gate::waiting`] and [`Gate::open`].
    pub fn fail(&self, why: impl Into<String>) {
        self.store.set_gate(&self.name, GateState::Failed { why: why.into() });
    }
}
