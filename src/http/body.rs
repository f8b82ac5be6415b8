//! Bodies: a few bytes of ours, or a stream on its way through.

use std::{convert::Infallible, io};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client, or kube-apiserver, broke off.
    #[error("the peer broke off")]
    Peer(#[from] hyper::Error),
    /// The file that was sent cannot be read any more.
    #[error("cannot read the file")]
    File(#[from] io::Error),
}

/// Any body: an answer of ours, or a stream between a client and kube-apiserver.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The body that holds nothing.
pub fn empty() -> Body {
    Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that is in memory already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}
