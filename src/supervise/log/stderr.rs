//! Lines to our own standard error.

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// Writes until nothing more comes. Each chunk is whole lines and goes out in one piece, so that components do not mix within a line.
pub(super) async fn pump(queue: mpsc::Receiver<Vec<u8>>) {
    pump_to(tokio::io::stderr(), queue).await;
}

async fn pump_to(mut out: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(chunk) = queue.recv().await {
        // There is nowhere to tell that telling fails.
        let _ = out.write_all(&chunk).await;
        let _ = out.flush().await;
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        log::{Format, Output, QUEUE},
        program::Program,
    };

    use super::*;

    /// What `script` writes, as it comes out, and its last words.
    async fn run(script: &str, format: Format) -> (String, Option<String>) {
        let (read, write) = std::io::pipe().unwrap();
        let mut output = Output { sinks: Vec::new(), pumps: Vec::new(), quotes_after: &[] };
        let queue = output.add(format);
        let (out, mut seen) = tokio::io::duplex(1 << 20);
        let pump = tokio::spawn(pump_to(out, queue));
        let follower = output.follow(read, drop).unwrap();
        let program = std::sync::Arc::new(Program::example("etcd", script));
        let launch = crate::spawn::SpawnRequest { program, output: write, cgroups: Vec::new() };
        let mut process = crate::spawn::Spawner::start().unwrap().spawn(launch).await.unwrap();
        process.exited().await.unwrap();
        let words = follower.finish().await;
        output.close().await;
        pump.await.unwrap();
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut seen, &mut text).await.unwrap();
        (text, words)
    }

    #[tokio::test]
    async fn each_line_names_its_component() {
        let (text, words) = run("echo one; echo two >&2; printf three", Format::Prefixed("etcd".into())).await;
        assert_eq!(text, "etcd| one\netcd| two\netcd| three\n");
        assert_eq!(words.as_deref(), Some("three"));
    }

    #[tokio::test]
    async fn the_last_error_explains_an_exit_better_than_the_last_line() {
        let script = "echo 'E1121 11:47:16.1 1 run.go:72] no such file'; echo; echo 'I1121 11:47:16.1 1 x.go:1] bye'";
        let (text, words) = run(script, Format::Journal).await;
        assert!(text.starts_with("<3>E1121") && text.ends_with("<6>I1121 11:47:16.1 1 x.go:1] bye\n"));
        assert_eq!(words.as_deref(), Some("E1121 11:47:16.1 1 run.go:72] no such file"));
    }

    #[tokio::test]
    async fn an_error_that_ends_in_a_colon_goes_on() {
        let script = "echo 'Error: wrong values in the chart:'; echo 'app:'; echo \"- at '': no such value\"; echo other; echo 'bye:'";
        let (_, words) = run(script, Format::Plain).await;
        assert_eq!(words.as_deref(), Some("Error: wrong values in the chart: app: - at '': no such value"));
    }

    #[tokio::test]
    async fn a_descendant_that_keeps_the_output_open_is_not_waited_for() {
        let (text, _) = run("sleep 1000 & echo $!", Format::Plain).await;
        let sleeper = nix::unistd::Pid::from_raw(text.trim().parse().unwrap());
        nix::sys::signal::kill(sleeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn what_a_slow_reader_misses_is_counted() {
        let mut output = Output { sinks: Vec::new(), pumps: Vec::new(), quotes_after: &[] };
        let mut queue = output.add(Format::Plain);
        let sink = &mut output.sinks[0];
        for _ in 0..QUEUE + 3 {
            sink.send(b"line\n".to_vec(), 1);
        }
        queue.recv().await.unwrap();
        sink.send(b"later\n".to_vec(), 1);
        let mut last = Vec::new();
        while let Ok(chunk) = queue.try_recv() {
            last = chunk;
        }
        assert_eq!(last, b"3 lines are missing here: the log could not keep up\nlater\n");
    }
}
