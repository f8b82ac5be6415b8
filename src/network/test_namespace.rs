//! Tests that change a network do so in one of their own.

use std::{fmt, fs::File, os::fd::AsRawFd as _, process, thread};

use nix::sched::{CloneFlags, setns, unshare};

/// Runs `test` in a fresh network namespace, or says why not: making one takes root.
pub(crate) fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let run = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: no network namespace of our own ({error}); run the test as root");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    // The namespace belongs to the thread and goes with it.
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs one of the host's programs in the test's namespace.
pub(crate) async fn sh(script: &str) -> String {
    crate::command::run("sh", &["-ec", script], "").await.unwrap()
}

/// A further namespace for a test that needs hosts beside its own; it goes with its last socket and link. Displays as a path.
pub(crate) struct Namespace(File);

impl Namespace {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(thread::spawn(make).join().unwrap())
    }

    /// Runs `work` inside: a socket made there stays there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }
}
