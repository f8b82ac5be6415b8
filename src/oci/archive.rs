//! Packing one image as an OCI archive: a tar of an image layout. The same [`Image`] gives the same bytes: entries are
//! sorted, times are zero, everything belongs to root.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Config, Descriptor, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, Platform, RootFsBuilder,
};
use tar::{EntryType, Header};
use thiserror::Error;

use crate::digest::Hashing;
use crate::layout::{BLOBS, CONTAINERD_NAME, INDEX_FILE, LAYOUT, LAYOUT_FILE, REF_NAME, SCHEMA_VERSION, json};
use crate::{Digest, ImageName};

/// Every field that a builder asks for is given.
const COMPLETE: &str = "the document has all that the specification requires";

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
        let rootfs = RootFsBuilder::default().diff_ids([diff_id.to_string()]).build();
        let config = ImageConfigurationBuilder::default()
            .architecture(self.platform.architecture().clone())
            .os(self.platform.os().clone())
            .created("1970-01-01T00:00:00Z")
            .config(self.config.clone())
            .rootfs(rootfs.expect(COMPLETE));
        let config = json(&config.build().expect(COMPLETE));
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &config))
            .layers([descriptor(MediaType::ImageLayerGzip, &layer)]);
        let manifest = json(&manifest.build().expect(COMPLETE));
        let digest = Digest::of(&manifest);
        let name = self.name.to_string();
        let target = DescriptorBuilder::default()
            .media_type(MediaType::ImageManifest)
            .digest(digest)
            .size(manifest.len() as u64)
            .annotations(HashMap::from([CONTAINERD_NAME, REF_NAME].map(|key| (key.to_owned(), name.clone()))))
            .platform(self.platform.clone());
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests([target.build().expect(COMPLETE)]);
        let index = json(&index.build().expect(COMPLETE));

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

fn descriptor(media_type: MediaType, blob: &[u8]) -> Descriptor {
    Descriptor::new(media_type, blob.len() as u64, Digest::of(blob))
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
    use oci_spec::image::{ConfigBuilder, PlatformBuilder};

    use super::*;

    fn image(files: BTreeMap<PathBuf, Node>) -> Image {
        Image {
            name: "example/a:1".parse().unwrap(),
            platform: PlatformBuilder::default().architecture("amd64").os("linux").build().unwrap(),
            config: ConfigBuilder::default()
                .user("1:1")
                .exposed_ports(["53/udp".to_owned(), "53/tcp".to_owned()])
                .entrypoint(["/bin/a".to_owned()])
                .build()
                .unwrap(),
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

    /// The digest of an image is over these bytes.
    #[test]
    fn documents_are_written_as_they_always_were() {
        let mut archive = Vec::new();
        let digest = image([("/a".into(), Node::Text("text".into()))].into()).pack(&mut archive).unwrap();
        let mut archive = tar::Archive::new(&archive[..]);
        let documents: Vec<String> = archive
            .entries()
            .unwrap()
            .filter_map(|entry| {
                let mut text = String::new();
                entry.unwrap().read_to_string(&mut text).ok().filter(|_| text.starts_with('{')).map(|_| text)
            })
            .collect();
        let find = |part: &str| documents.iter().find(|text| text.contains(part)).unwrap().as_str();
        let (config, manifest) = (find("\"created\""), find("\"layers\":"));
        let sizes = |part: &str| {
            let (_, rest) = manifest.split_once(part).unwrap();
            let (digest, rest) = rest.split_once("\",\"size\":").unwrap();
            (digest.to_owned(), rest.split_once('}').unwrap().0.to_owned())
        };
        let layer = sizes(r#"tar+gzip","digest":""#);
        let diff_id = config.split_once("sha256:").unwrap().1.split_once('"').unwrap().0;
        assert_eq!(
            config,
            format!(
                r#"{{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{{"User":"1:1","ExposedPorts":{{"53/tcp":{{}},"53/udp":{{}}}},"Entrypoint":["/bin/a"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
            )
        );
        assert_eq!(
            manifest,
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":{}}}]}}"#,
                Digest::of(config.as_bytes()),
                config.len(),
                layer.0,
                layer.1,
            )
        );
        assert_eq!(
            find("\"manifests\""),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{},"annotations":{{"io.containerd.image.name":"docker.io/example/a:1","org.opencontainers.image.ref.name":"docker.io/example/a:1"}},"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#,
                manifest.len(),
            )
        );
        assert_eq!(digest, Digest::of(manifest.as_bytes()));
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
