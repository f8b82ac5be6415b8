use std::fs;

use serde_json::{Value, json};

use super::{
    indexed::digest_of,
    testing::{gzip, packed, saved, tar},
    *,
};

mod media_type {
    pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()})
}

/// A layout whose image is an index of two platforms, of which one is in the archive.
fn multi_platform(missing_layer: bool) -> Vec<u8> {
    let (config, layer) = (br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#, b"layer");
    let manifest = json!({
        "schemaVersion": 2, "config": descriptor(media_type::CONFIG, config),
        "layers": [descriptor(media_type::LAYER, layer), descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar", b"x")],
    });
    let manifest = manifest.to_string();
    let platforms = json!({"schemaVersion": 2, "manifests": [descriptor(media_type::MANIFEST, b"other"), descriptor(media_type::MANIFEST, manifest.as_bytes())]});
    let platforms = platforms.to_string();
    let mut target = descriptor(media_type::INDEX, platforms.as_bytes());
    target["annotations"] = json!({"org.opencontainers.image.ref.name": "example.org/a:1"});
    let index =
        json!({"schemaVersion": 2, "manifests": [target, descriptor(media_type::MANIFEST, b"nameless")]}).to_string();
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
        assert_eq!(manifest.digest, digest_of(&image.target).unwrap());
        let children = manifest.children.to_vec();
        assert_eq!(children, [config.digest, layer.digest]);
        assert!(layer.size > MAX_DOCUMENT, "the test wants a layer that is not taken for a document: {}", layer.size);
    }
}

#[test]
fn what_docker_saved_gets_manifests() {
    let images = images_in(&saved()).unwrap();
    let names: Vec<_> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/one:1", "docker.io/library/two:1", "docker.io/library/two:2"]);
    let blobs = &images[1].blobs;
    assert_eq!(blobs.len(), 4, "a configuration, two layers and a manifest");
    assert!(matches!(&blobs[1].source, Source::Entry(path) if **path == *"1/layer.tar"), "through the link: {blobs:?}");
    assert!(
        matches!(&blobs[3].source, Source::Made(manifest) if Digest::of(manifest) == digest_of(&images[1].target).unwrap())
    );
}

#[test]
fn an_index_may_name_platforms_that_were_not_saved() {
    let images = images_in(&multi_platform(false)).unwrap();
    let [image] = &images[..] else { panic!("{images:?}") };
    assert_eq!((image.name.as_str(), image.blobs.len()), ("example.org/a:1", 4));
    assert_eq!(image.blobs[3].digest, digest_of(&image.target).unwrap());
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
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "compress it with zstd or gzip"),
    ] {
        let refusal = refusal(archive);
        assert!(refusal.contains(reason), "{refusal}; expected: {reason}");
    }
}

/// An archive of entries as `add` appends them, compressed as it is made: it may be longer than memory.
fn compressed(add: impl FnOnce(&mut tar::Builder<zstd::Encoder<'_, Vec<u8>>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    add(&mut tar);
    tar.into_inner().unwrap().finish().unwrap()
}

fn file(size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header
}

#[test]
fn what_unpacks_to_more_than_images_are_is_refused_before_it_is_kept() {
    let long_name = |kind: tar::EntryType, length: usize| {
        compressed(|tar| {
            let mut header = file(length);
            header.set_entry_type(kind);
            header.set_path("././@LongLink").unwrap();
            header.set_cksum();
            tar.append(&header, std::io::repeat(b'a').take(length as u64)).unwrap();
            tar.append_data(&mut file(0), "a", &[][..]).unwrap();
        })
    };
    let documents = compressed(|tar| {
        let document = format!("[{}0]", "0,".repeat(480 << 10));
        for number in 0..40 {
            tar.append_data(&mut file(document.len()), format!("{number}.json"), document.as_bytes()).unwrap();
        }
    });
    let entries = compressed(|tar| {
        for number in 0..70_000 {
            tar.append_data(&mut file(0), format!("{number}"), &[][..]).unwrap();
        }
    });
    for (archive, excess) in [
        (long_name(tar::EntryType::GNULongName, 300_000_000), Excess::Header),
        (long_name(tar::EntryType::GNULongLink, 100_000), Excess::Header),
        (long_name(tar::EntryType::XHeader, 100_000), Excess::Header),
        (documents, Excess::Kept),
        (entries, Excess::Entries),
    ] {
        assert!(archive.len() < 4 << 20, "a small file");
        let refused = images_in(&archive).unwrap_err();
        assert!(matches!(refused, ArchiveError::Excess(found) if found == excess), "{refused}; expected: {excess}");
        let plain = zstd_decoded_unless_large(&archive);
        if let Some(refused) = plain.map(|archive| refusal(&archive)) {
            assert!(refused.contains(&excess.to_string()), "not compressed: {refused}");
        }
    }
    // As long as names are in practice.
    let name = "a".repeat(4000);
    let fine = compressed(|tar| tar.append_data(&mut file(0), format!("{name}/{name}"), &[][..]).unwrap());
    assert!(refusal(&fine).contains("neither index.json"));
}

fn zstd_decoded_unless_large(archive: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    zstd::Decoder::new(archive).unwrap().take(200 << 20).read_to_end(&mut plain).unwrap();
    (plain.len() < 200 << 20).then_some(plain)
}

/// Few documents that refer to the same few blobs again and again.
#[test]
fn images_that_refer_without_end_are_refused() {
    let blob = |content: &[u8]| format!("{BLOBS}{}", Digest::of(content).hex());
    let (config, layer) = (b"{}", b"layer");
    let layers = vec![descriptor(media_type::LAYER, layer); 2000];
    let manifest =
        json!({"schemaVersion": 2, "config": descriptor(media_type::CONFIG, config), "layers": layers}).to_string();
    let mut target = descriptor(media_type::MANIFEST, manifest.as_bytes());
    target["annotations"] = json!({"org.opencontainers.image.ref.name": "example.org/a:1"});
    let index = json!({"schemaVersion": 2, "manifests": vec![target; 2000]}).to_string();
    let indexed = tar(&[
        (&blob(config), config),
        (&blob(layer), layer),
        (&blob(manifest.as_bytes()), manifest.as_bytes()),
        ("index.json", index.as_bytes()),
        ("oci-layout", crate::layout::LAYOUT.as_bytes()),
    ]);
    let config =
        json!({"rootfs": {"type": "layers", "diff_ids": vec![Digest::of(layer).to_string(); 2000]}}).to_string();
    let table = json!([{"Config": "c", "RepoTags": vec!["a:1"; 2000], "Layers": vec!["l"; 2000]}]).to_string();
    let saved = tar(&[("c", config.as_bytes()), ("l", layer), ("manifest.json", table.as_bytes())]);
    for archive in [indexed, saved] {
        assert!(refusal(&archive).contains(&Excess::References.to_string()));
    }
}
