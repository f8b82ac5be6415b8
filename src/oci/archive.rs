//! Packing one image as an OCI archive: a tar of an image layout. The same [`Image`] gives the same bytes: entries are
//! sorted, times are zero, everything belongs to root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde::Serialize;
use tar::{EntryType, Header};
use thiserror::Error;

use crate::digest::Hashing;
use crate::layout::{
    BLOBS, CONTAINERD_NAME, Config, ConfigFile, Descriptor, INDEX_FILE, Index, LAYOUT, LAYOUT_FILE, Manifest, Platform,
    REF_NAME, RootFs, media_type,
};
use crate::{Digest, ImageName};

/// An image of one layer, to be packed.
#[derive(Debug)]
pub struct Image {
    /// What it will be called in containerd.
    pub name: ImageName,
    /// What it runs on.
    pub platform: Platform,
    /// How it runs.
    pub config: Config,
    /// Absolute path in the image → what is there. Missing parent folders are made.
    pub files: BTreeMap<PathBuf, Node>,
}

/// An entry of an image's file system.
#[derive(Debug)]
pub enum Node {
    /// A folder with this mode.
    Folder(u32),
    /// A copy of a file of the host, with this mode.
    Copy(PathBuf, u32),
    /// A file with this content and mode 0644.
    Text(String),
    /// A symbolic link with this target.
    Link(PathBuf),
}

/// Why an image could not be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file to be copied into the image cannot be read.
    #[error("cannot read {path}, which belongs into the image")]
    Source {
        /// The file on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path of the image is not absolute.
    #[error("{0} is not an absolute path below /")]
    Path(PathBuf),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
}

impl Image {
    /// Writes the archive and returns the digest of the image's manifest. The compressed layer is held in memory.
    ///
    /// # Errors
    /// If a file cannot be read or `to` cannot be written.
    pub fn pack(&self, to: impl Write) -> Result<Digest, PackError> {
        let (layer, diff_id) = self.layer()?;
        let config = json(&ConfigFile {
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
            created: "1970-01-01T00:00:00Z",
            config: self.config.clone(),
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] },
        });
        let manifest = json(&Manifest {
            schema_version: 2,
            media_type: media_type::MANIFEST.to_owned(),
            config: descriptor(media_type::CONFIG, &config),
            layers: vec![descriptor(media_type::LAYER_GZIP, &layer)],
        });
        let name = self.name.to_string();
        let target = Descriptor {
            annotations: [CONTAINERD_NAME, REF_NAME].map(|key| (key.to_owned(), name.clone())).into(),
            platform: Some(self.platform.clone()),
            ..descriptor(media_type::MANIFEST, &manifest)
        };
        let digest = target.digest;
        let index =
            json(&Index { schema_version: 2, media_type: media_type::INDEX.to_owned(), manifests: vec![target] });

        let mut files =
            BTreeMap::from([(INDEX_FILE.to_owned(), index), (LAYOUT_FILE.to_owned(), LAYOUT.as_bytes().to_vec())]);
        files.extend([layer, config, manifest].map(|blob| (format!("{BLOBS}{}", Digest::of(&blob).hex()), blob)));
        let mut tar = tar::Builder::new(to);
        append(&mut tar, Path::new("blobs"), EntryType::Directory, 0o755, 0, io::empty())?;
        append(&mut tar, Path::new(BLOBS), EntryType::Directory, 0o755, 0, io::empty())?;
        for (path, content) in &files {
            append(&mut tar, Path::new(path), EntryType::Regular, 0o644, content.len() as u64, &content[..])?;
        }
        tar.into_inner()?.flush()?;
        Ok(digest)
    }

    /// The layer as a compressed tar, and the digest of the tar itself.
    fn layer(&self) -> Result<(Vec<u8>, Digest), PackError> {
        // GzBuilder's header has neither a name nor a time.
        let gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        let mut tar = tar::Builder::new(Hashing::new(gzip));
        for (path, node) in self.with_parents()? {
            match node {
                Node::Folder(mode) => append(&mut tar, path, EntryType::Directory, *mode, 0, io::empty())?,
                Node::Text(text) => {
                    append(&mut tar, path, EntryType::Regular, 0o644, text.len() as u64, text.as_bytes())?;
                }
                Node::Link(target) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target)?;
                }
                Node::Copy(from, mode) => {
                    let unreadable = |source| PackError::Source { path: from.clone(), source };
                    let file = File::open(from).map_err(unreadable)?;
                    let size = file.metadata().map_err(unreadable)?.len();
                    append(&mut tar, path, EntryType::Regular, *mode, size, file)?;
                }
            }
        }
        let (gzip, diff_id) = tar.into_inner()?.finish();
        Ok((gzip.finish()?, diff_id))
    }

    /// The entries relative to the root, each after its parent folders.
    fn with_parents(&self) -> Result<BTreeMap<&Path, &Node>, PackError> {
        const PARENT: &Node = &Node::Folder(0o755);
        let mut entries = BTreeMap::new();
        for (path, node) in &self.files {
            let relative = path.strip_prefix("/").ok().filter(|relative| relative.file_name().is_some());
            let relative = relative.ok_or_else(|| PackError::Path(path.clone()))?;
            for parent in relative.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                entries.entry(parent).or_insert(PARENT);
            }
            entries.insert(relative, node);
        }
        Ok(entries)
    }
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("these documents have string keys and cannot fail to serialise")
}

fn descriptor(media_type: &str, blob: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(blob),
        size: blob.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &Path,
    kind: EntryType,
    mode: u32,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    tar.append_data(&mut header(kind, mode, size), path, content.take(size))
}
