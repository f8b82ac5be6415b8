//! Running the host's own network programs.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Far above what any of them takes: a program that hangs must not hang the node's start for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a host program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed, or not in `PATH`.
    #[error("`{program}` was not found in PATH")]
    NotFound {
        /// Its name.
        program: &'static str,
    },
    /// It could not be started or talked to.
    #[error("`{program}` could not be run")]
    Run {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It did not end.
    #[error("`{program}` did not end within {} s", PATIENCE.as_secs())]
    Hung {
        /// Its name.
        program: &'static str,
    },
    /// It ended with a failure.
    #[error("`{program} {args}` failed: {}", .stderr.lines().next().unwrap_or_default())]
    Failed {
        /// Its name.
        program: &'static str,
        /// Its arguments.
        args: String,
        /// Everything it said; its first line is the one that counts.
        stderr: String,
    },
}

/// What a program that succeeded leaves.
pub(crate) struct Done {
    /// Its standard output.
    pub(crate) stdout: String,
    /// The process that it was.
    pub(crate) pid: Option<u32>,
}

/// Runs `program` from `PATH` with `input` on its standard input and returns its standard output.
pub(crate) async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, CommandError> {
    Ok(run_to_end(program, args, input).await?.stdout)
}

/// As [`run`], and tells which process it was.
pub(crate) async fn run_to_end(program: &'static str, args: &[&str], input: &str) -> Result<Done, CommandError> {
    let run = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CommandError::NotFound { program },
        _ => CommandError::Run { program, source },
    };
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    let (pid, stdin) = (child.id(), child.stdin.take());
    let talk = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that ends without reading tells why on its standard error.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        tokio::join!(write, child.wait_with_output()).1
    };
    let output = timeout(PATIENCE, talk).await.map_err(|_| CommandError::Hung { program })?.map_err(run)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let stderr = if stderr.is_empty() { output.status.to_string() } else { stderr };
        return Err(CommandError::Failed { program, args: args.join(" "), stderr });
    }
    Ok(Done { stdout: String::from_utf8_lossy(&output.stdout).into_owned(), pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_program_says_is_kept() {
        assert_eq!(run("cat", &[], "hello").await.unwrap(), "hello");
        let error = run("sh", &["-c", "echo no such chain >&2; exit 1"], "").await.unwrap_err();
        assert_eq!(error.to_string(), "`sh -c echo no such chain >&2; exit 1` failed: no such chain");
        assert!(matches!(run("no-such-program", &[], "").await, Err(CommandError::NotFound { .. })));
    }
}
