//! One object at a time to where it should be, many of them at once, and each with pauses of its own when it fails.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use k3s_supervise::{Backoff, StatusLine};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{
    Resource,
    runtime::{
        controller::{Action, Config, Controller, Error},
        reflector::ObjectRef,
    },
};
use tracing::{Instrument as _, debug, info_span};

use crate::{backoff::Failure, view::Reflector};

/// Objects that are worked on at the same time.
const AT_ONCE: u16 = 4;
/// Between attempts with one object at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(120));

/// Calls `reconcile` with each object of `objects`, whenever it changes, when `also` names it, and when the last call asked for it. An
/// object that fails is tried again after pauses of its own; one that the API refuses is named in `status` until it works.
///
/// Lives until dropped.
pub async fn reconcile_each<K, F>(
    objects: &Reflector<K>,
    also: Option<impl Stream<Item = ObjectRef<K>> + Send + 'static>,
    status: StatusLine,
    reconcile: impl Fn(Arc<K>) -> F + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    F: Future<Output = kube::Result<Action>> + Send + 'static,
{
    // kube-rs waits for it too, and would not hear of it where others wait for the same store.
    objects.listed().await;
    let failures = Arc::new(Failures { status, backoffs: Mutex::default() });
    let also = also.map_or_else(|| stream::pending().boxed(), |also| also.boxed());
    let reconcile = move |object: Arc<K>, failures: Arc<Failures<K>>| {
        let reference = ObjectRef::from_obj(&*object);
        let span = info_span!("object", name = name(&reference));
        let work = reconcile(object).instrument(span);
        async move {
            let result = work.await;
            if result.is_ok() {
                failures.forget(&reference);
            }
            result
        }
    };
    Controller::for_shared_stream(objects.changed(), objects.store())
        .reconcile_on(also)
        .with_config(Config::default().concurrency(AT_ONCE))
        .run(reconcile, |object, error, failures| failures.of(&ObjectRef::from_obj(&*object), error), failures.clone())
        .for_each(|result| {
            // Whoever is gone has no problem any more.
            if let Err(Error::ObjectNotFound(reference)) = result {
                let name = ObjectRef::new(&reference.name);
                failures.forget(&match &reference.namespace {
                    Some(namespace) => name.within(namespace),
                    None => name,
                });
            }
            std::future::ready(())
        })
        .await;
}

/// The objects that failed, with how long each waits.
struct Failures<K: Resource<DynamicType = ()> + 'static> {
    status: StatusLine,
    backoffs: Mutex<HashMap<ObjectRef<K>, Backoff>>,
}

impl<K: Resource<DynamicType = ()>> Failures<K> {
    /// What happens with an object that failed.
    fn of(&self, object: &ObjectRef<K>, error: &kube::Error) -> Action {
        let failure = Failure::of(error);
        match failure {
            // Its next event tells what it has become.
            Failure::Outdated => return Action::await_change(),
            Failure::Passing => debug!(%object, %error, "An object cannot be changed yet; trying again."),
            Failure::Refused => self.status.problem(&name(object), format!("the API refuses a change: {error}")),
        }
        let mut backoffs = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        let backoff = backoffs.entry(object.clone()).or_insert_with(|| Backoff::between(PAUSES.0, PAUSES.1));
        Action::requeue(backoff.advance())
    }

    fn forget(&self, object: &ObjectRef<K>) {
        if self.backoffs.lock().unwrap_or_else(PoisonError::into_inner).remove(object).is_some() {
            self.status.solved(&name(object));
        }
    }
}

/// As people say it: `Node edge-1`, `Secret kube-system/a`.
fn name<K: Resource<DynamicType = ()>>(object: &ObjectRef<K>) -> String {
    let namespace = object.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{} {namespace}{}", K::kind(&()), object.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Node;
    use kube::{Api, ResourceExt as _, api::Patch, api::PatchParams};
    use serde_json::json;

    use super::*;
    use crate::{
        fake_api::{FakeApi, supervisor},
        view::ClusterView,
    };

    #[tokio::test]
    async fn an_object_that_the_api_refuses_is_named_and_holds_up_no_other() {
        let api = FakeApi::new();
        for name in ["bad", "good-1", "good-2"] {
            api.put("/api/v1/nodes", json!({"metadata": {"name": name}}));
        }
        api.refuse("/api/v1/nodes/bad", "admission webhook says no");
        let view = ClusterView::of_server(api.client());
        view.begin();
        let supervisor = supervisor();
        let shutdown = tokio_util::sync::CancellationToken::new();
        let task = supervisor.task("labels");
        let run = task.run(&shutdown, |status| {
            let (nodes, api) = (view.nodes(), Api::<Node>::all(view.client().clone()));
            async move {
                let reconcile = move |node: Arc<Node>| {
                    let api = api.clone();
                    async move {
                        if node.labels().is_empty() {
                            let patch = Patch::Merge(json!({"metadata": {"labels": {"done": "yes"}}}));
                            api.patch(&node.name_any(), &PatchParams::default(), &patch).await?;
                        }
                        Ok(Action::await_change())
                    }
                };
                reconcile_each(&nodes, None::<stream::Pending<ObjectRef<Node>>>, status, reconcile).await;
                Ok(())
            }
        });
        let mut labelled = view.nodes().derive(
            |node| Some(node.labels().clone()),
            |nodes| {
                nodes.iter().filter(|(_, labels)| !labels.is_empty()).map(|(name, _)| name.clone()).collect::<Vec<_>>()
            },
        );
        let story = async {
            while labelled.changed().await != ["good-1", "good-2"] {}
            let problems = async || {
                let status = supervisor.status().await;
                let problems = status.tasks.into_iter().flat_map(|task| task.problems);
                problems.map(|problem| (problem.object, problem.why)).collect::<BTreeMap<_, _>>()
            };
            while problems().await.is_empty() {
                tokio::task::yield_now().await;
            }
            assert!(problems().await["Node bad"].contains("admission webhook says no"), "{:?}", problems().await);
            api.allow("/api/v1/nodes/bad");
            while labelled.changed().await != ["bad", "good-1", "good-2"] {}
            while !problems().await.is_empty() {
                tokio::task::yield_now().await;
            }
            shutdown.cancel();
        };
        tokio::join!(run, story);
    }
}
