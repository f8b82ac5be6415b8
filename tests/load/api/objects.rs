//! The ConfigMaps that the load is made of, and clients that work on them together.

use anyhow::{Context, Result, ensure};
use http::Method;
use load::{Client, Connection, Log, Outcome, Values};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where they are.
pub(crate) const LIST: &str = "/api/v1/namespaces/default/configmaps";
/// The key of an object's data.
const DATA: &str = "value";

/// The state that phases hand on to each other.
pub(crate) struct Objects {
    client: Client,
    values: Values,
    /// How many there are: `load-0` and so on.
    made: usize,
}

/// What counts of an object.
#[derive(Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    data: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

impl Objects {
    pub(crate) fn new(client: Client, value_bytes: usize) -> Self {
        // In hexadecimal it is twice as long.
        Self { client, values: Values::new(value_bytes / 2), made: 0 }
    }

    /// Learns how many objects an earlier run left.
    pub(crate) async fn discover(&mut self) -> Result<()> {
        self.made = self.list().await?.items.iter().filter(|object| object.metadata.name.starts_with("load-")).count();
        Ok(())
    }

    /// The revision of the newest list.
    pub(crate) async fn revision(&self) -> Result<String> {
        Ok(self.list().await?.metadata.resource_version)
    }

    async fn list(&self) -> Result<List> {
        let answer = self.connect().await?.ask(Method::GET, LIST, Vec::new()).await?;
        serde_json::from_slice(&answer).context("a list is not what it should be")
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        Connection::open(&self.client).await
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Numbers for `count` new objects.
    pub(crate) fn grow(&mut self, count: usize) -> std::ops::Range<usize> {
        self.made += count;
        self.made - count..self.made
    }

    /// The number of an object that is there, for every number.
    pub(crate) fn there(&self, number: usize) -> Result<usize> {
        ensure!(self.made > 0, "there is no object: create some first");
        // Not in the order of their keys: a stride that shares no factor with most counts.
        Ok(number * 7919 % self.made)
    }

    /// Gives each hand to a client of its own, lets all work at once, and returns what they did.
    pub(crate) async fn together<Hand, Work>(
        &self,
        hands: Vec<Hand>,
        work: impl Fn(Connection, Hand) -> Work,
    ) -> Result<Outcome>
    where
        Hand: Send + 'static,
        Work: Future<Output = Result<(Log, Hand)>> + Send + 'static,
    {
        let mut ready = Vec::new();
        for hand in hands {
            ready.push((self.connect().await?, hand));
        }
        Ok(load::together(ready, work).await?.0)
    }
}

impl Object {
    /// When it was made, by the values that it was made from.
    pub(crate) fn age(&self, values: &Values) -> Result<std::time::Duration> {
        let text = self.data.get(DATA).context("an object has no data")?;
        let stamp = text.get(..16).and_then(|stamp| u64::from_str_radix(stamp, 16).ok());
        values.age(&stamp.context("an object's data is not what was written")?.to_be_bytes())
    }
}

/// Where an object is.
pub(crate) fn path(number: usize) -> String {
    format!("{LIST}/load-{number}")
}

/// An object with a value made now.
pub(crate) fn object(number: usize, values: &Values) -> Vec<u8> {
    let value: String = values.make().iter().map(|byte| format!("{byte:02x}")).collect();
    let object: Value = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": format!("load-{number}")},
        "data": {DATA: value},
    });
    object.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_tells_its_age() {
        let values = Values::new(100);
        let object: Object = serde_json::from_slice(&object(7, &values)).unwrap();
        assert_eq!(object.metadata.name, "load-7");
        object.age(&values).unwrap();
    }
}
