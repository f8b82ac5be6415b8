//! Archives for tests.

use std::{io::Write as _, path::PathBuf};

use serde_json::json;

use oci_spec::image::{ConfigBuilder, PlatformBuilder};

use crate::{Digest, Node};

/// An archive as the packer makes it, with a layer longer than a document and a piece.
pub(crate) fn packed(name: &str) -> Vec<u8> {
    // Text that gzip cannot shrink much: the digests of numbers.
    let noise: String = (0..40_000_u32).map(|number| Digest::of(&number.to_le_bytes()).hex()).collect();
    let image = crate::Image {
        name: name.parse().unwrap(),
        platform: PlatformBuilder::default().architecture("amd64").os("linux").build().unwrap(),
        config: ConfigBuilder::default().entrypoint(["/a".to_owned()]).build().unwrap(),
        files: [(PathBuf::from("/a"), Node::Text(noise))].into(),
    };
    let mut archive = Vec::new();
    image.pack(&mut archive).unwrap();
    archive
}

/// A tar of files; content `-> path` makes a symbolic link.
pub(super) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
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
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
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

pub(super) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn bzip2(content: &[u8]) -> Vec<u8> {
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(content).unwrap();
    bzip2.finish().unwrap()
}

pub(crate) fn lz4(content: &[u8]) -> Vec<u8> {
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(content).unwrap();
    lz4.finish().unwrap()
}
