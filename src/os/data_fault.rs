//! What the initrd found of the data partition before it mounted it, and what it did.

use crate::{Error, Machine, News};

/// Where the initrd leaves it, on the partition.
const FILE: &str = "data-fault";

/// A fault of the data partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataFault {
    /// Its file system was mended.
    Mended,
    /// It was replaced by an empty one.
    Replaced,
}

impl DataFault {
    const ALL: [Self; 2] = [Self::Mended, Self::Replaced];

    /// As the initrd writes it.
    fn word(self) -> &'static str {
        match self {
            Self::Mended => "mended",
            Self::Replaced => "replaced",
        }
    }

    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Mended => {
                "The data partition was damaged, and was mended: files may be missing, and what of them was found is in /var/lost+found."
            }
            Self::Replaced => {
                "The data partition could not be mended, and was replaced by an empty one: what this machine had stored is gone."
            }
        }
    }
}

impl Machine {
    /// What this start is the first to tell of. The cluster gets to know it, too.
    pub(crate) fn take_data_fault(&self) -> Result<Option<DataFault>, Error> {
        // One that was there before a restart, and not afterwards.
        self.esp().clear_data_fault()?;
        let path = self.own(FILE);
        let Some(word) = k3s_files::read(&path)? else { return Ok(None) };
        let word = String::from_utf8_lossy(&word);
        let fault = DataFault::ALL.into_iter().find(|fault| fault.word() == word.trim());
        if let Some(fault) = fault {
            self.add_news(News { reason: "DataPartitionDamaged".into(), message: fault.sentence().into() })?;
        }
        k3s_files::remove(&path)?;
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::Host;

    #[test]
    fn what_was_mended_is_told_once_everywhere() {
        let host = Host::new();
        host.given("role: server\n");
        host.write("var/lib/k3s-os/data-fault", "mended\n");
        host.write("efi/data-fault", "");
        host.configure().unwrap();
        assert_eq!(host.read("efi/status.txt").unwrap().trim_end(), DataFault::Mended.sentence());
        assert_eq!(Machine::at(host.path("")).news().unwrap().len(), 1);
        assert!(!host.path("efi/data-fault").exists());
        host.configure().unwrap();
        assert_eq!(Machine::at(host.path("")).news().unwrap().len(), 1);
    }
}
