//! Running a connection by its clock.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Due},
    handshake::Protocol,
    peer::Peer,
    requests::Requests,
};

/// A connection that was not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CutOff {
    /// The client held it up, or did not go when it was told to.
    #[error("the client let us wait too long")]
    Overdue,
    /// Another one needed the place.
    #[error("another client needed the place")]
    Displaced,
}

/// Runs `connection` until it ends. `begin_drain` tells its client to go: when it has been idle for long, or when `drain` is cancelled, as
/// it is then in any case.
///
/// # Errors
///
/// The connection did not end by itself, and is to be dropped.
pub async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    mut begin_drain: impl FnMut(Pin<&mut C>),
    (peer, protocol, requests): (&Peer, Protocol, &Requests),
    drain: &CancellationToken,
) -> Result<C::Output, CutOff> {
    let mut clock = Clock::new(protocol);
    let (mut asked, mut displaced) = (pin!(drain.cancelled()), pin!(peer.displaced()));
    let mut alarm = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        requests.wake_when_quiet(cx.waker());
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Ok(ended));
            }
            let (is_stranger, now) = (!peer.is_authenticated(), Instant::now());
            if is_stranger && displaced.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(CutOff::Displaced));
            }
            let due = match clock.due(&requests.snapshot(is_stranger), is_stranger, now) {
                Due::Nothing(_) if !clock.is_draining() && asked.as_mut().poll(cx).is_ready() => Due::Drain,
                due => due,
            };
            match due {
                Due::Drain => {
                    clock.drain(now);
                    drain.cancel();
                    begin_drain(connection.as_mut());
                }
                Due::End => return Poll::Ready(Err(CutOff::Overdue)),
                Due::Nothing(None) => return Poll::Pending,
                Due::Nothing(Some(deadline)) => {
                    // An earlier alarm is left as it is: it only has this looked at once more.
                    if alarm.is_elapsed() || alarm.deadline() > deadline {
                        alarm.as_mut().reset(deadline);
                    }
                    if alarm.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    })
    .await
}
