//! Small values made of watched objects.

use std::{collections::BTreeMap, future::pending};

use kube::{
    Resource, ResourceExt as _,
    runtime::{reflector::ObjectRef, watcher::Event},
};
use tokio::sync::watch;

use super::reflector::{Object, Reader};

/// A value made of watched objects, as it changes. There is none until all objects are known, and it never goes again: a watch that
/// breaks takes nobody away.
#[derive(Debug, Clone)]
pub struct Derived<V>(watch::Receiver<Option<V>>);

impl<V: Clone> Derived<V> {
    /// The value, once there is one that this reader has not seen. Cancel-safe.
    pub async fn changed(&mut self) -> V {
        loop {
            // The view has ended: nothing changes any more.
            if self.0.changed().await.is_err() {
                return pending().await;
            }
            if let Some(value) = self.0.borrow_and_update().clone() {
                return value;
            }
        }
    }

    /// The value, as soon as there is one.
    pub async fn known(&self) -> V {
        match self.0.clone().wait_for(Option::is_some).await.map(|value| value.clone()) {
            Ok(Some(value)) => value,
            // The view has ended before all objects were known.
            _ => pending().await,
        }
    }

    /// The value of this moment, if there is one.
    pub fn current(&self) -> Option<V> {
        self.0.borrow().clone()
    }
}

/// What makes it: a table of what was read of each object, and the value that is folded from it.
pub(super) struct Derivation<T, V, Read, Fold> {
    table: BTreeMap<String, T>,
    /// What was read so far while the objects are being listed.
    listing: BTreeMap<String, T>,
    read: Read,
    fold: Fold,
    value: watch::Sender<Option<V>>,
}

impl<T: PartialEq, V: PartialEq + Clone, Read, Fold: Fn(&BTreeMap<String, T>) -> V> Derivation<T, V, Read, Fold> {
    pub(super) fn new(read: Read, fold: Fold) -> (Self, Derived<V>) {
        let (value, derived) = watch::channel(None);
        (Self { table: BTreeMap::new(), listing: BTreeMap::new(), read, fold, value }, Derived(derived))
    }

    pub(super) fn list<K: Resource>(&mut self, object: &K)
    where
        Read: Fn(&K) -> Option<T>,
    {
        self.listing.extend((self.read)(object).map(|read| (key(object), read)));
    }

    pub(super) fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listing);
        let is_first = self.value.borrow().is_none();
        if is_first || listed != self.table {
            self.table = listed;
            self.tell();
        }
    }

    fn set(&mut self, key: String, read: Option<T>) {
        if self.table.get(&key) == read.as_ref() {
            return;
        }
        match read {
            Some(read) => drop(self.table.insert(key, read)),
            None => drop(self.table.remove(&key)),
        }
        self.tell();
    }

    fn tell(&self) {
        let value = Some((self.fold)(&self.table));
        self.value.send_if_modified(|current| {
            let differs = *current != value;
            *current = value;
            differs
        });
    }
}

impl<K, T, V, Read, Fold> Reader<K> for Derivation<T, V, Read, Fold>
where
    K: Object,
    T: PartialEq + Send,
    V: PartialEq + Clone + Send + Sync,
    Read: Fn(&K) -> Option<T> + Send,
    Fold: Fn(&BTreeMap<String, T>) -> V + Send,
{
    fn follow(&mut self, event: &Event<K>, _: &[ObjectRef<K>]) -> bool {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => self.list(object),
            Event::InitDone => self.complete(),
            Event::Apply(object) => self.set(key(object), (self.read)(object)),
            Event::Delete(object) => self.set(key(object), None),
        }
        !self.value.is_closed()
    }
}

fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::runtime::watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    use serde_json::json;

    use super::*;
    use crate::view::reflector::Reflector;

    fn node(name: &str, label: &str, version: u32) -> Node {
        let metadata = json!({"name": name, "labels": {"l": label}, "resourceVersion": version.to_string()});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn labels(reflector: &Reflector<Node>) -> Derived<Vec<String>> {
        reflector.derive(|node| node.labels().get("l").cloned(), |labels| labels.values().cloned().collect())
    }

    #[test]
    fn a_value_is_there_once_all_is_known_and_told_only_when_it_changes() {
        let reflector = Reflector::<Node>::new();
        let mut derived = labels(&reflector);
        let mut seen = || derived.0.has_changed().unwrap().then(|| derived.0.borrow_and_update().clone().unwrap());
        for event in [Init, InitApply(node("b", "2", 1)), InitApply(node("a", "1", 1))] {
            reflector.tell(&event);
            assert_eq!(seen(), None);
        }
        reflector.tell(&InitDone);
        assert_eq!(seen().unwrap(), ["1", "2"]);
        reflector.tell(&Apply(node("a", "1", 2)));
        assert_eq!(seen(), None, "nothing that is read of it");
        reflector.tell(&Apply(node("a", "3", 3)));
        assert_eq!(seen().unwrap(), ["3", "2"]);
        reflector.tell(&Delete(node("b", "2", 4)));
        assert_eq!(seen().unwrap(), ["3"]);
        reflector.tell(&Delete(node("b", "2", 4)));
        assert_eq!(seen(), None);
        let later = labels(&reflector);
        assert_eq!(later.current().unwrap(), ["3"], "whoever comes later knows as much");
    }

    #[test]
    fn a_watch_that_breaks_takes_nobody_away() {
        let reflector = Reflector::<Node>::new();
        let derived = labels(&reflector);
        for event in [Init, InitApply(node("a", "1", 1)), InitApply(node("b", "2", 1)), InitDone] {
            reflector.tell(&event);
        }
        for event in [Init, InitApply(node("a", "1", 1))] {
            reflector.tell(&event);
            assert_eq!(derived.current().unwrap(), ["1", "2"]);
        }
        reflector.tell(&InitDone);
        assert_eq!(derived.current().unwrap(), ["1"], "who went meanwhile is told at the end");
    }

    #[test]
    fn that_there_is_nothing_is_told_too() {
        let reflector = Reflector::<Node>::new();
        let derived = labels(&reflector);
        assert_eq!(derived.current(), None);
        reflector.tell(&Init);
        reflector.tell(&InitDone);
        assert_eq!(derived.current().unwrap(), [""; 0]);
    }
}
