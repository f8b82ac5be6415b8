//! Lines to a file that somebody expects, kept within bounds.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{
    fs::{self, File, OpenOptions},
    io::AsyncWriteExt,
    sync::mpsc,
};
use tracing::warn;

/// As k3s keeps containerd.log: 50 MB and three older ones.
const LARGEST: u64 = 50 * 1000 * 1000;
const BACKUPS: u32 = 3;

/// Writes until nothing more comes. A file that cannot be written is tried anew for each chunk; the lines go to the log anyway.
pub(super) async fn pump(path: PathBuf, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut log = RotatedFile { path, largest: LARGEST, file: None };
    let mut is_well = true;
    while let Some(chunk) = queue.recv().await {
        let written = log.write(&chunk).await;
        if let (Err(error), true) = (&written, is_well) {
            warn!(file = %log.path.display(), %error, "The component's log file cannot be written.");
        }
        is_well = written.is_ok();
    }
}

/// `path`, and `path.1` to `path.3`, the oldest last.
struct RotatedFile {
    path: PathBuf,
    largest: u64,
    file: Option<(File, u64)>,
}

impl RotatedFile {
    async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        let more = chunk.len() as u64;
        if self.file.as_ref().is_some_and(|(_, length)| length + more > self.largest) {
            self.file = None;
            self.rotate().await?;
        }
        let (file, length) = match &mut self.file {
            Some(open) => open,
            None => self.file.insert(open(&self.path).await?),
        };
        file.write_all(chunk).await?;
        *length += more;
        file.flush().await
    }

    async fn rotate(&self) -> io::Result<()> {
        for number in (1..BACKUPS).rev() {
            rename(&self.numbered(number), &self.numbered(number + 1)).await?;
        }
        rename(&self.path, &self.numbered(1)).await
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

async fn open(path: &Path) -> io::Result<(File, u64)> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).await?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
    let length = file.metadata().await?.len();
    Ok((file, length))
}

async fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_lines_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent/containerd.log");
        let mut log = RotatedFile { path: path.clone(), largest: 8, file: None };
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n", "seven\n"] {
            log.write(line.as_bytes()).await.unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(path.with_file_name(name)).unwrap();
        assert_eq!(read("containerd.log"), "seven\n");
        assert_eq!(read("containerd.log.1"), "six\n");
        assert_eq!(read("containerd.log.2"), "five\n");
        assert_eq!(read("containerd.log.3"), "four\n");
        assert!(!dir.path().join("agent/containerd.log.4").exists());
    }

    #[tokio::test]
    async fn a_file_from_before_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containerd.log");
        std::fs::write(&path, "before\n").unwrap();
        let (queue, received) = mpsc::channel(1);
        queue.send(b"now\n".to_vec()).await.unwrap();
        drop(queue);
        pump(path.clone(), received).await;
        assert_eq!(std::fs::read_to_string(path).unwrap(), "before\nnow\n");
    }
}
