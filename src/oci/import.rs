//! Importing archives into containerd, as k3s does with `<data-dir>/agent/images`: every image is managed by CRI and pinned,
//! so that kubelet never collects what cannot be pulled again.
//!
//! What is there already is neither read nor written again: an image counts as there when its name points to the same digest
//! and all its content exists.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use containerd_client::tonic::transport;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task;
use tracing::{info, warn};

use crate::containerd::{BlobWriter, Containerd, Lease, RpcError};
use crate::contents::{self, ArchiveError, Blob, Image, Piece, Source};
use crate::{Digest, ImageName, InvalidName};

/// Endings of archives, and of lists of image names (`.txt`), that k3s takes from its images folder.
const ENDINGS: [&str; 10] =
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz", ".tar.lz4", ".tar.xz", LIST_ENDING];
const LIST_ENDING: &str = ".txt";
/// Folders within folders: links may lead in circles.
const DEPTH: usize = 4;
/// Bytes of a list: some ten thousand names.
const LONGEST_LIST: u64 = 1 << 20;

/// Pieces between the reader of an archive and containerd.
const PIECES_AHEAD: usize = 2;

/// Why something was not imported.
#[derive(Debug, Error)]
pub enum Error {
    /// No containerd answers.
    #[error("containerd does not answer on {socket}")]
    Connect {
        /// containerd's gRPC socket.
        socket: PathBuf,
        /// Why.
        source: transport::Error,
    },
    /// The folder of images cannot be listed.
    #[error("cannot list the images in {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive is broken or not supported.
    #[error("cannot import {path}: {source}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// The list of image names cannot be read.
    #[error("cannot read the image list {path}")]
    List {
        /// The list.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of the list is no name.
    #[error("line {line} of {path}: {source}")]
    Name {
        /// The list.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        source: InvalidName,
    },
    /// containerd did not do its part.
    #[error("cannot import {path}: {source}")]
    Containerd {
        /// The archive or list.
        path: PathBuf,
        /// Why.
        source: RpcError,
    },
}

/// What became of the images, each in the order of the sources.
#[derive(Debug, Default)]
pub struct Report {
    /// Written now.
    pub imported: Vec<ImageName>,
    /// Found complete.
    pub present: Vec<ImageName>,
    /// Named by a list but not there: to be pulled, then [pinned](Importer::pin).
    pub wanted: Vec<ImageName>,
    /// What could not be imported; it did not stop the others.
    pub failed: Vec<Error>,
}

/// Imports what `folder` holds; see [`sources`] and [`Importer::import`].
///
/// # Errors
/// If the folder cannot be listed or no containerd answers on `socket`.
pub async fn import_dir(socket: &Path, folder: &Path) -> Result<Report, Error> {
    let sources = sources(folder)?;
    if sources.is_empty() {
        return Ok(Report::default());
    }
    Ok(Importer::connect(socket).await?.import(&sources).await)
}

/// The archives and lists in `folder` and in folders in it, which may be links, sorted by path; none if it does not exist. Hidden files do
/// not count.
///
/// # Errors
/// If a folder cannot be listed.
pub fn sources(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    list(folder, DEPTH, &mut found)?;
    found.sort();
    Ok(found)
}

fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |source| Error::Folder { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden {
            continue;
        }
        if path.is_dir() {
            if depth > 0 {
                list(&path, depth - 1, found)?;
            }
        } else if path.is_file() && ENDINGS.iter().any(|ending| ends_with(&path, ending)) {
            found.push(path);
        }
    }
    Ok(())
}

/// Imports through one connection to containerd.
#[derive(Clone, Debug)]
pub struct Importer {
    containerd: Containerd,
    /// Each image is named as one of these registries' too.
    registries: Vec<String>,
}

impl Importer {
    /// Connects to containerd's gRPC socket.
    ///
    /// # Errors
    /// If nothing answers there.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let containerd = Containerd::connect(socket).await;
        let connected = containerd.map(|containerd| Self { containerd, registries: Vec::new() });
        connected.map_err(|source| Error::Connect { socket: socket.to_owned(), source })
    }

    /// The same, which names each image as one of these registries' too: `registry.example:5000/k3s-rs/pause:1` beside
    /// `docker.io/k3s-rs/pause:1`.
    #[must_use]
    pub fn with_registries(self, registries: Vec<String>) -> Self {
        Self { registries, ..self }
    }

    /// Imports archives and reads lists, one after the other. A source that fails does not stop the others.
    pub async fn import(&self, sources: &[PathBuf]) -> Report {
        let mut report = Report::default();
        for path in sources {
            let outcome = if ends_with(path, LIST_ENDING) {
                self.look_up(path, &mut report).await
            } else {
                self.import_archive(path, &mut report).await
            };
            if let Err(error) = outcome {
                report.failed.push(error);
            }
        }
        report
    }

    /// Pins an image, e.g. one that a list named and CRI has pulled since. Returns false if there is no such image.
    ///
    /// # Errors
    /// If containerd fails.
    pub async fn pin(&self, name: &ImageName) -> Result<bool, RpcError> {
        let Some(image) = self.containerd.image(name).await? else { return Ok(false) };
        if self.containerd.pin(image).await? {
            info!(image = %name, "Pinned an image.");
        }
        Ok(true)
    }

    async fn look_up(&self, list: &Path, report: &mut Report) -> Result<(), Error> {
        for name in read_list(list)? {
            match self.pin(&name).await.map_err(|source| Error::Containerd { path: list.to_owned(), source })? {
                true => report.present.push(name),
                false => report.wanted.push(name),
            }
        }
        Ok(())
    }

    async fn import_archive(&self, path: &Path, report: &mut Report) -> Result<(), Error> {
        let broken = |source| Error::Archive { path: path.to_owned(), source };
        let refused = |source| Error::Containerd { path: path.to_owned(), source };

        let images = read({
            let path = path.to_owned();
            move || contents::images(&path)
        })
        .await
        .map_err(broken)?;
        let mut incomplete = Vec::new();
        for image in images.into_iter().flat_map(|image| self.named(image)) {
            if self.is_present(&image).await.map_err(refused)? {
                report.present.push(image.name);
            } else {
                incomplete.push(image);
            }
        }
        if incomplete.is_empty() {
            return Ok(());
        }
        let lease = self.containerd.lease().await.map_err(refused)?;
        let outcome = self.write(path, &incomplete, &lease).await;
        // After a failure, this lets containerd collect what was written.
        if let Err(error) = self.containerd.release(lease).await {
            warn!(%error, "A lease of the image import stays until it expires.");
        }
        outcome?;
        for image in incomplete {
            info!(image = %image.name, archive = %path.display(), "Imported an image.");
            report.imported.push(image.name);
        }
        Ok(())
    }

    /// An image under each of its names.
    fn named(&self, image: Image) -> Vec<Image> {
        let others = self.registries.iter().map(|registry| image.name.in_registry(registry));
        let mut names: Vec<_> = [image.name.clone()].into_iter().chain(others).collect();
        names.dedup();
        names.into_iter().map(|name| Image { name, ..image.clone() }).collect()
    }

    /// Whether the image and all its content are there; repairs labels, without which kubelet or containerd collect it.
    async fn is_present(&self, image: &Image) -> Result<bool, RpcError> {
        let Some(found) = self.containerd.image(&image.name).await? else { return Ok(false) };
        if found.target.as_ref().is_none_or(|target| target.digest != image.target.digest().to_string()) {
            return Ok(false);
        }
        for blob in &image.blobs {
            if !self.is_held(blob).await? {
                return Ok(false);
            }
        }
        if self.containerd.pin(found).await? {
            warn!(image = %image.name, "An imported image had lost its pin; pinned it again.");
        }
        Ok(true)
    }

    /// Whether the blob is there; if so, sees to it that it keeps its children.
    async fn is_held(&self, blob: &Blob) -> Result<bool, RpcError> {
        let Some(labels) = self.containerd.content_labels(&blob.digest).await? else { return Ok(false) };
        let held: HashSet<_> =
            labels.iter().filter(|(key, _)| key.starts_with(REFERENCE)).map(|(_, child)| child.as_str()).collect();
        if !blob.children.iter().all(|child| held.contains(child.to_string().as_str())) {
            self.containerd.set_content_labels(&blob.digest, references(&blob.children)).await?;
        }
        Ok(true)
    }

    async fn write(&self, path: &Path, images: &[Image], lease: &Lease) -> Result<(), Error> {
        let refused = |source| Error::Containerd { path: path.to_owned(), source };
        let mut from_archive = HashMap::new();
        for blob in images.iter().flat_map(|image| &image.blobs) {
            if self.is_held(blob).await.map_err(refused)? {
                self.containerd.hold(lease, &blob.digest).await.map_err(refused)?;
                continue;
            }
            match &blob.source {
                Source::Entry(entry) => drop(from_archive.insert(entry.to_string(), blob)),
                Source::Made(content) => {
                    if let Some(mut writer) =
                        self.containerd.write(lease, blob.digest, blob.size).await.map_err(refused)?
                    {
                        writer.write(content.clone()).await.map_err(refused)?;
                        writer.commit(references(&blob.children)).await.map_err(refused)?;
                    }
                }
            }
        }
        self.write_entries(path, from_archive, lease).await?;
        for image in images {
            self.containerd.set_image(&image.name, &image.target, lease).await.map_err(refused)?;
        }
        Ok(())
    }

    /// Streams entries of the archive into the content store.
    async fn write_entries(&self, path: &Path, blobs: HashMap<String, &Blob>, lease: &Lease) -> Result<(), Error> {
        if blobs.is_empty() {
            return Ok(());
        }
        let wanted = blobs.keys().cloned().collect();
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let archive = path.to_owned();
        let reader = read(move || contents::stream(&archive, wanted, &sender));
        let (read, written) = tokio::join!(reader, self.write_pieces(pieces, &blobs, lease));
        // A reader that stopped because nobody received has no error of its own, and a broken archive is the cause of
        // a blob that containerd finds incomplete.
        read.map_err(|source| Error::Archive { path: path.to_owned(), source })?;
        written.map_err(|source| Error::Containerd { path: path.to_owned(), source })
    }

    async fn write_pieces(
        &self,
        mut pieces: mpsc::Receiver<Piece>,
        blobs: &HashMap<String, &Blob>,
        lease: &Lease,
    ) -> Result<(), RpcError> {
        let mut current: Option<(BlobWriter, &Blob)> = None;
        while let Some(piece) = pieces.recv().await {
            match (piece, &mut current) {
                (Piece::Data(data), Some((writer, _))) => writer.write(data).await?,
                (Piece::Data(_), None) => {}
                (Piece::Start(entry), _) => {
                    commit(current.take()).await?;
                    let blob = blobs[&entry];
                    current = self.containerd.write(lease, blob.digest, blob.size).await?.map(|writer| (writer, blob));
                }
            }
        }
        commit(current).await
    }
}

async fn commit(finished: Option<(BlobWriter, &Blob)>) -> Result<(), RpcError> {
    match finished {
        Some((writer, blob)) => writer.commit(references(&blob.children)).await,
        None => Ok(()),
    }
}

/// Runs a reader of archives where it may block.
async fn read<T: Send + 'static>(
    reader: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    match task::spawn_blocking(reader).await {
        Ok(result) => result,
        Err(panicked) => Err(io::Error::other(panicked).into()),
    }
}

/// Labels by which containerd's garbage collector goes from a blob to what it refers to: any that begin so.
const REFERENCE: &str = "containerd.io/gc.ref.content.";

fn references(children: &[Digest]) -> HashMap<String, String> {
    let label = |(number, child): (usize, &Digest)| (format!("{REFERENCE}{number}"), child.to_string());
    children.iter().enumerate().map(label).collect()
}

/// One name a line; empty lines and comments after `#` are skipped.
fn read_list(list: &Path) -> Result<Vec<ImageName>, Error> {
    let text = read_text(list).map_err(|source| Error::List { path: list.to_owned(), source })?;
    let mut names = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if !name.is_empty() {
            let parsed = name.parse();
            names.push(parsed.map_err(|source| Error::Name { path: list.to_owned(), line: index + 1, source })?);
        }
    }
    Ok(names)
}

/// A list, unless it is longer than any list is.
fn read_text(list: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(list)?.take(LONGEST_LIST + 1).read_to_string(&mut text)?;
    if read as u64 > LONGEST_LIST { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(ending.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::{Child, Command, Stdio};

    use tempfile::TempDir;

    use super::*;
    use crate::contents::testing::{packed, saved};

    #[test]
    fn sources_are_archives_and_lists_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.tar.zst", "a.tgz", "c.txt", "notes.md", ".cache.json"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("folder.tar")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("d.tar"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("nixos")).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join(".circle")).unwrap();
        let found = sources(folder.path()).unwrap();
        assert_eq!(found, ["a.tgz", "b.tar.zst", "c.txt", "nixos/d.tar"].map(|name| folder.path().join(name)));
        assert!(sources(&folder.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn a_list_names_images_line_by_line() {
        let list = tempfile::NamedTempFile::new().unwrap();
        fs::write(list.path(), "# tools\nbusybox:1.36\n\n  ghcr.io/a/b:1 # pinned\r\n").unwrap();
        let names = read_list(list.path()).unwrap();
        assert_eq!(
            names.iter().map(ImageName::as_str).collect::<Vec<_>>(),
            ["docker.io/library/busybox:1.36", "ghcr.io/a/b:1"]
        );
        fs::write(list.path(), "a\nB C\n").unwrap();
        let error = read_list(list.path()).unwrap_err().to_string();
        assert!(error.starts_with("line 2 of ") && error.contains("\"B C\" is not an image name"), "{error}");
    }

    #[tokio::test]
    async fn an_absent_containerd_is_named() {
        let error = Importer::connect(Path::new("/nonexistent/containerd.sock")).await.unwrap_err().to_string();
        assert_eq!(error, "containerd does not answer on /nonexistent/containerd.sock");
    }

    /// A containerd of its own in a temporary folder.
    struct Daemon {
        child: Child,
        folder: TempDir,
    }

    impl Daemon {
        fn start() -> Self {
            let libexec = std::env::var("K3S_LIBEXEC").expect("K3S_LIBEXEC names the folder of containerd");
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name).display().to_string();
            let config = format!(
                "version = 3\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
                 \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
                path("root"),
                path("state"),
                path("containerd.sock"),
                path("containerd.sock.ttrpc"),
            );
            fs::write(path("config.toml"), config).unwrap();
            let ready = UnixDatagram::bind(path("notify.sock")).unwrap();
            let child = Command::new(Path::new(&libexec).join("containerd"))
                .args(["--config", &path("config.toml")])
                .env("NOTIFY_SOCKET", path("notify.sock"))
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let daemon = Self { child, folder };
            let mut message = [0; 256];
            let length = ready.recv(&mut message).unwrap();
            assert!(message[..length].starts_with(b"READY=1"));
            daemon
        }

        fn write(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }

        async fn importer(&self) -> Importer {
            Importer::connect(&self.folder.path().join("containerd.sock")).await.unwrap()
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn texts(names: &[ImageName]) -> Vec<&str> {
        names.iter().map(ImageName::as_str).collect()
    }

    #[tokio::test]
    #[ignore = "needs root and the component containerd: run with K3S_LIBEXEC set"]
    async fn archives_come_into_a_real_containerd_once_and_stay() {
        let daemon = Daemon::start();
        let importer = daemon.importer().await;
        let archive = packed("example/a:1");
        let sources = [
            daemon.write("a.tar", &archive),
            daemon.write("b.tar", &archive[..archive.len() / 2]),
            daemon.write("c.tar.zst", &zstd::encode_all(&saved()[..], 1).unwrap()),
            daemon.write("d.tar", &archive),
            daemon.write("e.txt", b"one:1\nabsent:1\n"),
        ];
        let report = importer.import(&sources).await;
        let all =
            ["docker.io/example/a:1", "docker.io/library/one:1", "docker.io/library/two:1", "docker.io/library/two:2"];
        assert_eq!(texts(&report.imported), all);
        assert_eq!(texts(&report.present), ["docker.io/example/a:1", "docker.io/library/one:1"], "d.tar and e.txt");
        assert_eq!(texts(&report.wanted), ["docker.io/library/absent:1"]);
        let [Error::Archive { path, .. }] = &report.failed[..] else { panic!("{:?}", report.failed) };
        assert_eq!(path, &sources[1]);

        // Nothing is collected: neither what a tag refers to, nor what only a manifest refers to.
        importer.containerd.collect_garbage().await;
        let again = importer.import(&sources[..1]).await;
        assert_eq!((texts(&again.present), again.imported.len()), (vec![all[0]], 0));
    }

    #[tokio::test]
    #[ignore = "needs root and the component containerd: run with K3S_LIBEXEC set"]
    async fn lost_content_and_lost_pins_are_repaired() {
        let daemon = Daemon::start();
        let importer = daemon.importer().await;
        let sources = [daemon.write("a.tar", &packed("a"))];
        assert_eq!(importer.import(&sources).await.imported.len(), 1);
        let name: ImageName = "a".parse().unwrap();

        let image = importer.containerd.image(&name).await.unwrap().unwrap();
        importer.containerd.strip_labels(&image).await;
        assert_eq!(texts(&importer.import(&sources).await.present), [name.as_str()]);
        assert_eq!(importer.containerd.image(&name).await.unwrap().unwrap().labels, image.labels);

        let layer = contents::images(&sources[0]).unwrap().swap_remove(0).blobs[1].digest;
        importer.containerd.remove_content(&layer).await;
        assert_eq!(importer.import(&sources).await.imported, [name]);
        assert!(importer.containerd.content_labels(&layer).await.unwrap().is_some());
    }
}
