//! The images that the project makes, by what they are called in containerd. Declarations say so and nobody else: `images/<name>/image.json`
//! has the repository and the tag, which is the version of a component where it names one.

include!(concat!(env!("OUT_DIR"), "/declared.rs"));

/// The image declared as `name`, with its registry and tag: `coredns` is `docker.io/k3s-rs/coredns:1.15.0`.
pub fn named(name: &str) -> Option<&'static str> {
    DECLARED.iter().find(|(declared, _)| *declared == name).map(|(_, image)| *image)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The build script is not run again for a new folder.
    #[test]
    fn each_declaration_is_built_in() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
        for entry in fs::read_dir(images).unwrap() {
            let folder = entry.unwrap();
            let name = folder.file_name().into_string().unwrap();
            let declared = folder.path().join("image.json").exists();
            assert_eq!(named(&name).is_some(), declared, "{name}: touch src/images/build.rs");
        }
    }

    #[test]
    fn an_image_has_the_version_of_its_component() {
        let go_mod = include_str!("../../nix/components/coredns/go.mod");
        let (repository, version) = named("coredns").unwrap().rsplit_once(':').unwrap();
        assert_eq!(repository, "docker.io/k3s-rs/coredns");
        assert!(go_mod.contains(&format!("require github.com/coredns/coredns v{version}\n")), "{version}");
        assert_eq!(named("k3s").unwrap().rsplit_once(':').unwrap().1, env!("CARGO_PKG_VERSION"));
        assert_eq!(named("corends"), None);
        assert_eq!(named("pause"), Some(PAUSE));
    }
}
