//! Tasks that end together.

use std::{future::Future, time::Duration};

use tokio::runtime::Handle;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Spawns tasks, ends them, and knows when all have ended; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cut: CancellationToken,
}

impl Tasks {
    /// Runs `task` until it ends or all are cut.
    ///
    /// Boxed: each future around it would hold it twice, once as its argument and once as what it awaits.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(task, &Handle::current());
    }

    /// The same, on another thread's runtime.
    pub(super) fn spawn_on<F>(&self, task: F, runtime: &Handle)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn_on(self.cut.clone().run_until_cancelled_owned(Box::pin(task)), runtime);
    }

    /// Waits until every task has ended, and cuts those that have not after `grace`.
    pub(super) async fn end(&self, grace: Duration) {
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_err() {
            self.cut();
            self.tracker.wait().await;
        }
    }

    /// Cuts all tasks when the guard is dropped.
    pub(super) fn cut_on_drop(&self) -> DropGuard {
        self.cut.clone().drop_guard()
    }

    /// Ends every task at its next await, those spawned later too.
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
