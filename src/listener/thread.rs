//! Threads with a runtime of their own.

use std::{future::Future, io, os::fd::AsFd as _, panic::resume_unwind};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

/// A runtime that is to have a thread to itself.
#[derive(Debug)]
pub struct OwnThread(Runtime);

impl OwnThread {
    /// The thread starts with what it runs.
    ///
    /// # Errors
    ///
    /// The system has no descriptors for the runtime.
    pub fn new() -> io::Result<Self> {
        Builder::new_current_thread().enable_all().build().map(Self)
    }

    /// One that listens to what `listener` does; it is not woken by that any more when the other one is dropped.
    ///
    /// # Errors
    ///
    /// The system has no descriptors for the runtime or the listener.
    pub fn with_listener(listener: &TcpListener) -> io::Result<(Self, TcpListener)> {
        let Self(runtime) = Self::new()?;
        let moved = {
            let _context = runtime.enter();
            listener.as_fd().try_clone_to_owned().and_then(|listener| TcpListener::from_std(listener.into()))
        };
        match moved {
            Ok(moved) => Ok((Self(runtime), moved)),
            Err(error) => {
                // A runtime cannot be waited for on another one's thread.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Runs `work` to its end; what is returned waits for that, and gives it up when dropped.
    pub fn run(self, work: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> {
        let given_up = CancellationToken::new();
        let work = given_up.clone().run_until_cancelled_owned(work);
        let thread = spawn_blocking(move || self.0.block_on(work));
        async move {
            let _give_up = given_up.drop_guard();
            if let Err(ended) = thread.await
                && let Ok(panic) = ended.try_into_panic()
            {
                resume_unwind(panic);
            }
        }
    }
}
