//! A body in fewer, larger pieces.
//!
//! kube-apiserver writes a list item by item, which are HTTP/2 frames of 4 KiB: each would cost us a TLS record and a system call.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// A frame with its head fills one TLS record, bytes.
const PIECE: usize = (16 << 10) - 9;

/// `body`, with what is there of it already put together. Nothing waits for more to come.
pub(super) struct Gathered<B: HttpBody> {
    body: B,
    /// What came after data that it does not fit.
    next: Option<Result<Frame<Bytes>, B::Error>>,
    ended: bool,
}

impl<B: HttpBody> Gathered<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, next: None, ended: false }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> Gathered<B>
where
    B::Error: Unpin,
{
    /// The next frame of the body itself.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.ended = matches!(polled, Poll::Ready(None));
        polled
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Gathered<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let first = match self.next.take() {
            Some(next) => Some(next),
            None => match self.poll_body(cx) {
                Poll::Ready(polled) => polled,
                Poll::Pending => return Poll::Pending,
            },
        };
        let first = match first.map(|polled| polled.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => data,
            Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        let mut size = first.len();
        let mut pieces = vec![first];
        while size < PIECE {
            match self.poll_body(cx) {
                Poll::Pending | Poll::Ready(None) => break,
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(|data| size + data.len() <= PIECE) => {
                    let data = frame.into_data().unwrap_or_default();
                    size += data.len();
                    pieces.push(data);
                }
                Poll::Ready(other) => {
                    self.next = other;
                    break;
                }
            }
        }
        let data = match pieces.len() {
            1 => pieces.swap_remove(0),
            _ => {
                let mut whole = BytesMut::with_capacity(size);
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let waiting = match &self.next {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len) as u64,
            _ => 0,
        };
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + waiting);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + waiting);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        task::{Waker, ready},
    };

    use http::HeaderMap;

    use super::*;

    /// What is polled, in this order; `None` is nothing for now.
    struct Script(VecDeque<Option<Result<Frame<Bytes>, &'static str>>>);

    impl HttpBody for Script {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match self.0.pop_front() {
                Some(Some(polled)) => Poll::Ready(Some(polled)),
                Some(None) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    fn data(size: usize) -> Option<Result<Frame<Bytes>, &'static str>> {
        Some(Ok(Frame::data(Bytes::from(vec![b'd'; size]))))
    }

    /// Lengths of data, and words for everything else, until the end or until nothing is there.
    fn gathered(script: impl IntoIterator<Item = Option<Result<Frame<Bytes>, &'static str>>>) -> Vec<String> {
        let mut body = Gathered::new(Script(script.into_iter().collect()));
        let mut next = || -> Poll<Option<String>> {
            let polled = ready!(Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())));
            Poll::Ready(polled.map(|polled| match polled.map(Frame::into_data) {
                Ok(Ok(data)) => data.len().to_string(),
                Ok(Err(_)) => "trailers".to_owned(),
                Err(error) => error.to_owned(),
            }))
        };
        let mut seen = Vec::new();
        loop {
            match next() {
                Poll::Ready(Some(word)) => seen.push(word),
                Poll::Ready(None) => return seen,
                Poll::Pending => seen.push("pending".to_owned()),
            }
        }
    }

    #[test]
    fn what_is_there_becomes_one_piece() {
        assert_eq!(gathered([data(4096), data(4096), data(100)]), ["8292"]);
        assert_eq!(gathered((0..5).map(|_| data(4096))), ["12288", "8192"]);
        assert_eq!(gathered([data(20_000), data(1)]), ["20000", "1"]);
    }

    #[test]
    fn nothing_waits_for_more() {
        assert_eq!(gathered([data(1), None, data(2), data(3)]), ["1", "5"]);
        assert_eq!(gathered([None, data(1)]), ["pending", "1"]);
    }

    #[test]
    fn trailers_and_errors_come_after_the_data_before_them() {
        assert_eq!(gathered([data(1), Some(Ok(Frame::trailers(HeaderMap::new())))]), ["1", "trailers"]);
        assert_eq!(gathered([data(1), data(2), Some(Err("broken"))]), ["3", "broken"]);
    }
}
