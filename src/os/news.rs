//! What a machine has to tell its cluster, until the API is there to hear it.

use serde::{Deserialize, Serialize};

use crate::{Error, Machine};

const FILE: &str = "news.json";

/// An event of the machine's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// A word in the form of Kubernetes' reasons.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Machine {
    /// What is not told yet, oldest first.
    ///
    /// # Errors
    /// The data partition cannot be read.
    pub fn news(&self) -> Result<Vec<News>, Error> {
        Ok(self.kept(FILE)?.unwrap_or_default())
    }

    /// Has this be told once the API is there.
    ///
    /// # Errors
    /// The data partition is full or not writable.
    pub fn add_news(&self, news: News) -> Result<(), Error> {
        let mut all = self.news()?;
        // A step that a power cut has repeated.
        if !all.contains(&news) {
            all.push(news);
            self.keep(FILE, &all)?;
        }
        Ok(())
    }

    /// All of it is told.
    ///
    /// # Errors
    /// The data partition is not writable.
    pub fn clear_news(&self) -> Result<(), Error> {
        k3s_files::remove(&self.own(FILE))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_is_told_once_in_its_order() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib/k3s-os")).unwrap();
        let machine = Machine::at(root.path());
        let [first, second] = ["One.", "Two."].map(|message| News { reason: "Told".into(), message: message.into() });
        for news in [&first, &second, &first] {
            machine.add_news(news.clone()).unwrap();
        }
        assert_eq!(machine.news().unwrap(), [first, second]);
        machine.clear_news().unwrap();
        assert_eq!(machine.news().unwrap(), []);
    }
}
