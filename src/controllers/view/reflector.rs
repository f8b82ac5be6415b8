//! One watch of one resource, with everybody in this process who reads it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    hash::Hash,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream::BoxStream};
use kube::{
    Resource,
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tracing::{debug, error, warn};

use super::{
    changes::Changes,
    derived::{Derivation, Derived},
};
use crate::backoff::{self, Failure, WatchBackoff};

/// Objects that are watched.
pub trait Object: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + Debug + Send + Sync + 'static {}

impl<K> Object for K where K: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + Debug + Send + Sync + 'static {}

pub(super) type Events<K> = BoxStream<'static, watcher::Result<Event<K>>>;

/// How often in a row a watch is refused before that is worth a word: until a server has applied its role bindings, nodes may not watch.
const REFUSALS: u32 = 5;

/// The objects of one resource, kept true by one watch. Clones are handles to the same.
pub struct Reflector<K: Object> {
    store: Store<K>,
    shared: Arc<Mutex<Shared<K>>>,
}

struct Shared<K: Object> {
    writer: Writer<K>,
    /// Whether all objects that there are have been seen.
    listed: watch::Sender<bool>,
    readers: Vec<Box<dyn Reader<K>>>,
}

/// Somebody who is told of every event once the store has it.
pub(super) trait Reader<K: Object>: Send {
    /// Takes an event; `touched` are the objects that it is about. Returns whether anybody still looks.
    fn follow(&mut self, event: &Event<K>, touched: &[ObjectRef<K>]) -> bool;
}

impl<K: Object> Clone for Reflector<K> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), shared: self.shared.clone() }
    }
}

impl<K: Object> Reflector<K> {
    pub(super) fn new() -> Self {
        let writer = Writer::new(K::DynamicType::default());
        let store = writer.as_reader();
        let shared = Shared { writer, listed: watch::Sender::new(false), readers: Vec::new() };
        Self { store, shared: Arc::new(Mutex::new(shared)) }
    }

    /// Returns once all objects that there are have been seen. kube-rs' own `wait_until_ready` wakes one of those who wait, and a store here
    /// has many readers.
    pub async fn listed(&self) {
        let mut listed = self.lock().listed.subscribe();
        // It fails only without a sender, and that lives as long as this.
        let _ = listed.wait_for(|listed| *listed).await;
    }

    /// The objects as they were last seen.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// The value that `fold` makes of what `read` makes of each object, by `namespace/name` or name. Folded anew only when what was read
    /// of an object differs from before; objects of which `read` makes nothing do not count.
    pub fn derive<T, V>(
        &self,
        read: impl Fn(&K) -> Option<T> + Send + 'static,
        fold: impl Fn(&BTreeMap<String, T>) -> V + Send + 'static,
    ) -> Derived<V>
    where
        T: PartialEq + Send + 'static,
        V: PartialEq + Clone + Send + Sync + 'static,
    {
        let mut shared = self.lock();
        let (mut derivation, derived) = Derivation::new(read, fold);
        if *shared.listed.borrow() {
            for object in self.store.state() {
                derivation.list(&object);
            }
            derivation.complete();
        }
        shared.readers.push(Box::new(derivation));
        derived
    }

    /// Each object that is there, and from then on each that changed or went since it was last told: once, however often it did.
    pub fn touched(&self) -> impl Stream<Item = ObjectRef<K>> + Send + use<K> {
        let mut shared = self.lock();
        let (changes, stream) = Changes::new();
        changes.add(&shared.references());
        shared.readers.push(Box::new(changes));
        stream
    }

    /// As [`Self::touched`], without those that went.
    pub fn changed(&self) -> impl Stream<Item = Arc<K>> + Send + use<K> {
        let store = self.store();
        self.touched().filter_map(move |reference| std::future::ready(store.get(&reference)))
    }

    /// Keeps it true for as long as it is polled; `events` begins a watch.
    pub(super) async fn follow(&self, what: &'static str, events: impl Fn() -> Events<K>) {
        let mut backoff = backoff::of_api();
        loop {
            let watch = AssertUnwindSafe(self.watch(what, events())).catch_unwind();
            if watch.await.is_err() {
                error!(what, "What follows a watch panicked; it is started again.");
            }
            backoff.wait().await;
        }
    }

    async fn watch(&self, what: &'static str, events: Events<K>) {
        let mut events = pin!(events.backoff(WatchBackoff::default()));
        let mut refusals = 0;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // Its beginning is told before the API is asked.
                    if !matches!(event, Event::Init) {
                        refusals = 0;
                    }
                    self.lock().follow(&event);
                }
                Err(error) if is_refusal(&error) => {
                    refusals += 1;
                    if refusals == REFUSALS {
                        warn!(%error, what, "The API refuses a watch; trying again.");
                    }
                }
                // That the API does not answer is the supervisor's to tell.
                Err(error) => debug!(%error, what, "A watch broke; starting it again."),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn tell(&self, event: &Event<K>) {
        self.lock().follow(event);
    }

    fn lock(&self) -> MutexGuard<'_, Shared<K>> {
        // A panic ends the watch, and the next one begins with all objects.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Object> Shared<K> {
    fn follow(&mut self, event: &Event<K>) {
        let mut touched = match event {
            Event::Apply(object) | Event::Delete(object) => vec![ObjectRef::from_obj(object)],
            Event::InitDone => self.references(),
            Event::Init | Event::InitApply(_) => Vec::new(),
        };
        self.writer.apply_watcher_event(event);
        if matches!(event, Event::InitDone) {
            self.listed.send_replace(true);
            touched.extend(self.references());
        }
        self.readers.retain_mut(|reader| reader.follow(event, &touched));
    }

    fn references(&self) -> Vec<ObjectRef<K>> {
        self.writer.as_reader().state().iter().map(|object| ObjectRef::from_obj(&**object)).collect()
    }
}

fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Failure::of(error) == Failure::Refused,
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => false,
    }
}
