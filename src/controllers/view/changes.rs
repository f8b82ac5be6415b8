//! Which objects changed since somebody looked.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures_util::{Stream, stream};
use kube::runtime::{reflector::ObjectRef, watcher::Event};
use tokio::sync::Notify;

use super::reflector::{Object, Reader};

/// The reflector's end.
pub(super) struct Changes<K: Object>(Weak<Touched<K>>);

/// An object is in it once, however often it changed: whoever is slow has the same to do as whoever is quick.
struct Touched<K: Object> {
    objects: Mutex<HashSet<ObjectRef<K>>>,
    more: Notify,
}

impl<K: Object> Touched<K> {
    fn lock(&self) -> MutexGuard<'_, HashSet<ObjectRef<K>>> {
        // Nothing in here is left half done by a panic.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<ObjectRef<K>> {
        let mut objects = self.lock();
        let next = objects.iter().next().cloned()?;
        objects.take(&next)
    }
}

impl<K: Object> Changes<K> {
    pub(super) fn new() -> (Self, impl Stream<Item = ObjectRef<K>> + Send + use<K>) {
        let touched = Arc::new(Touched { objects: Mutex::default(), more: Notify::new() });
        let changes = Self(Arc::downgrade(&touched));
        let stream = stream::unfold(touched, async |touched| {
            loop {
                // Whatever comes from here on leaves a permit behind.
                if let Some(next) = touched.take() {
                    return Some((next, touched));
                }
                touched.more.notified().await;
            }
        });
        (changes, stream)
    }

    pub(super) fn add(&self, references: &[ObjectRef<K>]) -> bool {
        let Some(touched) = self.0.upgrade() else { return false };
        if !references.is_empty() {
            touched.lock().extend(references.iter().cloned());
            touched.more.notify_one();
        }
        true
    }
}

impl<K: Object> Reader<K> for Changes<K> {
    fn follow(&mut self, _: &Event<K>, touched: &[ObjectRef<K>]) -> bool {
        self.add(touched)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt as _, StreamExt as _};
    use k8s_openapi::api::core::v1::Node;
    use kube::runtime::watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use crate::view::reflector::Reflector;

    fn node(name: &str) -> Node {
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).unwrap()
    }

    #[test]
    fn an_object_is_told_once_whatever_happened_to_it_meanwhile() {
        let reflector = Reflector::<Node>::new();
        let mut touched = pin!(reflector.touched());
        let mut seen = || {
            let names = std::iter::from_fn(|| touched.next().now_or_never().flatten()).map(|reference| reference.name);
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        for event in [Init, InitApply(node("a")), InitApply(node("b"))] {
            reflector.tell(&event);
        }
        assert_eq!(seen(), [""; 0]);
        reflector.tell(&InitDone);
        assert_eq!(seen(), ["a", "b"]);
        for event in [Apply(node("a")), Apply(node("a")), Apply(node("c")), Delete(node("c"))] {
            reflector.tell(&event);
        }
        assert_eq!(seen(), ["a", "c"]);
        for event in [Init, InitApply(node("a")), InitDone] {
            reflector.tell(&event);
        }
        assert_eq!(seen(), ["a", "b"], "what went while the watch was broken is told as well");
    }
}
