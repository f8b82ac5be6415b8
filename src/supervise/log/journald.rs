//! Lines to the journal: a stream a component, so that each has its own identifier.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc};
use tracing::warn;

/// Where journald takes streams (systemd's `src/libsystemd/sd-journal/journal-send.c`, `sd_journal_stream_fd`).
pub(super) const SOCKET: &str = "/run/systemd/journal/stdout";

/// Writes until nothing more comes. A journal that does not take them is tried anew for each chunk; meanwhile lines go to our standard
/// error with the same priorities.
pub(super) async fn pump(identifier: String, socket: PathBuf, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut stream = None;
    let mut is_well = true;
    while let Some(chunk) = queue.recv().await {
        let mut written = write(&mut stream, &identifier, &socket, &chunk).await;
        if written.is_err() {
            // A journald that was restarted has closed the old stream.
            stream = None;
            written = write(&mut stream, &identifier, &socket, &chunk).await;
        }
        if let Err(error) = &written {
            stream = None;
            if is_well {
                warn!(component = identifier, socket = %socket.display(), %error, "The journal takes no lines: they go to standard error.");
            }
            let mut stderr = tokio::io::stderr();
            // There is nowhere to tell that telling fails.
            let _ = stderr.write_all(&chunk).await;
            let _ = stderr.flush().await;
        }
        is_well = written.is_ok();
    }
}

async fn write(stream: &mut Option<UnixStream>, identifier: &str, socket: &Path, chunk: &[u8]) -> io::Result<()> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream.insert(open(identifier, socket).await?),
    };
    stream.write_all(chunk).await
}

async fn open(identifier: &str, socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    // Identifier; unit (journald knows it by our cgroup); default priority; lines begin with `<N>`; not to syslog, kmsg and console.
    stream.write_all(format!("{identifier}\n\n6\n1\n0\n0\n0\n").as_bytes()).await?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        net::UnixListener,
    };

    use super::*;

    async fn lines(journal: &UnixListener, count: usize) -> Vec<String> {
        let (stream, _) = journal.accept().await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut seen = Vec::new();
        for _ in 0..count {
            seen.push(lines.next_line().await.unwrap().unwrap());
        }
        seen
    }

    #[tokio::test]
    async fn a_stream_introduces_itself_and_comes_back_after_a_restart_of_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("stdout");
        let journal = UnixListener::bind(&socket).unwrap();
        let (queue, received) = mpsc::channel(1);
        let pump = tokio::spawn(pump("kubelet".into(), socket, received));

        queue.send(b"<3>one\n".to_vec()).await.unwrap();
        assert_eq!(lines(&journal, 8).await, ["kubelet", "", "6", "1", "0", "0", "0", "<3>one"]);
        // That stream is closed now.
        queue.send(b"<6>two\n".to_vec()).await.unwrap();
        assert_eq!(lines(&journal, 8).await.last().unwrap(), "<6>two");
        drop(queue);
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn no_journal_is_no_reason_to_stop() {
        let (queue, received) = mpsc::channel(1);
        queue.send(b"<6>this line is expected on standard error\n".to_vec()).await.unwrap();
        drop(queue);
        pump("kubelet".into(), "/nonexistent/stdout".into(), received).await;
    }
}
