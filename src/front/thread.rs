//! A thread for the front alone.

use std::panic::resume_unwind;

use tokio::{net::TcpListener, runtime, task::spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Front, serve};

/// [`serve`], on a thread of its own.
///
/// What the front passes on is many small pieces for many tasks, which on several threads would mostly wake each other up; on one, all that
/// is ready is done in one turn.
pub async fn serve_on_thread(listener: TcpListener, front: Front, shutdown: CancellationToken) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            warn!(%error, "Port 6443 gets no thread of its own and is slower.");
            return serve(listener, front, shutdown).await;
        }
    };
    // Nothing runs on unseen when the caller gives this future up.
    let given_up = CancellationToken::new();
    let _give_up = given_up.clone().drop_guard();
    let serving = given_up.run_until_cancelled_owned(serve(listener, front, shutdown));
    let thread = spawn_blocking(move || runtime.block_on(serving));
    if let Err(ended) = thread.await
        && let Ok(panic) = ended.try_into_panic()
    {
        resume_unwind(panic);
    }
}
