//! One nftables table that is wholly ours, and noticing that somebody else changes it.
//!
//! A firewall that is loaded anew begins with `flush ruleset`, which takes everybody's tables along. The kernel announces each change with
//! the port of the socket that asked for it, which is the process id of the `nft` that did: ours are known.

use std::io;

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

use crate::command::{self, CommandError};

/// What we put into a table is announced to us too, all at once.
const BUFFER: usize = 4 << 20;
/// Announcements come in pages.
const PAGE: usize = 64 << 10;

/// A table of the family `inet`, in the network namespace of the thread that opened it.
pub struct Table {
    name: &'static str,
    announcements: TokioSocket,
    /// Somebody else changed it, which nobody has been told yet.
    touched: bool,
    /// Announcements were lost, for there were too many at once.
    lost: bool,
}

/// The packet filter did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The kernel does not tell of changes.
    #[error("changes of the packet filter cannot be followed")]
    Follow(#[source] io::Error),
    /// It did not take the change.
    #[error("the packet filter could not be changed")]
    Nft(#[from] CommandError),
}

impl Table {
    /// Begins to follow the changes of a table, which need not be there.
    ///
    /// # Errors
    /// There is no such socket, or no right to listen.
    pub fn open(name: &'static str) -> Result<Self, TableError> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            // With less, announcements are lost sooner, which is noticed.
            let _ = setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &BUFFER);
            socket.socket_mut().bind(&SocketAddr::new(0, 1 << (libc::NFNLGRP_NFTABLES - 1)))?;
            Ok(socket)
        };
        Ok(Self { name, announcements: open().map_err(TableError::Follow)?, touched: false, lost: false })
    }

    /// Runs `text` as one transaction; it should name nothing but this table.
    ///
    /// # Errors
    /// `nft` is not there, or refused; then nothing has changed.
    pub async fn apply(&mut self, text: &str) -> Result<(), TableError> {
        let done = command::run_to_end("nft", &["--file", "-"], text).await?;
        // The kernel announces a transaction before it tells its asker that it is done.
        self.drain(done.pid).await
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// `nft` is not there, or the kernel has no nftables.
    pub async fn exists(&self) -> Result<bool, TableError> {
        let tables = command::run("nft", &["list", "tables", "inet"], "").await?;
        Ok(tables.lines().any(|line| line.strip_prefix("table inet ") == Some(self.name)))
    }

    /// Waits until somebody else has changed it. Cancel-safe.
    ///
    /// # Errors
    /// The kernel does not tell any more.
    pub async fn touched(&mut self) -> Result<(), TableError> {
        while !std::mem::take(&mut self.touched) {
            let mut page = Vec::with_capacity(PAGE);
            let read = self.announcements.recv(&mut page).await;
            self.take(read, &page, None)?;
            self.drain(None).await?;
        }
        Ok(())
    }

    /// Takes what was announced by now. `own` is the process whose changes are ours.
    async fn drain(&mut self, own: Option<u32>) -> Result<(), TableError> {
        let mut page = Vec::with_capacity(PAGE);
        loop {
            page.clear();
            let read = self.announcements.socket_ref().recv(&mut page, 0).map(drop);
            if matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            self.take(read, &page, own)?;
        }
        // Whoever takes rules from it is not noticed then; whoever flushes everything is.
        if std::mem::take(&mut self.lost) && !self.touched {
            self.touched = !self.exists().await?;
        }
        Ok(())
    }

    /// Looks through what was read.
    fn take(&mut self, read: io::Result<()>, page: &[u8], own: Option<u32>) -> Result<(), TableError> {
        match read {
            Ok(()) => {
                let mut messages = Messages(page);
                self.touched |= messages.any(|message| message.table == self.name && Some(message.port) != own);
            }
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.lost = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TableError::Follow(error)),
        }
        Ok(())
    }
}

/// One announced change.
#[derive(Debug, PartialEq, Eq)]
struct Message<'a> {
    /// Who asked for it.
    port: u32,
    /// The table that it is about.
    table: &'a str,
}

/// Those in a page that are about tables of the family `inet`.
struct Messages<'a>(&'a [u8]);

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
            if let Some(table) = table_of(message) {
                return Some(Message { port: u32_at(message, 12)?, table });
            }
        }
        None
    }
}

fn table_of(message: &[u8]) -> Option<&str> {
    let [subject, subsystem] = u16_at(message, 4)?.to_le_bytes();
    let is_generation = i32::from(subject) == libc::NFT_MSG_NEWGEN;
    let family = *message.get(HEADER)?;
    if i32::from(subsystem) != libc::NFNL_SUBSYS_NFTABLES || is_generation || i32::from(family) != libc::NFPROTO_INET {
        return None;
    }
    let mut attributes = message.get(HEADER + SUBHEADER..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let attribute = attributes.get(4..length)?;
        if u16_at(attributes, 2)? & ATTRIBUTE_TYPE == TABLE_NAME {
            return std::str::from_utf8(attribute.strip_suffix(b"\0")?).ok();
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
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        host::nftables_usable,
        test_namespace::{in_namespace, sh},
    };

    const OURS: &str =
        "add table inet ours; add set inet ours s { type ipv4_addr; }; add element inet ours s { 10.0.0.1 }";
    /// Long enough to be sure on a busy machine, and only waited for where something should come.
    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn what_others_do_to_it_is_noticed_and_what_we_do_is_not() {
        in_namespace(async || {
            if let Err(reason) = nftables_usable().await {
                println!("skipped: {reason}");
                return;
            }
            let mut table = Table::open("ours").unwrap();
            assert!(!table.exists().await.unwrap());
            table.apply(OURS).await.unwrap();
            assert!(table.exists().await.unwrap() && !table.touched);
            sh("nft add table inet others; nft add table ip ours; nft delete table ip ours").await;
            table.drain(None).await.unwrap();
            assert!(!table.touched, "others' tables are others' business");
            for change in [
                "nft flush ruleset",
                "nft delete table inet ours",
                "nft flush set inet ours s",
                "nft 'add chain inet ours c'",
                "echo 'flush ruleset; add table inet others' | nft -f -",
            ] {
                sh(change).await;
                timeout(SOON, table.touched()).await.expect(change).unwrap();
                table.apply(&format!("table inet ours; delete table inet ours; {OURS}")).await.unwrap();
                assert!(!table.touched, "what mends it is ours");
            }
            assert!(table.apply("delete table inet nowhere").await.is_err());
            assert!(!table.touched);
        });
    }

    #[test]
    fn a_large_transaction_of_ours_is_not_taken_for_anothers() {
        in_namespace(async || {
            if let Err(reason) = nftables_usable().await {
                println!("skipped: {reason}");
                return;
            }
            let mut table = Table::open("ours").unwrap();
            let elements: Vec<_> =
                (0..60_000u32).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
            let text = OURS.replace("10.0.0.1", &elements.join(", "));
            table.apply(&text).await.unwrap();
            assert!(!table.touched);
        });
    }

    proptest! {
        #[test]
        fn whatever_is_announced_is_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Messages(&bytes).for_each(drop);
        }
    }
}
