//! Programs that do one thing and end: started like any child, waited for, and started again by nobody.

use std::{io, time::Duration, time::SystemTime};

use nix::sys::signal::Signal;
use tokio::{
    select,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Supervisor,
    log::Output,
    program::Program,
    runner::RunnerContext,
    spawn::{Process, SpawnRequest},
    status::{ExitKind, LastExit},
    status_store::unix_millis,
};

impl Supervisor {
    /// Runs `program` until it ends by itself. One that takes longer than `patience` is asked to end, and killed if it does not; with
    /// `kill` it is killed at once. It is in no status, has its own cgroup and log identifier, and ends with this process.
    ///
    /// Programs of one name may not run at the same time.
    pub async fn run_once(&self, program: Program, patience: Duration, kill: &CancellationToken) -> LastExit {
        let context = self.context();
        let output = Output::new(&program, &context.target);
        let exit = run(&program, context, &output, patience, kill).await;
        output.close().await;
        context.cgroups.remove(&program).await;
        exit.unwrap_or_else(|error| LastExit {
            how: ExitKind::NotStarted(format!("{}: {error}", program.executable.display())),
            at: unix_millis(SystemTime::now()),
            last_words: None,
        })
    }
}

async fn run(
    program: &Program,
    context: &RunnerContext,
    output: &Output,
    patience: Duration,
    kill: &CancellationToken,
) -> io::Result<LastExit> {
    let cgroups = context.cgroups.leaf(program).unwrap_or_else(|error| {
        warn!(component = program.name, %error, "The program gets no cgroup of its own.");
        Vec::new()
    });
    let (read, write) = io::pipe()?;
    let launch = SpawnRequest { program: program.clone().into(), output: write, cgroups };
    let mut process = context.spawner.spawn(launch).await?;
    let follower = output.follow(read, drop)?;
    debug!(component = program.name, pid = process.pid(), "Started a program.");
    let exit = select! {
        exit = process.exited() => exit,
        () = sleep(patience) => end(program, &mut process, patience).await,
        () = kill.cancelled() => {
            process.signal(Signal::SIGKILL)?;
            process.exited().await
        }
    };
    drop(process);
    let last_words = follower.finish().await;
    Ok(LastExit { how: exit.into(), at: unix_millis(SystemTime::now()), last_words })
}

async fn end(program: &Program, process: &mut Process, patience: Duration) -> io::Result<crate::spawn::Exit> {
    warn!(component = program.name, ?patience, "A program takes too long and is asked to end.");
    process.signal(program.stop.signal)?;
    if let Ok(exit) = timeout(program.stop.timeout, process.exited()).await {
        return exit;
    }
    process.signal(Signal::SIGKILL)?;
    process.exited().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, cgroup::CgroupPlace, log::Target, program::Stop};

    fn supervisor() -> Supervisor {
        let options = Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere };
        Supervisor::new(options).unwrap()
    }

    const LONG: Duration = Duration::from_secs(1000);

    #[tokio::test]
    async fn a_program_ends_once_and_says_how() {
        let supervisor = supervisor();
        let kill = CancellationToken::new();
        let run = async |script| supervisor.run_once(Program::example("once", script), LONG, &kill).await;
        let failed = run("echo one; echo 'Error: two' >&2; echo three; exit 3").await;
        assert_eq!((failed.how, failed.last_words.as_deref()), (ExitKind::Code(3), Some("Error: two")));
        assert_eq!(run("exit 0").await.how, ExitKind::Code(0));
        let missing = Program { executable: "/nonexistent".into(), ..Program::example("once", "") };
        let missing = supervisor.run_once(missing, LONG, &kill).await;
        assert!(matches!(missing.how, ExitKind::NotStarted(why) if why.starts_with("/nonexistent")));
        assert!(supervisor.status().await.components.is_empty());
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_asked_and_then_killed() {
        let supervisor = supervisor();
        let stop = Stop { timeout: Duration::from_millis(100), ..Stop::default() };
        let kill = CancellationToken::new();
        let run = async |script| {
            let program = Program { stop, ..Program::example("once", script) };
            supervisor.run_once(program, Duration::from_millis(300), &kill).await.how
        };
        assert_eq!(run("exec sleep 1000").await, ExitKind::Signal("SIGTERM".into()));
        assert_eq!(run("trap '' TERM; sleep 1000 & wait; wait").await, ExitKind::Signal("SIGKILL".into()));
    }

    #[tokio::test]
    async fn one_can_be_killed() {
        let supervisor = supervisor();
        let kill = CancellationToken::new();
        kill.cancel();
        let exit = supervisor.run_once(Program::example("once", "exec sleep 1000"), LONG, &kill).await;
        assert_eq!(exit.how, ExitKind::Signal("SIGKILL".into()));
    }
}
