//! A short conversation with the kernel over rtnetlink.

use std::{io, pin::pin};

use futures_util::{
    TryStreamExt as _,
    future::{Either, select},
};
use nix::errno::Errno;
use rtnetlink::{Handle, new_connection, packet_route::link::LinkMessage};

/// Why the kernel did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("a netlink socket could not be opened")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refused to {doing}")]
    Refused {
        /// What was asked of it.
        doing: String,
        /// Its reason.
        source: io::Error,
    },
    /// The conversation itself broke.
    #[error("netlink failed to {doing}: {reason}")]
    Broken {
        /// What was asked.
        doing: String,
        /// What went wrong.
        reason: String,
    },
}

impl NetlinkError {
    pub(crate) fn new(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused { doing: doing.into(), source: message.to_io() },
            other => Self::Broken { doing: doing.into(), reason: other.to_string() },
        }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_) | Self::Broken { .. } => None,
        }
    }
}

/// Removes the device of this name, if there is one.
pub(crate) async fn remove_device(name: &str) -> Result<(), NetlinkError> {
    converse(async |handle: Handle| match link(&handle, name).await? {
        Some(link) => delete(&handle, name, link.header.index).await,
        None => Ok(()),
    })
    .await
}

/// The device of this name, if there is one.
pub(crate) async fn link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
    let found = handle.link().get().match_name(name).execute().try_collect::<Vec<_>>().await;
    match found.map_err(|error| NetlinkError::new(format!("look up {name}"), error)) {
        Ok(links) => Ok(links.into_iter().next()),
        Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) async fn delete(handle: &Handle, name: &str, index: u32) -> Result<(), NetlinkError> {
    handle.link().del(index).execute().await.map_err(|error| NetlinkError::new(format!("remove {name}"), error))
}

/// Holds one conversation in the network namespace of the calling thread; the socket closes with it.
pub(crate) async fn converse<T, E: From<NetlinkError>>(work: impl AsyncFnOnce(Handle) -> Result<T, E>) -> Result<T, E> {
    let (connection, handle, _) = new_connection().map_err(NetlinkError::Open)?;
    match select(pin!(work(handle)), pin!(connection)).await {
        Either::Left((result, _)) => result,
        // The connection ends before the work only if the socket broke; the work then hears so.
        Either::Right(((), work)) => work.await,
    }
}
