//! The objects that are in the store, and clients that work on them together.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use load::{Log, Outcome, Values, dealt};

use crate::client::{Client, Object, PAGE};

/// What objects are called below.
pub(crate) const OBJECTS: &str = "/registry/configmaps/";

/// How long a store may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

/// The state that phases hand on to each other.
pub(crate) struct Registry {
    endpoint: String,
    values: Values,
    /// Sorted by key.
    objects: Vec<Object>,
    /// How many were ever made: the name of the next one.
    made: usize,
}

impl Registry {
    pub(crate) fn new(endpoint: String, value_bytes: usize) -> Self {
        Self { endpoint, values: Values::new(value_bytes), objects: Vec::new(), made: 0 }
    }

    /// Asks until the store answers.
    pub(crate) async fn wait_until_answered(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.connect().await {
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("{} does not answer after {PATIENCE:?}", self.endpoint)));
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Learns which objects an earlier run left.
    pub(crate) async fn discover(&mut self) -> Result<()> {
        let mut client = self.connect().await?;
        let mut start = OBJECTS.to_owned();
        loop {
            let page = client.list(&start, OBJECTS, 0).await?;
            for kv in &page {
                self.objects.push(Object { key: kv.key_str()?.to_owned(), revision: kv.mod_revision() });
            }
            match page.last() {
                Some(last) if page.len() == PAGE as usize => start = format!("{}\0", last.key_str()?),
                _ => break,
            }
        }
        self.made = self.objects.len();
        Ok(())
    }

    pub(crate) async fn connect(&self) -> Result<Client> {
        Client::connect(&self.endpoint).await.with_context(|| format!("cannot connect to {}", self.endpoint))
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Names for `count` new objects.
    pub(crate) fn names(&mut self, count: usize) -> Vec<String> {
        let names = (self.made..self.made + count).map(|number| format!("{OBJECTS}default/object-{number:08}"));
        let names = names.collect();
        self.made += count;
        names
    }

    /// Every `step`th key.
    pub(crate) fn keys(&self, step: usize) -> Result<Vec<String>> {
        ensure!(!self.objects.is_empty(), "there is no object: create some first");
        Ok(self.objects.iter().step_by(step).map(|object| object.key.clone()).collect())
    }

    /// Takes all objects out, dealt to `clients`.
    pub(crate) fn deal(&mut self, clients: usize) -> Result<Vec<Vec<Object>>> {
        ensure!(self.objects.len() >= clients, "there are fewer objects than clients: create some first");
        Ok(dealt(self.objects.drain(..), clients))
    }

    /// Takes objects back.
    pub(crate) fn collect(&mut self, objects: impl IntoIterator<Item = Vec<Object>>) {
        self.objects.extend(objects.into_iter().flatten());
        self.objects.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    }

    /// Gives each hand to a client of its own, lets all work at once, and returns what they did and the hands as they are then.
    pub(crate) async fn together<Hand, Work>(
        &self,
        hands: Vec<Hand>,
        work: impl Fn(Client, Hand) -> Work,
    ) -> Result<(Outcome, Vec<Hand>)>
    where
        Hand: Send + 'static,
        Work: Future<Output = Result<(Log, Hand)>> + Send + 'static,
    {
        let mut ready = Vec::new();
        for hand in hands {
            ready.push((self.connect().await?, hand));
        }
        load::together(ready, work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_dealt_and_collected_without_loss() {
        let mut registry = Registry::new(String::new(), 0);
        let objects = registry.names(5).into_iter().map(|key| Object { key, revision: 1 }).collect();
        registry.collect([objects]);
        let before = registry.keys(1).unwrap();
        let mut hands = registry.deal(2).unwrap();
        assert_eq!(hands.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        hands.reverse();
        registry.collect(hands);
        assert_eq!(registry.keys(1).unwrap(), before);
        assert_eq!(registry.names(1), ["/registry/configmaps/default/object-00000005"]);
        assert!(registry.deal(6).is_err());
    }
}
