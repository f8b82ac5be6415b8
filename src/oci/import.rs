//! Importing archives into containerd, as k3s does with `<data-dir>/agent/images`: every image is managed by CRI and pinned,
//! so that kubelet never collects what cannot be pulled again.
//!
//! What is there already is neither read nor written again: an image counts as there when its name points to the same digest
//! and all its content exists.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_client::tonic::transport;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task;
use tracing::{info, warn};

use crate::containerd::{BlobWriter, Containerd, Lease, RpcError};
use crate::contents::{self, ArchiveError, Blob, Image, Piece, Source};
use crate::layout::Descriptor;
use crate::{ImageName, InvalidName};

/// Endings of archives, and of lists of image names (`.txt`), that k3s takes from its images folder.
const ENDINGS: [&str; 10] =
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz", ".tar.lz4", ".tar.xz", LIST_ENDING];
const LIST_ENDING: &str = ".txt";

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

/// The archives and lists in `folder`, sorted by name; none if it does not exist.
///
/// # Errors
/// If the folder cannot be listed.
pub fn sources(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Folder { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.is_file() && ENDINGS.iter().any(|ending| ends_with(&path, ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Imports through one connection to containerd.
#[derive(Clone, Debug)]
pub struct Importer(Containerd);

impl Importer {
    /// Connects to containerd's gRPC socket.
    ///
    /// # Errors
    /// If nothing answers there.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let containerd = Containerd::connect(socket).await;
        containerd.map(Self).map_err(|source| Error::Connect { socket: socket.to_owned(), source })
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
        let Some(image) = self.0.image(name).await? else { return Ok(false) };
        if self.0.pin(image).await? {
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
        for image in images {
            if self.is_present(&image).await.map_err(refused)? {
                report.present.push(image.name);
            } else {
                incomplete.push(image);
            }
        }
        if incomplete.is_empty() {
            return Ok(());
        }
        let lease = self.0.lease().await.map_err(refused)?;
        let outcome = self.write(path, &incomplete, &lease).await;
        // After a failure, this lets containerd collect what was written.
        if let Err(error) = self.0.release(lease).await {
            warn!(%error, "A lease of the image import stays until it expires.");
        }
        outcome?;
        for image in incomplete {
            info!(image = %image.name, archive = %path.display(), "Imported an image.");
            report.imported.push(image.name);
        }
        Ok(())
    }

    /// Whether the image and all its content are there; repairs labels, without which kubelet or containerd collect it.
    async fn is_present(&self, image: &Image) -> Result<bool, RpcError> {
        let Some(found) = self.0.image(&image.name).await? else { return Ok(false) };
        if found.target.as_ref().is_none_or(|target| target.digest != image.target.digest.to_string()) {
            return Ok(false);
        }
        for blob in &image.blobs {
            if !self.is_held(blob).await? {
                return Ok(false);
            }
        }
        if self.0.pin(found).await? {
            warn!(image = %image.name, "An imported image had lost its pin; pinned it again.");
        }
        Ok(true)
    }

    /// Whether the blob is there; if so, sees to it that it keeps its children.
    async fn is_held(&self, blob: &Blob) -> Result<bool, RpcError> {
        let Some(labels) = self.0.content_labels(&blob.digest).await? else { return Ok(false) };
        let held: HashSet<_> =
            labels.iter().filter(|(key, _)| key.starts_with(REFERENCE)).map(|(_, child)| child.as_str()).collect();
        if !blob.children.iter().all(|child| held.contains(child.digest.to_string().as_str())) {
            self.0.set_content_labels(&blob.digest, references(&blob.children)).await?;
        }
        Ok(true)
    }

    async fn write(&self, path: &Path, images: &[Image], lease: &Lease) -> Result<(), Error> {
        let refused = |source| Error::Containerd { path: path.to_owned(), source };
        let mut from_archive = HashMap::new();
        for blob in images.iter().flat_map(|image| &image.blobs) {
            if self.is_held(blob).await.map_err(refused)? {
                self.0.hold(lease, &blob.digest).await.map_err(refused)?;
                continue;
            }
            match &blob.source {
                Source::Entry(entry) => drop(from_archive.insert(entry.clone(), blob)),
                Source::Made(content) => {
                    if let Some(mut writer) = self.0.write(lease, blob.digest, blob.size).await.map_err(refused)? {
                        writer.write(content.clone()).await.map_err(refused)?;
                        writer.commit(references(&blob.children)).await.map_err(refused)?;
                    }
                }
            }
        }
        self.write_entries(path, from_archive, lease).await?;
        for image in images {
            self.0.set_image(&image.name, &image.target, lease).await.map_err(refused)?;
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
                    current = self.0.write(lease, blob.digest, blob.size).await?.map(|writer| (writer, blob));
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

fn references(children: &[Descriptor]) -> HashMap<String, String> {
    let label = |(number, child): (usize, &Descriptor)| (format!("{REFERENCE}{number}"), child.digest.to_string());
    children.iter().enumerate().map(label).collect()
}

/// One name a line; empty lines and comments after `#` are skipped.
fn read_list(list: &Path) -> Result<Vec<ImageName>, Error> {
    let text = fs::read_to_string(list).map_err(|source| Error::List { path: list.to_owned(), source })?;
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

fn ends_with(path: &Path, ending: &str) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(ending.as_bytes()))
}
