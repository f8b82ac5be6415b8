//! Reading image archives: OCI layouts and what `docker save` writes, as tar, tar.gz or tar.zst.
//!
//! An archive is read at most twice, never into memory: once to learn which images it holds (only small documents are kept;
//! in an uncompressed archive all else is seeked over), and again to stream the blobs that are missing in containerd.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::digest::Hashing;
use crate::layout::{
    BLOBS, CONTAINERD_NAME, Descriptor, INDEX_FILE, Index, LAYOUT_FILE, Manifest, REF_NAME, RootFs, media_type,
};
use crate::{Digest, ImageName};

/// No index, manifest or configuration of an image is longer.
const MAX_DOCUMENT: u64 = 1 << 20;
/// How deep indexes nest: index.json, an image's index, its manifests, and one to spare.
const MAX_DEPTH: usize = 4;
/// What is handed over at a time.
const PIECE: usize = 256 << 10;

/// Docker's table of contents.
const SAVED_FILE: &str = "manifest.json";

/// Why an archive is refused.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The file cannot be read, or what it holds is no tar, truncated or damaged.
    #[error("it is not readable as a tar archive: {0}")]
    Read(#[from] io::Error),
    /// The compression is known but not supported.
    #[error("its compression is not supported; compress it with zstd or gzip instead")]
    Compression,
    /// Neither an OCI layout nor saved by docker.
    #[error(
        "it has neither index.json with oci-layout nor manifest.json; write it with `docker save` or as an OCI archive"
    )]
    NoImages,
    /// A document is not what its place or its descriptor says.
    #[error("{entry} is not {expected}")]
    Document {
        /// The path in the archive, or the digest.
        entry: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A blob's content or length is not what its name or its descriptor says.
    #[error("{0} is damaged: its content does not have the digest and length that it is known by")]
    Damaged(String),
    /// Something that an image consists of is not in the archive.
    #[error("{0} is missing in it")]
    Missing(String),
    /// No image in it says what it is called.
    #[error("none of its images has a name; save them by name and tag")]
    Unnamed,
    /// Indexes within indexes without end.
    #[error("its indexes are nested too deeply")]
    Depth,
}

/// An image in an archive.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) name: ImageName,
    pub(crate) target: Descriptor,
    /// All that it consists of, children first.
    pub(crate) blobs: Vec<Blob>,
}

#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) children: Vec<Descriptor>,
    pub(crate) source: Source,
}

/// Where a blob's content comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The archive's entry of this path.
    Entry(String),
    /// Made here: docker's archives have no manifests.
    Made(Vec<u8>),
}

/// A piece of the streamed entries.
#[derive(Debug)]
pub(crate) enum Piece {
    /// What follows is the content of this entry.
    Start(String),
    Data(Vec<u8>),
}

/// The images of the archive at `path`.
pub(crate) fn images(path: &Path) -> Result<Vec<Image>, ArchiveError> {
    let mut contents = Contents::default();
    visit(path, |name, entry| {
        contents.add(name, entry)?;
        Ok(true)
    })?;
    contents.images()
}

/// Sends the content of the `wanted` entries, in the archive's order. Ends early when nobody receives any more.
pub(crate) fn stream(
    path: &Path,
    mut wanted: HashSet<String>,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), ArchiveError> {
    visit(path, |name, mut entry| {
        if wanted.remove(&name) {
            let mut open = pieces.blocking_send(Piece::Start(name)).is_ok();
            while open {
                let mut piece = Vec::with_capacity(PIECE);
                if (&mut entry).take(PIECE as u64).read_to_end(&mut piece)? == 0 {
                    break;
                }
                open = pieces.blocking_send(Piece::Data(piece)).is_ok();
            }
        }
        Ok(!wanted.is_empty() && !pieces.is_closed())
    })?;
    match wanted.into_iter().next() {
        // The file is not the one that was looked through before.
        Some(gone) if !pieces.is_closed() => Err(ArchiveError::Missing(gone)),
        _ => Ok(()),
    }
}

/// Calls `each` for every entry until it returns false.
fn visit(
    path: &Path,
    mut each: impl FnMut(String, &mut dyn ArchiveEntry) -> Result<bool, ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    let read = read_up_to(&mut file, &mut magic)?;
    file.rewind()?;
    let compressed: Box<dyn Read> = match Compression::of(&magic[..read]) {
        Compression::None => {
            let length = file.metadata()?.len();
            for entry in tar::Archive::new(file).entries_with_seek()? {
                let mut entry = entry?;
                // Seeking beyond a truncated file's end does not fail.
                if entry.raw_file_position().saturating_add(entry.size()) > length {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                if !each(entry_name(&entry)?, &mut entry)? {
                    break;
                }
            }
            return Ok(());
        }
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        Compression::Zstd => Box::new(zstd::Decoder::new(file)?),
        Compression::Other => return Err(ArchiveError::Compression),
    };
    let mut archive = tar::Archive::new(compressed);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !each(entry_name(&entry)?, &mut entry)? {
            return Ok(());
        }
    }
    // A checksum stands at the end of the compressed stream.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// A path without `.` components, as the documents refer to it.
fn entry_name(entry: &tar::Entry<'_, impl Read>) -> io::Result<String> {
    Ok(normalised(&entry.path()?))
}

fn normalised(path: &Path) -> String {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

/// A tar entry, whatever the archive reads from.
trait ArchiveEntry: Read {
    fn length(&self) -> u64;
    /// Where a symbolic or hard link points to, as a path of the archive.
    fn link(&self, name: &str) -> io::Result<Option<String>>;
    fn is_file(&self) -> bool;
}

impl<R: Read> ArchiveEntry for tar::Entry<'_, R> {
    fn length(&self) -> u64 {
        self.size()
    }

    fn link(&self, name: &str) -> io::Result<Option<String>> {
        let kind = self.header().entry_type();
        let Some(target) = self.link_name()?.filter(|_| kind.is_symlink() || kind.is_hard_link()) else {
            return Ok(None);
        };
        let base = Path::new(name).parent().filter(|_| kind.is_symlink()).unwrap_or(Path::new(""));
        Ok(Some(normalised(&base.join(target))))
    }

    fn is_file(&self) -> bool {
        self.header().entry_type().is_file()
    }
}

/// How a file is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    /// bzip2, xz or lz4.
    Other,
}

impl Compression {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..] | [0x04, 0x22, 0x4d, 0x18, ..] => Self::Other,
            _ => Self::None,
        }
    }
}

/// The kinds of documents, told apart by their fields.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Document {
    Index(Index),
    Manifest(Manifest),
    Config { rootfs: RootFs },
    Saved(Vec<Saved>),
}

/// One image in docker's table of contents.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    /// Unknown only for uncompressed files outside of `blobs/`, whose digests docker's configurations tell.
    digest: Option<Digest>,
    compression: Compression,
    document: Option<Document>,
}

/// What one pass over an archive learns.
#[derive(Debug, Default)]
struct Contents {
    entries: HashMap<String, Entry>,
    by_digest: HashMap<Digest, String>,
    links: HashMap<String, String>,
}

impl Contents {
    fn add(&mut self, name: String, entry: &mut dyn ArchiveEntry) -> Result<(), ArchiveError> {
        if let Some(target) = entry.link(&name)? {
            self.links.insert(name, target);
            return Ok(());
        }
        if !entry.is_file() {
            return Ok(());
        }
        let size = entry.length();
        let named = name.strip_prefix(BLOBS).and_then(Digest::from_hex);
        let mut start = Vec::new();
        entry.take(if size <= MAX_DOCUMENT { size } else { 4 }).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let (digest, document) = if size <= MAX_DOCUMENT {
            let digest = Digest::of(&start);
            if named.is_some_and(|named| named != digest) || start.len() as u64 != size {
                return Err(ArchiveError::Damaged(name));
            }
            let is_json = matches!(start.first(), Some(b'{' | b'['));
            (Some(digest), is_json.then(|| serde_json::from_slice(&start).ok()).flatten())
        } else if named.is_none() && compression != Compression::None {
            let mut hashing = Hashing::new(io::sink());
            io::copy(&mut start.chain(entry), &mut hashing)?;
            (Some(hashing.finish().1), None)
        } else {
            (named, None)
        };
        if let Some(digest) = digest {
            self.by_digest.insert(digest, name.clone());
        }
        self.entries.insert(name, Entry { size, digest, compression, document });
        Ok(())
    }

    fn images(self) -> Result<Vec<Image>, ArchiveError> {
        let images = if self.entries.contains_key(INDEX_FILE) && self.entries.contains_key(LAYOUT_FILE) {
            self.indexed()
        } else if self.entries.contains_key(SAVED_FILE) {
            self.saved()
        } else {
            Err(ArchiveError::NoImages)
        }?;
        if images.is_empty() { Err(ArchiveError::Unnamed) } else { Ok(images) }
    }

    /// The images of an OCI layout.
    fn indexed(&self) -> Result<Vec<Image>, ArchiveError> {
        let Some(Document::Index(index)) = &self.entries[INDEX_FILE].document else {
            return Err(ArchiveError::Document { entry: INDEX_FILE.to_owned(), expected: "an OCI index" });
        };
        let mut images = Vec::new();
        for target in &index.manifests {
            let Some(name) = name(target) else { continue };
            let mut blobs = Vec::new();
            self.walk(target, 0, &mut HashSet::new(), &mut blobs)?;
            let target = Descriptor { annotations: BTreeMap::new(), platform: None, ..target.clone() };
            images.push(Image { name, target, blobs });
        }
        Ok(images)
    }

    /// Adds what `descriptor` points to, children first.
    fn walk(
        &self,
        descriptor: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
        blobs: &mut Vec<Blob>,
    ) -> Result<(), ArchiveError> {
        let digest = descriptor.digest;
        if depth > MAX_DEPTH {
            return Err(ArchiveError::Depth);
        }
        if !seen.insert(digest) {
            return Ok(());
        }
        let path = self.by_digest.get(&digest).ok_or_else(|| ArchiveError::Missing(digest.to_string()))?;
        let entry = &self.entries[path];
        if entry.size != descriptor.size {
            return Err(ArchiveError::Damaged(path.clone()));
        }
        let children = match (Kind::of(&descriptor.media_type), &entry.document) {
            // Archives of one platform keep the index of all.
            (Kind::Index, Some(Document::Index(index))) => {
                let saved = index.manifests.iter().filter(|child| self.by_digest.contains_key(&child.digest));
                let saved: Vec<_> = saved.cloned().collect();
                if saved.is_empty() {
                    return Err(ArchiveError::Missing(format!("every manifest of {digest}")));
                }
                saved
            }
            (Kind::Manifest, Some(Document::Manifest(manifest))) => {
                let layers = manifest.layers.iter().filter(|layer| !is_foreign(&layer.media_type));
                [&manifest.config].into_iter().chain(layers).cloned().collect()
            }
            (Kind::Index, _) => return Err(ArchiveError::Document { entry: path.clone(), expected: "an OCI index" }),
            (Kind::Manifest, _) => {
                return Err(ArchiveError::Document { entry: path.clone(), expected: "an OCI manifest" });
            }
            (Kind::Content, _) => Vec::new(),
        };
        for child in &children {
            self.walk(child, depth + 1, seen, blobs)?;
        }
        blobs.push(Blob { digest, size: entry.size, children, source: Source::Entry(path.clone()) });
        Ok(())
    }

    /// The images that docker saved, with manifests made for them.
    fn saved(&self) -> Result<Vec<Image>, ArchiveError> {
        let Some(Document::Saved(saved)) = &self.entries[SAVED_FILE].document else {
            return Err(ArchiveError::Document {
                entry: SAVED_FILE.to_owned(),
                expected: "docker's table of contents",
            });
        };
        let mut images = Vec::new();
        for image in saved {
            for tag in image.repo_tags.iter().flatten() {
                let name = tag
                    .parse()
                    .map_err(|_| ArchiveError::Document { entry: tag.clone(), expected: "an image name" })?;
                images.push(self.saved_image(name, image)?);
            }
        }
        Ok(images)
    }

    fn saved_image(&self, name: ImageName, saved: &Saved) -> Result<Image, ArchiveError> {
        let not_a_config =
            || ArchiveError::Document { entry: saved.config.clone(), expected: "an image configuration" };
        let (config_path, config_entry) = self.resolve(&saved.config)?;
        let (Some(Document::Config { rootfs }), Some(digest)) = (&config_entry.document, config_entry.digest) else {
            return Err(not_a_config());
        };
        if rootfs.diff_ids.len() != saved.layers.len() {
            return Err(not_a_config());
        }
        let mut blobs = Vec::new();
        let mut blob = |media_type: &str, digest, size, path| {
            blobs.push(Blob { digest, size, children: Vec::new(), source: Source::Entry(path) });
            Descriptor { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new(), platform: None }
        };
        let config_descriptor = blob(media_type::CONFIG, digest, config_entry.size, config_path);
        let mut layers = Vec::new();
        for (layer, diff_id) in saved.layers.iter().zip(&rootfs.diff_ids) {
            let (path, entry) = self.resolve(layer)?;
            let media_type = match entry.compression {
                Compression::None => media_type::LAYER,
                Compression::Gzip => media_type::LAYER_GZIP,
                Compression::Zstd => media_type::LAYER_ZSTD,
                Compression::Other => return Err(ArchiveError::Compression),
            };
            layers.push(blob(media_type, entry.digest.unwrap_or(*diff_id), entry.size, path));
        }
        let children = [&config_descriptor].into_iter().chain(&layers).cloned().collect();
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::MANIFEST.to_owned(),
            config: config_descriptor,
            layers,
        };
        let text = serde_json::to_vec(&manifest).expect("a manifest has string keys and cannot fail to serialise");
        let target = Descriptor {
            media_type: manifest.media_type,
            digest: Digest::of(&text),
            size: text.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        };
        blobs.push(Blob { digest: target.digest, size: target.size, children, source: Source::Made(text) });
        Ok(Image { name, target, blobs })
    }

    /// The file at `path`, through links: docker writes a layer that images share once.
    fn resolve(&self, path: &str) -> Result<(String, &Entry), ArchiveError> {
        let mut path = normalised(Path::new(path));
        for _ in 0..=MAX_DEPTH {
            if let Some(entry) = self.entries.get(&path) {
                return Ok((path, entry));
            }
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        Err(ArchiveError::Missing(path))
    }
}

/// What a media type makes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
    /// A configuration, a layer or an attachment: nothing is below it.
    Content,
}

impl Kind {
    fn of(media_type: &str) -> Self {
        match media_type {
            media_type::INDEX | "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
            media_type::MANIFEST | "application/vnd.docker.distribution.manifest.v2+json" => Self::Manifest,
            _ => Self::Content,
        }
    }
}

/// Layers that their makers do not allow to be passed on; no archive holds them.
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

/// The full name by annotation; a bare tag is none.
fn name(target: &Descriptor) -> Option<ImageName> {
    let full = target.annotations.get(CONTAINERD_NAME);
    let name = full.or_else(|| target.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':'])))?;
    name.parse().ok()
}

fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut start = Vec::new();
    let read = from.take(buffer.len() as u64).read_to_end(&mut start)?;
    buffer[..read].copy_from_slice(&start);
    Ok(read)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;
    use crate::{Config, Node, Platform};

    /// An archive as the packer makes it, with a layer longer than a document and a piece.
    pub(crate) fn packed(name: &str) -> Vec<u8> {
        // Text that gzip cannot shrink much: the digests of numbers.
        let noise: String = (0..40_000_u32).map(|number| Digest::of(&number.to_le_bytes()).hex()).collect();
        let image = crate::Image {
            name: name.parse().unwrap(),
            platform: Platform { architecture: "amd64".into(), os: "linux".into() },
            config: Config { entrypoint: vec!["/a".into()], ..Config::default() },
            files: [(PathBuf::from("/a"), Node::Text(noise))].into(),
        };
        let mut archive = Vec::new();
        image.pack(&mut archive).unwrap();
        archive
    }

    /// A tar of files; content `-> path` makes a symbolic link.
    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            if let Some(target) = content.strip_prefix(b"-> ") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, std::str::from_utf8(target).unwrap()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, *content).unwrap();
            }
        }
        tar.into_inner().unwrap()
    }

    /// What `docker save` of two images wrote before version 25: they share a layer, by a link.
    pub(crate) fn saved() -> Vec<u8> {
        let (layer, other) = (tar(&[("a", b"a")]), tar(&[("b", b"b")]));
        let config = |layers: &[&[u8]]| {
            let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
            let config = json!({"Env": null, "Cmd": ["/a"]});
            json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
                .to_string()
        };
        let (one, two) = (config(&[&layer]), config(&[&layer, &other]));
        let table = json!([
            {"Config": "one.json", "RepoTags": ["one:1"], "Layers": ["1/layer.tar"]},
            {"Config": "two.json", "RepoTags": ["two:1", "two:2"], "Layers": ["2/layer.tar", "3/layer.tar"]},
            {"Config": "one.json", "RepoTags": null, "Layers": ["1/layer.tar"]},
        ]);
        tar(&[
            ("1/layer.tar", &layer),
            ("2/layer.tar", b"-> ../1/layer.tar"),
            ("3/layer.tar", &other),
            ("one.json", one.as_bytes()),
            ("two.json", two.as_bytes()),
            ("manifest.json", table.to_string().as_bytes()),
        ])
    }

    fn descriptor(media_type: &str, content: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(content), "size": content.len()})
    }

    /// A layout whose image is an index of two platforms, of which one is in the archive.
    fn multi_platform(missing_layer: bool) -> Vec<u8> {
        let (config, layer) = (br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#, b"layer");
        let manifest = json!({
            "config": descriptor(media_type::CONFIG, config),
            "layers": [descriptor(media_type::LAYER, layer), descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar", b"x")],
        });
        let manifest = manifest.to_string();
        let platforms = json!({"manifests": [descriptor(media_type::MANIFEST, b"other"), descriptor(media_type::MANIFEST, manifest.as_bytes())]});
        let platforms = platforms.to_string();
        let mut target = descriptor(media_type::INDEX, platforms.as_bytes());
        target["annotations"] = json!({"org.opencontainers.image.ref.name": "example.org/a:1"});
        let index = json!({"manifests": [target, descriptor(media_type::MANIFEST, b"nameless")]}).to_string();
        let blob = |content: &[u8]| format!("./{BLOBS}{}", Digest::of(content).hex());
        let mut files = vec![
            (blob(config), &config[..]),
            (blob(manifest.as_bytes()), manifest.as_bytes()),
            (blob(platforms.as_bytes()), platforms.as_bytes()),
            ("./index.json".to_owned(), index.as_bytes()),
            ("./oci-layout".to_owned(), crate::layout::LAYOUT.as_bytes()),
        ];
        if !missing_layer {
            files.push((blob(layer), layer));
        }
        tar(&files.iter().map(|(path, content)| (path.as_str(), *content)).collect::<Vec<_>>())
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(content).unwrap();
        gzip.finish().unwrap()
    }

    fn images_in(archive: &[u8]) -> Result<Vec<Image>, ArchiveError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), archive).unwrap();
        images(file.path())
    }

    fn refusal(archive: &[u8]) -> String {
        images_in(archive).unwrap_err().to_string()
    }

    #[test]
    fn what_the_packer_wrote_is_read_however_it_is_compressed() {
        let archive = packed("example/a:1");
        for archive in [zstd::encode_all(&archive[..], 1).unwrap(), gzip(&archive), archive] {
            let images = images_in(&archive).unwrap();
            let [image] = &images[..] else { panic!("{images:?}") };
            assert_eq!(image.name.as_str(), "docker.io/example/a:1");
            let [config, layer, manifest] = &image.blobs[..] else { panic!("{image:?}") };
            assert_eq!(manifest.digest, image.target.digest);
            let children: Vec<_> = manifest.children.iter().map(|child| child.digest).collect();
            assert_eq!(children, [config.digest, layer.digest]);
            assert!(
                layer.size > MAX_DOCUMENT,
                "the test wants a layer that is not taken for a document: {}",
                layer.size
            );
        }
    }

    #[test]
    fn wanted_entries_are_streamed_and_only_those() {
        let archive = packed("a");
        for archive in [gzip(&archive), archive] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), archive).unwrap();
            let layer = images(file.path()).unwrap().swap_remove(0).blobs.swap_remove(1);
            let Source::Entry(path) = layer.source else { panic!("{layer:?}") };
            let (sender, mut pieces) = mpsc::channel(100);
            stream(file.path(), [path.clone()].into(), &sender).unwrap();
            assert!(matches!(pieces.try_recv(), Ok(Piece::Start(started)) if started == path));
            let mut content = Vec::new();
            while let Ok(Piece::Data(data)) = pieces.try_recv() {
                assert!(data.len() <= PIECE);
                content.extend(data);
            }
            assert_eq!(Digest::of(&content), layer.digest);
            let gone = stream(file.path(), ["gone".to_owned()].into(), &sender).unwrap_err();
            assert_eq!(gone.to_string(), "gone is missing in it");
        }
    }

    #[test]
    fn what_docker_saved_gets_manifests() {
        let images = images_in(&saved()).unwrap();
        let names: Vec<_> = images.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["docker.io/library/one:1", "docker.io/library/two:1", "docker.io/library/two:2"]);
        let blobs = &images[1].blobs;
        assert_eq!(blobs.len(), 4, "a configuration, two layers and a manifest");
        assert!(
            matches!(&blobs[1].source, Source::Entry(path) if path == "1/layer.tar"),
            "through the link: {blobs:?}"
        );
        assert!(matches!(&blobs[3].source, Source::Made(manifest) if Digest::of(manifest) == images[1].target.digest));
    }

    #[test]
    fn an_index_may_name_platforms_that_were_not_saved() {
        let images = images_in(&multi_platform(false)).unwrap();
        let [image] = &images[..] else { panic!("{images:?}") };
        assert_eq!((image.name.as_str(), image.blobs.len()), ("example.org/a:1", 4));
        assert_eq!(image.blobs[3].digest, image.target.digest);
        assert_eq!(image.blobs[3].children.len(), 1);
        assert!(refusal(&multi_platform(true)).ends_with(" is missing in it"));
    }

    #[test]
    fn broken_archives_are_refused_with_the_reason() {
        let good = packed("a");
        let mut damaged = good.clone();
        let config = damaged.windows(12).position(|text| text == br#""Entrypoint""#).unwrap();
        damaged[config + 1] = b'X';
        let nameless = String::from_utf8_lossy(&multi_platform(false)).replace("ref.name", "ref.nome");
        let zstd = zstd::encode_all(&good[..], 1).unwrap();
        for (archive, reason) in [
            (
                &b"no archive, but long enough for the five hundred and twelve bytes of a header".repeat(10)[..],
                "not readable as a tar",
            ),
            (&[][..], "neither index.json"),
            (&good[..good.len() / 2], "not readable as a tar"),
            (&zstd[..zstd.len() / 2], "not readable as a tar"),
            (&gzip(&good)[..100_000], "not readable as a tar"),
            (&damaged, "is damaged"),
            (&tar(&[("index.json", b"{}"), ("oci-layout", b"{}")]), "index.json is not an OCI index"),
            (&tar(&[("manifest.json", b"{}")]), "manifest.json is not docker's table of contents"),
            (&tar(&[("manifest.json", br#"[{"Config":"a","RepoTags":["a"],"Layers":[]}]"#)]), "a is missing in it"),
            (&tar(&[("a", b"b")]), "neither index.json"),
            (nameless.as_bytes(), "none of its images has a name"),
            (b"BZh91AY", "compress it with zstd or gzip"),
        ] {
            let refusal = refusal(archive);
            assert!(refusal.contains(reason), "{refusal}; expected: {reason}");
        }
    }
}
