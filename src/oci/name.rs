//! Names of images.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An image's full name, `registry/path:tag` or `registry/path@sha256:…`: how containerd and CRI look it up. Short names
/// are completed as docker does: `nginx` is `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

/// A text that cannot be the name of an image.
#[derive(Debug, Error)]
#[error("{0:?} is not an image name such as docker.io/library/busybox:1.36")]
pub struct InvalidName(String);

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same image in another registry, `HOST` or `HOST:PORT`.
    #[must_use]
    pub fn in_registry(&self, registry: &str) -> Self {
        let path = self.0.split_once('/').map_or(&*self.0, |(_, path)| path);
        Self(format!("{registry}/{path}"))
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.to_owned());
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (text, None),
        };
        let (repository, tag) = match named.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (named, None),
        };
        let (registry, path) = match repository.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (first, rest),
            _ => ("docker.io", repository),
        };
        let is_path = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c))
        };
        let is_word =
            |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-+:[]".contains(&c));
        if !path.split('/').all(is_path) || !is_word(registry) || ![tag, digest].into_iter().flatten().all(is_word) {
            return Err(invalid());
        }
        let library = if registry == "docker.io" && !path.contains('/') { "library/" } else { "" };
        let suffix = match (tag, digest) {
            (None, None) => ":latest".to_owned(),
            (tag, digest) => format!(
                "{}{}",
                tag.map(|tag| format!(":{tag}")).unwrap_or_default(),
                digest.map(|digest| format!("@{digest}")).unwrap_or_default()
            ),
        };
        Ok(Self(format!("{registry}/{library}{path}{suffix}")))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("rancher/mirrored-pause:3.6", "docker.io/rancher/mirrored-pause:3.6"),
            ("registry.example:5000/a/b", "registry.example:5000/a/b:latest"),
            ("localhost/a:b", "localhost/a:b"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            (&format!("ghcr.io/a/b@{digest}"), &format!("ghcr.io/a/b@{digest}")),
            (&format!("ghcr.io/a/b:1@{digest}"), &format!("ghcr.io/a/b:1@{digest}")),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().as_str(), full);
        }
    }

    #[test]
    fn an_image_has_the_same_path_in_another_registry() {
        for (text, moved) in [
            ("docker.io/k3s-rs/pause:1", "registry.example:5000/k3s-rs/pause:1"),
            ("busybox", "registry.example:5000/library/busybox:latest"),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.in_registry("registry.example:5000").as_str(), moved);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "Nginx", "a b", "a:", "a//b", "/a", "a@", "ftp://a/b", "a\n"] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
    }
}
