//! Bodies on their way through the front: streamed, never collected.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use k3s_http::{Body, BodyError, empty};
use k3s_listener::Running;
use tokio::time::timeout;

use super::backpressure::Backpressure;

/// A peer's body, as it comes in.
pub(super) fn streamed(incoming: Incoming) -> Body {
    incoming.map_err(BodyError::from).boxed_unsync()
}

/// `body`, keeping `kept` until it has ended or is given up.
pub(super) fn keep<K: Send + Unpin + 'static>(body: Body, kept: K) -> Body {
    Kept { body, _kept: kept }.boxed_unsync()
}

/// `body` once its first piece is there, or has not come within `patience`: it leaves together with the head, which would be a write here
/// and a wake-up at the client of its own.
pub(super) async fn begun(mut body: Body, patience: Duration) -> Body {
    if body.is_end_stream() {
        return body;
    }
    match timeout(patience, body.frame()).await {
        Ok(Some(first)) => Begun { first: Some(first), rest: body }.boxed_unsync(),
        Ok(None) => empty(),
        Err(_) => body,
    }
}

struct Begun {
    first: Option<Result<Frame<Bytes>, BodyError>>,
    rest: Body,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_some() { SizeHint::default() } else { self.rest.size_hint() }
    }
}

/// `body`, telling `running` when there is something for the client to take, and when it has taken it. Nothing of it is asked for while
/// the client's connection is stuck.
pub(super) fn deliver(body: Body, running: Running, backpressure: Backpressure) -> Body {
    Delivered { body, running, backpressure }.boxed_unsync()
}

struct Delivered {
    body: Body,
    running: Running,
    backpressure: Backpressure,
}

impl HttpBody for Delivered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.backpressure.poll_ready(cx));
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(_) => self.running.wait_for_client(),
            Poll::Pending => self.running.wait_for_us(),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Kept<K> {
    body: Body,
    _kept: K,
}

impl<K: Unpin> HttpBody for Kept<K> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
