//! What a controller is, and how all of them run.
//!
//! ```text
//! Registry::add(condition.then(|| Controller)) ──► run ──┬─ every server ──────────► a task of its own
//!                                                        └─ the leader ── leads? ──► a task of its own, standby elsewhere
//! ```
//!
//! A panic or an error of a controller is that controller's restart with a pause that grows, and the status names it
//! ([`k3s_supervise::Task`]). One object that fails is tried again by itself ([`crate::queue`]) and holds up no other.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use k3s_supervise::{StatusLine, Supervisor, Task, TaskError};
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::view::ClusterView;

/// What a controller works with.
#[derive(Clone)]
pub struct Context {
    /// The API, with an administrator's rights.
    pub client: Client,
    /// What there is in the cluster.
    pub view: ClusterView,
    /// Where it tells users what it did, on the objects concerned.
    pub events: Recorder,
    /// The end: of the process, or of being the leader.
    pub shutdown: CancellationToken,
    /// Its own words in `k3s status`.
    pub status: StatusLine,
}

/// Where a controller runs when several servers share a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On each server: it changes an object only to what the objects say, so that the second to come finds nothing to do.
    EveryServer,
    /// On one server at a time: two of them would undo each other's work, or do it twice.
    Leader,
}

/// Something that makes the cluster's objects agree with what servers and nodes know.
///
/// To add one: a type in a file of this crate, and one line where the server registers them (`src/server/controllers.rs`), with the
/// condition on which it is there at all. `node_hosts.rs` is a small one, `queue.rs` is for many objects, `fake_api.rs` for tests. One that
/// works with something of the server's lies there.
pub trait Controller: Send + Sync + 'static {
    /// Its name in `k3s status`, in the log, and as the reporter of its events.
    const NAME: &'static str;

    /// Where it runs.
    const PLACE: Place = Place::EveryServer;

    /// How long it may take to end by itself after `shutdown`; then, or at once by default, it is dropped wherever it waits.
    const STOPS_WITHIN: Duration = Duration::ZERO;

    /// Works until there is nothing left to do, which for most is never.
    ///
    /// # Errors
    /// What keeps it from going on. It is started again after a pause.
    fn run(&self, context: Context) -> impl Future<Output = Result<(), TaskError>> + Send;
}

/// The controllers of one process.
#[derive(Default)]
pub struct Registry {
    entries: Vec<Entry>,
}

struct Entry {
    name: &'static str,
    place: Place,
    stops_within: Duration,
    run: Box<dyn Fn(Context) -> BoxFuture<'static, Result<(), TaskError>> + Send + Sync>,
}

/// What all of them share.
pub struct Shared {
    /// The API, with an administrator's rights.
    pub client: Client,
    /// What there is in the cluster.
    pub view: ClusterView,
    /// Runs them, and tells of them.
    pub supervisor: Supervisor,
    /// Whether this server leads.
    pub leads: watch::Receiver<bool>,
}

impl Registry {
    /// Adds a controller where the configuration wants it.
    pub fn add<C: Controller>(&mut self, controller: Option<C>) -> &mut Self {
        self.entries.extend(controller.map(|controller| {
            let controller = Arc::new(controller);
            Entry {
                name: C::NAME,
                place: C::PLACE,
                stops_within: C::STOPS_WITHIN,
                run: Box::new(move |context| {
                    let controller = controller.clone();
                    Box::pin(async move { controller.run(context).await })
                }),
            }
        }));
        self
    }

    /// Runs all of them until `shutdown`; nothing of them runs any more when this returns.
    pub async fn run(self, shared: &Shared, shutdown: &CancellationToken) {
        join_all(self.entries.iter().map(|entry| entry.run(shared, shutdown))).await;
    }
}

impl Entry {
    async fn run(&self, shared: &Shared, shutdown: &CancellationToken) {
        let task = shared.supervisor.task(self.name).stops_within(self.stops_within);
        match self.place {
            Place::EveryServer => self.run_until(&task, shared, shutdown).await,
            Place::Leader => {
                let mut leads = shared.leads.clone();
                while !shutdown.is_cancelled() {
                    task.standby("another server leads");
                    // Whoever would tell is gone only at the end.
                    let elected = async { leads.wait_for(|leads| *leads).await.is_ok() };
                    if shutdown.run_until_cancelled(elected).await != Some(true) {
                        return;
                    }
                    let term = shutdown.child_token();
                    let mut lost = shared.leads.clone();
                    let until_lost = async {
                        let told = async {
                            // A server alone leads for good, and nobody is there to tell.
                            if lost.wait_for(|leads| !leads).await.is_err() {
                                std::future::pending::<()>().await;
                            }
                        };
                        shutdown.run_until_cancelled(told).await;
                        term.cancel();
                    };
                    tokio::join!(self.run_until(&task, shared, &term), until_lost);
                }
            }
        }
    }

    async fn run_until(&self, task: &Task, shared: &Shared, shutdown: &CancellationToken) {
        task.run(shutdown, |status| {
            (self.run)(Context {
                client: shared.client.clone(),
                view: shared.view.clone(),
                events: recorder(&shared.client, self.name),
                shutdown: shutdown.clone(),
                status,
            })
        })
        .await;
    }
}

/// Events that say who made them as k3s' do.
pub(crate) fn recorder(client: &Client, name: &str) -> Recorder {
    Recorder::new(client.clone(), Reporter { controller: name.to_owned(), instance: None })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use k3s_supervise::TaskState;

    use super::*;
    use crate::fake_api::{FakeApi, supervisor};

    #[derive(Default, Clone)]
    struct Counter {
        running: Arc<AtomicU32>,
        runs: Arc<AtomicU32>,
    }

    impl Counter {
        async fn count(&self) -> Result<(), TaskError> {
            struct Running<'a>(&'a AtomicU32);
            impl Drop for Running<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            self.running.fetch_add(1, Ordering::SeqCst);
            self.runs.fetch_add(1, Ordering::SeqCst);
            let _running = Running(&self.running);
            std::future::pending().await
        }
    }

    struct Everywhere(Counter);
    impl Controller for Everywhere {
        const NAME: &'static str = "everywhere";
        async fn run(&self, _: Context) -> Result<(), TaskError> {
            self.0.count().await
        }
    }

    struct OnLeader(Counter);
    impl Controller for OnLeader {
        const NAME: &'static str = "on-leader";
        const PLACE: Place = Place::Leader;
        async fn run(&self, _: Context) -> Result<(), TaskError> {
            self.0.count().await
        }
    }

    struct Panics;
    impl Controller for Panics {
        const NAME: &'static str = "panics";
        async fn run(&self, _: Context) -> Result<(), TaskError> {
            panic!("no such index")
        }
    }

    struct Fails;
    impl Controller for Fails {
        const NAME: &'static str = "fails";
        async fn run(&self, _: Context) -> Result<(), TaskError> {
            Err("the API is of another world".into())
        }
    }

    struct Unwanted;
    impl Controller for Unwanted {
        const NAME: &'static str = "unwanted";
        async fn run(&self, _: Context) -> Result<(), TaskError> {
            unreachable!("the configuration does not want it")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn controllers_fail_alone_and_leaders_stop_alone() {
        let supervisor = supervisor();
        let client = FakeApi::new().client();
        let (leads, leading) = watch::channel(false);
        let shared = Shared {
            view: ClusterView::of_server(client.clone()),
            client,
            supervisor: supervisor.clone(),
            leads: leading,
        };
        let (everywhere, on_leader) = (Counter::default(), Counter::default());
        let mut registry = Registry::default();
        registry
            .add(Some(Everywhere(everywhere.clone())))
            .add(Some(OnLeader(on_leader.clone())))
            .add(Some(Panics))
            .add(Some(Fails))
            .add(None::<Unwanted>);
        let shutdown = CancellationToken::new();
        let story = async {
            let until = async |what: &str, is_so: &dyn Fn() -> bool| {
                for _ in 0..10_000 {
                    if is_so() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                panic!("{what} did not come about");
            };
            let running = |counter: &Counter| counter.running.load(Ordering::SeqCst);
            until("the first", &|| running(&everywhere) == 1).await;
            assert_eq!(running(&on_leader), 0);
            leads.send_replace(true);
            until("leading", &|| running(&on_leader) == 1).await;
            leads.send_replace(false);
            until("losing", &|| running(&on_leader) == 0).await;
            leads.send_replace(true);
            until("leading again", &|| running(&on_leader) == 1).await;
            // One that leads alone leads on.
            drop(leads);
            tokio::time::sleep(Duration::from_secs(60)).await;

            let status = supervisor.status().await;
            let of = |name: &str| status.tasks.iter().find(|task| task.name == name);
            for name in ["panics", "fails"] {
                assert!(of(name).unwrap().restarts > 2, "{name} is started again and again");
            }
            assert_eq!(of("panics").unwrap().last_failure.as_ref().unwrap().why, "it panicked: no such index");
            assert_eq!(of("fails").unwrap().last_failure.as_ref().unwrap().why, "the API is of another world");
            assert_eq!(of("everywhere").map(|task| (task.state, task.restarts)), Some((TaskState::Running, 0)));
            assert!(of("unwanted").is_none());
            shutdown.cancel();
        };
        tokio::join!(registry.run(&shared, &shutdown), story);
        assert_eq!((everywhere.runs.load(Ordering::SeqCst), on_leader.runs.load(Ordering::SeqCst)), (1, 2));
        assert_eq!(everywhere.running.load(Ordering::SeqCst) + on_leader.running.load(Ordering::SeqCst), 0);
    }
}
