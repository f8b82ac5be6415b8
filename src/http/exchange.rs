//! One request on a connection of its own.

use std::pin::pin;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Collected, Full, LengthLimitError, Limited};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
    rt::{Read, Write},
};

/// An answer that has come to its end, or broken off behind its head.
#[derive(Debug)]
pub struct Answer {
    /// From its head.
    pub status: StatusCode,
    /// What came behind.
    pub body: Result<Bytes, Unread>,
}

/// Why an answer's body is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// More came than there can be to say.
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// For no reason that is known.
    #[error(transparent)]
    Unknown(Box<dyn std::error::Error + Send + Sync>),
}

/// Asks over `io`, in HTTP/1.1, and reads an answer of at most `longest` bytes. It waits for as long as the other end takes.
///
/// # Errors
/// The other end does not speak HTTP, or broke off before its answer had begun.
pub async fn exchange<I>(io: I, request: Request<Full<Bytes>>, longest: usize) -> Result<Answer, hyper::Error>
where
    I: Read + Write + Unpin,
{
    exchange_with(io, request, async |response| {
        let status = response.status();
        let body = Limited::new(response.into_body(), longest).collect().await;
        let body = body.map(Collected::to_bytes).map_err(|error| Unread::new(error, longest));
        Answer { status, body }
    })
    .await
}

/// Asks over `io`, in HTTP/1.1, and returns what `receive` makes of the answer. It waits for as long as the other end and `receive` take.
///
/// # Errors
/// The other end does not speak HTTP, or broke off before its answer had begun.
pub async fn exchange_with<I, B, T>(
    io: I,
    request: Request<B>,
    receive: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, hyper::Error>
where
    I: Read + Write + Unpin,
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = http1::handshake(io).await?;
    let answer = async { Ok(receive(sender.send_request(request).await?).await) };
    let (mut connection, mut answer) = (pin!(connection), pin!(answer));
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // What was read to its end is the answer.
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
}

impl Unread {
    fn new(error: Box<dyn std::error::Error + Send + Sync>, longest: usize) -> Self {
        match error.downcast::<hyper::Error>() {
            Ok(error) => Self::Broken(*error),
            Err(error) if error.is::<LengthLimitError>() => Self::TooLong(longest),
            // `Limited` has no third kind.
            Err(error) => Self::Unknown(error),
        }
    }
}
