//! What a request carries: nothing, or a file.

use std::{io, path::Path};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _},
};
use tokio_util::io::ReaderStream;

use crate::S3Error;

/// The SHA-256 of nothing.
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const READ_AT_ONCE: usize = 256 << 10;

pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    Nothing,
    File(&'a MeasuredFile<'a>),
}

/// A file of which is known what has to be signed.
pub(crate) struct MeasuredFile<'a> {
    path: &'a Path,
    pub(crate) bytes: u64,
    sha256: String,
}

impl<'a> MeasuredFile<'a> {
    /// Reads it once: S3 wants to know what comes before it comes.
    pub(crate) async fn measure(path: &'a Path) -> Result<Self, S3Error> {
        let failed = || S3Error::file("read", path);
        let file = File::open(path).await.map_err(failed())?;
        let (bytes, sha256) = measure(file).await.map_err(failed())?;
        Ok(Self { path, bytes, sha256 })
    }
}

impl Payload<'_> {
    /// In hexadecimal digits.
    pub(crate) fn sha256(&self) -> &str {
        match self {
            Self::Nothing => SHA256_OF_NOTHING,
            Self::File(file) => &file.sha256,
        }
    }

    /// As HTTP sends it, from its beginning; one that was measured is cut off where it ended then.
    pub(crate) async fn body(&self) -> Result<Body, S3Error> {
        match self {
            Self::Nothing => Ok(Empty::new().map_err(|never| match never {}).boxed()),
            Self::File(measured) => {
                let file = File::open(measured.path).await.map_err(S3Error::file("read", measured.path))?;
                let chunks = ReaderStream::with_capacity(file.take(measured.bytes), READ_AT_ONCE);
                Ok(StreamBody::new(chunks.map_ok(Frame::data)).boxed())
            }
        }
    }
}

async fn measure(mut from: impl AsyncRead + Unpin) -> io::Result<(u64, String)> {
    let (mut context, mut bytes, mut buffer) = (Context::new(&SHA256), 0, vec![0; READ_AT_ONCE]);
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok((bytes, HEXLOWER.encode(context.finish().as_ref()))),
            length => {
                context.update(&buffer[..length]);
                bytes += length as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_has_the_digest_that_is_signed_for_it() {
        assert_eq!(measure(tokio::io::empty()).await.unwrap(), (0, Payload::Nothing.sha256().to_owned()));
    }

    #[tokio::test]
    async fn a_file_is_sent_as_it_was_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        std::fs::write(&path, "abc").unwrap();
        let measured = MeasuredFile::measure(&path).await.unwrap();
        let payload = Payload::File(&measured);
        assert_eq!(payload.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        std::fs::write(&path, "abcdef").unwrap();
        let sent = payload.body().await.unwrap().collect().await.unwrap().to_bytes();
        assert_eq!((measured.bytes, sent.as_ref()), (3, &b"abc"[..]));
    }
}
