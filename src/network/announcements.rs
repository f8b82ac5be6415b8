//! What the kernel announces of nftables' tables, with the port of the socket that asked for the change, which is the process id of the
//! `nft` that did.

use std::io;

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

/// What is put into a table is announced all at once.
const BUFFER: usize = 4 << 20;
/// Announcements come in pages.
const PAGE: usize = 64 << 10;

/// The announcements of the network namespace of the thread that began to listen.
pub(crate) struct Announcements {
    socket: TokioSocket,
    page: Vec<u8>,
}

/// What was read.
pub(crate) enum Heard<'a> {
    Messages(Messages<'a>),
    /// There were too many at once, and some are lost.
    Lost,
}

impl Announcements {
    pub(crate) fn listen() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        // With less, announcements are lost sooner, which is noticed.
        let _ = setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &BUFFER);
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (libc::NFNLGRP_NFTABLES - 1)))?;
        Ok(Self { socket, page: Vec::with_capacity(PAGE) })
    }

    /// Waits for some. Cancel-safe.
    pub(crate) async fn next(&mut self) -> io::Result<Heard<'_>> {
        self.page.clear();
        let read = self.socket.recv(&mut self.page).await;
        self.heard(read)
    }

    /// Those that are there by now; `None` once there are no more.
    pub(crate) fn try_next(&mut self) -> io::Result<Option<Heard<'_>>> {
        self.page.clear();
        match self.socket.socket_ref().recv(&mut self.page, 0).map(drop) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            read => self.heard(read).map(Some),
        }
    }

    fn heard(&self, read: io::Result<()>) -> io::Result<Heard<'_>> {
        match read {
            Ok(()) => Ok(Heard::Messages(Messages(&self.page))),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Heard::Lost),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Heard::Messages(Messages(&[]))),
            Err(error) => Err(error),
        }
    }
}

/// One announced change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// Who asked for it.
    pub(crate) port: u32,
    /// The table that it is about.
    pub(crate) table: &'a str,
    pub(crate) family: Family,
    /// Whether the table is gone.
    pub(crate) is_removal: bool,
}

/// The families of tables that matter here, as nftables names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Inet,
    Ip,
    Ip6,
}

impl Family {
    fn of(number: u8) -> Option<Self> {
        match i32::from(number) {
            libc::NFPROTO_INET => Some(Self::Inet),
            libc::NFPROTO_IPV4 => Some(Self::Ip),
            libc::NFPROTO_IPV6 => Some(Self::Ip6),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// Those in a page that are about tables.
pub(crate) struct Messages<'a>(&'a [u8]);

/// Length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Family, version, resource.
const SUBHEADER: usize = 4;
/// In all messages but those of generations.
const TABLE_NAME: u16 = 1;
/// Flags in the type of an attribute.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        while self.0.len() >= HEADER {
            let length = u32_at(self.0, 0)? as usize;
            let message = self.0.get(..length).filter(|message| message.len() >= HEADER)?;
            self.0 = self.0.get(align(length)..).unwrap_or_default();
            if let Some(message) = read(message) {
                return Some(message);
            }
        }
        None
    }
}

fn read(message: &[u8]) -> Option<Message<'_>> {
    let [subject, subsystem] = u16_at(message, 4)?.to_le_bytes();
    let subject = i32::from(subject);
    if i32::from(subsystem) != libc::NFNL_SUBSYS_NFTABLES || subject == libc::NFT_MSG_NEWGEN {
        return None;
    }
    let family = Family::of(*message.get(HEADER)?)?;
    let mut attributes = message.get(HEADER + SUBHEADER..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let attribute = attributes.get(4..length)?;
        if u16_at(attributes, 2)? & ATTRIBUTE_TYPE == TABLE_NAME {
            let table = std::str::from_utf8(attribute.strip_suffix(b"\0")?).ok()?;
            return Some(Message {
                port: u32_at(message, 12)?,
                table,
                family,
                is_removal: subject == libc::NFT_MSG_DELTABLE,
            });
        }
        attributes = attributes.get(align(length)..)?;
    }
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_announced_is_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Messages(&bytes).for_each(drop);
        }
    }
}
