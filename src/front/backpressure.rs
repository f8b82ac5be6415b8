//! Whether a client's connection takes what is written.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// While what was written on a connection has not left, nothing more is asked for to be written there; clones share it.
///
/// A client that announces large windows and then does not read leaves the system's buffers full; without this, each of its streams would
/// fill one of ours.
#[derive(Debug, Clone, Default)]
pub(super) struct Backpressure(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_stuck: bool,
    waiting: Vec<Waker>,
}

impl Backpressure {
    /// Whether more may be written; who has to wait is woken when it may.
    pub(super) fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.is_stuck {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waiting| waiting.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Something that was written has not left.
    pub(super) fn block(&self) {
        self.state().is_stuck = true;
    }

    /// All has left, or will not any more.
    pub(super) fn release(&self) {
        let waiting = {
            let mut state = self.state();
            state.is_stuck = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
