//! One nftables table that is wholly ours, and noticing that somebody else changes it.
//!
//! A firewall that is loaded anew begins with `flush ruleset`, which takes everybody's tables along. The kernel announces each change, and
//! who asked for it: ours are known.

use std::{io, time::Duration};

use tokio::time::sleep;
use tracing::warn;

use crate::{
    announcements::{Announcements, Family, Heard},
    command::{self, CommandError},
};

/// What is put back waits for so long, so that two who fight for a table leave the processor to others.
const PAUSE: Duration = Duration::from_secs(1);

/// A table of the family `inet`, in the network namespace of the thread that opened it.
pub struct Table {
    name: &'static str,
    announcements: Announcements,
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
        let announcements = Announcements::listen().map_err(TableError::Follow)?;
        Ok(Self { name, announcements, touched: false, lost: false })
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
        exists(Family::Inet, self.name).await
    }

    /// Waits until somebody else has changed it. Cancel-safe.
    ///
    /// # Errors
    /// The kernel does not tell any more.
    pub async fn touched(&mut self) -> Result<(), TableError> {
        while !std::mem::take(&mut self.touched) {
            let heard = self.announcements.next().await.map_err(TableError::Follow)?;
            let (touched, lost) = look_through(heard, self.name, None);
            self.touched |= touched;
            self.lost |= lost;
            self.drain(None).await?;
        }
        Ok(())
    }

    /// Takes what was announced by now. `own` is the process whose changes are ours.
    async fn drain(&mut self, own: Option<u32>) -> Result<(), TableError> {
        while let Some(heard) = self.announcements.try_next().map_err(TableError::Follow)? {
            let (touched, lost) = look_through(heard, self.name, own);
            self.touched |= touched;
            self.lost |= lost;
        }
        // Whoever takes rules from it is not noticed then; whoever flushes everything is.
        if std::mem::take(&mut self.lost) && !self.touched {
            self.touched = !self.exists().await?;
        }
        Ok(())
    }
}

/// Whether somebody else changed the table, and whether announcements were lost.
fn look_through(heard: Heard<'_>, name: &str, own: Option<u32>) -> (bool, bool) {
    match heard {
        Heard::Messages(mut messages) => {
            let is_ours = |family, table| family == Family::Inet && table == name;
            (messages.any(|message| is_ours(message.family, message.table) && Some(message.port) != own), false)
        }
        Heard::Lost => (false, true),
    }
}

async fn exists(family: Family, name: &str) -> Result<bool, TableError> {
    let tables = command::run("nft", &["list", "tables", family.as_str()], "").await?;
    let wanted = format!("table {} {name}", family.as_str());
    Ok(tables.lines().any(|line| line == wanted))
}

/// A table whose whole text is put in place of whatever is there, and anew when somebody else has changed it.
pub(crate) struct WholeTable {
    name: &'static str,
    /// Followed from the first text on.
    table: Option<Table>,
    /// What is in place.
    text: Option<String>,
}

impl WholeTable {
    /// Nothing that is known of; what a former process left is replaced by the first text.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, table: None, text: None }
    }

    /// Puts the rules in place in one step: there is no moment without. Does nothing if they are there. `content` is what stands between
    /// the braces of the table.
    pub(crate) async fn set(&mut self, content: &str) -> Result<(), TableError> {
        let name = self.name;
        let text = format!("table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{content}}}\n");
        if self.text.as_ref() != Some(&text) {
            let table = match &mut self.table {
                Some(table) => table,
                none => none.insert(Table::open(name)?),
            };
            table.apply(&text).await?;
            self.text = Some(text);
        }
        Ok(())
    }

    /// Waits until it has to be set again. Cancel-safe.
    pub(crate) async fn lost(&mut self) {
        let Some(table) = &mut self.table else { return std::future::pending().await };
        if let Err(error) = table.touched().await {
            warn!(%error, table = self.name, "The changes of a table of ours are followed anew.");
            self.table = None;
        }
        self.text = None;
        warn!(table = self.name, "Somebody has changed our rules; they are put in place again.");
        sleep(PAUSE).await;
    }
}

/// Tables of the families `ip` and `ip6` that another program makes and does not miss by itself when somebody removes them.
pub struct ForeignTables {
    name: &'static str,
    announcements: Announcements,
}

impl ForeignTables {
    /// Begins to follow those of this name, which need not be there.
    ///
    /// # Errors
    /// There is no such socket, or no right to listen.
    pub fn follow(name: &'static str) -> Result<Self, TableError> {
        Ok(Self { name, announcements: Announcements::listen().map_err(TableError::Follow)? })
    }

    /// Waits until one is removed and nobody has made it anew. Cancel-safe.
    ///
    /// # Errors
    /// The kernel does not tell any more, or `nft` is not there.
    pub async fn removed(&mut self) -> Result<(), TableError> {
        loop {
            let suspects: Vec<_> = match self.announcements.next().await.map_err(TableError::Follow)? {
                Heard::Messages(messages) => messages
                    .filter(|message| {
                        message.is_removal && message.table == self.name && message.family != Family::Inet
                    })
                    .map(|message| message.family)
                    .collect(),
                Heard::Lost => vec![Family::Ip, Family::Ip6],
            };
            for family in suspects {
                if !exists(family, self.name).await? {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    #[test]
    fn tables_of_others_are_missed_when_they_go() {
        in_namespace(async || {
            if let Err(reason) = nftables_usable().await {
                println!("skipped: {reason}");
                return;
            }
            let mut tables = ForeignTables::follow("proxy").unwrap();
            for (change, is_gone) in [
                ("nft add table ip proxy; nft add chain ip proxy c; nft flush table ip proxy", false),
                ("nft delete chain ip proxy c; nft add table inet proxy; nft delete table inet proxy", false),
                ("nft 'delete table ip proxy; add table ip proxy'", false),
                ("nft delete table ip proxy", true),
                ("nft add table ip6 proxy; nft add table ip other; nft delete table ip other", false),
                ("nft flush ruleset", true),
            ] {
                sh(change).await;
                let wait = if is_gone { SOON } else { Duration::from_millis(300) };
                assert_eq!(timeout(wait, tables.removed()).await.is_ok(), is_gone, "{change}");
            }
        });
    }
}
