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

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: BTreeMap<PathBuf, Node>) -> Image {
        Image {
            name: "example/a:1".parse().unwrap(),
            platform: Platform { architecture: "amd64".into(), os: "linux".into() },
            config: Config {
                entrypoint: vec!["/bin/a".into()],
                exposed_ports: ["53/udp".into()].into(),
                ..Config::default()
            },
            files,
        }
    }

    #[test]
    fn the_same_image_is_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let pack = |name: &str| {
            let program = folder.path().join(name);
            std::fs::write(&program, "program").unwrap();
            let files = BTreeMap::from([
                ("/bin/a".into(), Node::Copy(program, 0o755)),
                ("/bin/b".into(), Node::Link("a".into())),
                ("/tmp".into(), Node::Folder(0o1777)),
            ]);
            let mut archive = Vec::new();
            let digest = image(files).pack(&mut archive).unwrap();
            (archive, digest)
        };
        assert_eq!(pack("one"), pack("two"), "neither the file's name nor its time nor its owner is in the archive");
    }

    #[test]
    fn a_layer_has_each_entry_after_its_folder_and_nothing_of_the_host() {
        let files = BTreeMap::from([("/a/b/c".into(), Node::Text("text".into())), ("/a".into(), Node::Folder(0o700))]);
        let (gzip, diff_id) = image(files).layer().unwrap();
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(diff_id, Digest::of(&tar));
        let mut archive = tar::Archive::new(&tar[..]);
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
                (entry.path().unwrap().display().to_string(), header.mode().unwrap())
            })
            .collect();
        let expected = [("a", 0o700), ("a/b", 0o755), ("a/b/c", 0o644)];
        assert_eq!(entries, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn the_configuration_is_written_as_the_specification_says() {
        let config = Config { exposed_ports: ["53/udp".into()].into(), user: "1:1".into(), ..Config::default() };
        assert_eq!(serde_json::to_string(&config).unwrap(), r#"{"User":"1:1","ExposedPorts":{"53/udp":{}}}"#);
    }

    #[test]
    fn wrong_files_are_named() {
        let refusal = |path: &str, node| image([(path.into(), node)].into()).pack(io::sink()).unwrap_err().to_string();
        assert_eq!(refusal("bin/a", Node::Folder(0o755)), "bin/a is not an absolute path below /");
        assert_eq!(refusal("/", Node::Folder(0o755)), "/ is not an absolute path below /");
        let missing = refusal("/bin/a", Node::Copy("/nonexistent/a".into(), 0o755));
        assert_eq!(missing, "cannot read /nonexistent/a, which belongs into the image");
    }
}
