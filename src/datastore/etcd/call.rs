//! One call: gRPC's framing of messages.
//!
//! ```text
//! request:  one flag byte (compressed?) · four of length · message        response: the same, then the status as trailers
//! ```
//! Calls of one message each way are framed here, in one buffer of the right size: a list is long, and this is where
//! its bytes are copied. Streams are tonic's.

use std::future::{Future, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::Stream;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::error::RequestError;

/// Largest request that etcd takes by default, in bytes.
const MAX_REQUEST: usize = 1536 * 1024;
/// Largest message that is read at all: etcd allows this much beside the request.
const MAX_MESSAGE: usize = MAX_REQUEST + 512 * 1024;
/// What comes before a message.
const PREFIX: usize = 5;

/// The bytes of a request: from a connection, or from a fuzzer.
pub(super) trait Payload:
    hyper::body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send> + Send + Unpin + 'static
{
}

impl Payload for hyper::body::Incoming {}
#[cfg(any(test, feature = "fuzz"))]
impl Payload for Full<Bytes> {}

/// Answers a call of one message with one message.
pub(super) async fn unary<Q, R, F>(request: Request<impl Payload>, handle: impl FnOnce(Q) -> F) -> Response<Body>
where
    Q: Message + Default,
    R: Message,
    F: Future<Output = Result<R, Status>>,
{
    let answer = async { frame(&handle(receive(request.into_body()).await?).await?) };
    match answer.await {
        Ok(message) => respond(message),
        Err(status) => status.into_http(),
    }
}

/// Answers a stream of messages with a stream of messages.
pub(super) async fn streaming<Q, R, S>(
    request: Request<impl Payload>,
    handle: impl FnOnce(Streaming<Q>) -> S + Send,
) -> Response<Body>
where
    Q: Message + Default + Send + 'static,
    R: Message + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let mut handle = Some(handle);
    let call = service_fn(|request: tonic::Request<Streaming<Q>>| {
        let handled = handle.take().map(|handle| tonic::Response::new(handle(request.into_inner())));
        ready(handled.ok_or_else(|| Status::internal("a call was handled twice")))
    });
    Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_MESSAGE).streaming(call, request).await
}

/// Refuses what etcd would refuse for its size.
pub(super) fn check_size(request: &impl Message) -> Result<(), RequestError> {
    if request.encoded_len() > MAX_REQUEST { Err(RequestError::RequestTooLarge) } else { Ok(()) }
}

/// Reads the one message of a call.
async fn receive<Q: Message + Default>(mut body: impl Payload) -> Result<Q, Status> {
    let mut received = Received::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        if let Ok(data) = frame.into_data() {
            received.push(data)?;
        }
    }
    Q::decode(received.message()?).map_err(|error| Status::internal(format!("the request cannot be read: {error}")))
}

/// What has come of a message: nearly always all of it at once, and then it is not copied.
#[derive(Default)]
struct Received {
    first: Bytes,
    rest: BytesMut,
}

impl Received {
    /// Takes a piece; refuses a message that is too long before it is here.
    fn push(&mut self, data: Bytes) -> Result<(), Status> {
        if self.first.is_empty() {
            self.first = data;
        } else {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&self.first);
            }
            self.rest.extend_from_slice(&data);
        }
        let (here, announced) = (self.bytes().len(), self.announced());
        match announced.unwrap_or(here.saturating_sub(PREFIX)).max(here.saturating_sub(PREFIX)) {
            // In grpc-go's words: clients of etcd look for them.
            size if size > MAX_MESSAGE => Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({size} vs. {MAX_MESSAGE})"
            ))),
            _ => Ok(()),
        }
    }

    fn bytes(&self) -> &[u8] {
        if self.rest.is_empty() { &self.first } else { &self.rest }
    }

    /// The length that the prefix announces, once it is here.
    fn announced(&self) -> Option<usize> {
        let length = self.bytes().get(1..PREFIX)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(length)).ok()
    }

    /// The whole message.
    fn message(self) -> Result<Bytes, Status> {
        let announced = self.announced();
        let mut bytes = if self.rest.is_empty() { self.first } else { self.rest.freeze() };
        match (announced, bytes.first()) {
            (_, Some(1..)) => Err(Status::unimplemented("compressed messages are not supported")),
            (Some(length), _) if length == bytes.len() - PREFIX => {
                bytes.advance(PREFIX);
                Ok(bytes)
            }
            _ => Err(Status::internal("the request is not one message, or ended within it")),
        }
    }
}

/// A message with its prefix.
fn frame(message: &impl Message) -> Result<Bytes, Status> {
    let size = message.encoded_len();
    let length = u32::try_from(size).map_err(|_| Status::resource_exhausted("the answer is larger than 4 GiB"))?;
    let mut frame = BytesMut::with_capacity(PREFIX + size);
    frame.put_u8(0);
    frame.put_u32(length);
    message.encode(&mut frame).map_err(|error| Status::internal(error.to_string()))?;
    Ok(frame.freeze())
}

fn respond(message: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let mut response = Response::new(Body::new(Full::new(message).with_trailers(ready(Some(Ok(trailers))))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(pieces: &[&[u8]]) -> Result<Bytes, Status> {
        let mut received = Received::default();
        for piece in pieces {
            received.push(Bytes::copy_from_slice(piece))?;
        }
        received.message()
    }

    #[test]
    fn a_message_may_come_in_pieces() {
        let whole = [0, 0, 0, 0, 3, b'a', b'b', b'c'];
        for cut in 0..whole.len() {
            let (a, b) = whole.split_at(cut);
            assert_eq!(received(&[a, b]).unwrap(), "abc");
        }
        assert_eq!(received(&[&[0, 0, 0, 0, 0]]).unwrap(), "");
    }

    #[test]
    fn a_message_that_is_none_is_refused() {
        use tonic::Code;
        let code = |pieces: &[&[u8]]| received(pieces).unwrap_err().code();
        assert_eq!(code(&[]), Code::Internal);
        assert_eq!(code(&[&[0, 0, 0]]), Code::Internal);
        assert_eq!(code(&[&[0, 0, 0, 0, 3, b'a']]), Code::Internal);
        assert_eq!(code(&[&[0, 0, 0, 0, 1, b'a', 0]]), Code::Internal);
        assert_eq!(code(&[&[1, 0, 0, 0, 1, b'a']]), Code::Unimplemented);
        // Refused by what it announces, before it is sent.
        let refused = received(&[&[0, 0, 0x20, 0, 1]]).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.message(), "grpc: received message larger than max (2097153 vs. 2097152)");
    }
}
