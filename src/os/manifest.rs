//! What a set for updates holds, signed by whoever makes images: its version, the machines that it is for, and each part by size and digest.

use std::fmt;

use minisign_verify::{Error as SignatureError, PublicKey, Signature};
use serde::{Deserialize, Serialize};

use crate::Version;

/// Of the document. A set of another one is for programs that are not there yet.
pub const FORMAT: u32 = 1;

/// The signed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the machine is of after the update.
    pub version: Version,
    /// The machines that it is for, as Linux calls them: `x86_64`, `aarch64`.
    pub architecture: String,
    /// The root file system.
    pub root: Content,
    /// Its dm-verity hashes.
    pub verity: Content,
    /// The kernel image, with the root hash in its command line.
    pub kernel: Content,
}

/// What a part has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// In bytes.
    pub size: u64,
    /// SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

/// The parts in the order in which they come, and are written: the kernel last, since with it the new version counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The root file system.
    Root,
    /// Its hashes.
    Verity,
    /// The kernel image.
    Kernel,
}

/// Whose sets a machine takes.
#[derive(Debug)]
pub struct UpdateKey(PublicKey);

/// Why a manifest is not believed, or not followed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The image holds a file that is no key.
    #[error("the key of this image ({path}) is no public key of minisign: {0}", path = UpdateKey::PATH)]
    Key(SignatureError),
    /// Somebody else has signed it.
    #[error(
        "it is signed with another key than this image takes updates of ({}): use a set of whoever made the image",
        UpdateKey::PATH
    )]
    OtherKey,
    /// It, or its signature, was changed or cut.
    #[error("its signature does not fit: it was changed on its way, fetch it again")]
    Signature,
    /// It is signed, and still makes no sense to us.
    #[error("its manifest is of format {0}, and this version knows {FORMAT}: update to a version in between first")]
    Format(u32),
    /// The same.
    #[error("its manifest cannot be read: {0}")]
    Unreadable(serde_json::Error),
    /// It is for other machines.
    #[error("it is for {set}, and this machine is {machine}")]
    Architecture {
        /// What the set is for.
        set: String,
        /// What this is.
        machine: String,
    },
    /// The boot loader would go on with the one that runs.
    #[error(
        "it is version {set}, which is not newer than {running}, which runs: `k3s os rollback` goes back to the version of before"
    )]
    NotNewer {
        /// What the set holds.
        set: Version,
        /// What runs.
        running: Version,
    },
}

impl Part {
    /// Its name in a set.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root.raw",
            Self::Verity => "verity.raw",
            Self::Kernel => "kernel.efi",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl UpdateKey {
    /// Where an image has it, below its root; one without it takes no updates.
    pub const PATH: &str = "/usr/share/k3s/update.pub";

    /// The key in a file of minisign.
    ///
    /// # Errors
    /// It holds none.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        PublicKey::decode(text).map(Self).map_err(ManifestError::Key)
    }

    /// The manifest in `bytes`, if `signature` is one of this key for them.
    ///
    /// # Errors
    /// The signature is another one's or does not fit, or the manifest is none of a format that is known.
    pub fn open(&self, bytes: &[u8], signature: &str) -> Result<Manifest, ManifestError> {
        let signature = Signature::decode(signature).map_err(|_| ManifestError::Signature)?;
        self.0.verify(bytes, &signature, false).map_err(|error| match error {
            SignatureError::UnexpectedKeyId => ManifestError::OtherKey,
            _ => ManifestError::Signature,
        })?;
        Manifest::parse(bytes)
    }
}

impl Manifest {
    fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        // Another format may have other keys.
        let Format { format } = serde_json::from_slice(bytes).map_err(ManifestError::Unreadable)?;
        if format != FORMAT {
            return Err(ManifestError::Format(format));
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Unreadable)
    }

    /// Whether a machine of this architecture, on which `running` runs, can take it.
    ///
    /// # Errors
    /// It is for other machines, or not newer.
    pub fn check(&self, architecture: &str, running: &Version) -> Result<(), ManifestError> {
        if self.architecture != architecture {
            let (set, machine) = (self.architecture.clone(), architecture.to_owned());
            return Err(ManifestError::Architecture { set, machine });
        }
        if self.version <= *running {
            return Err(ManifestError::NotNewer { set: self.version.clone(), running: running.clone() });
        }
        Ok(())
    }

    /// What a part of it has to be.
    pub fn content(&self, part: Part) -> &Content {
        match part {
            Part::Root => &self.root,
            Part::Verity => &self.verity,
            Part::Kernel => &self.kernel,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Made by `minisign -G -W`, and what it signed. The parts are `root of 2`, `hashes` and `kernel`.
    pub(crate) const KEY: &str = include_str!("testdata/update.pub");
    pub(crate) const MANIFEST: &[u8] = include_bytes!("testdata/manifest.json");
    pub(crate) const SIGNATURE: &str = include_str!("testdata/manifest.json.minisig");
    const OTHER_KEY: &str = include_str!("testdata/other.pub");

    fn manifest() -> Manifest {
        UpdateKey::parse(KEY).unwrap().open(MANIFEST, SIGNATURE).unwrap()
    }

    #[test]
    fn what_is_signed_is_read() {
        let manifest = manifest();
        assert_eq!((manifest.version.as_str(), manifest.architecture.as_str()), ("2", "x86_64"));
        assert_eq!(manifest.content(Part::Root).size, 9);
        assert_eq!(serde_json::to_vec(&manifest).unwrap(), MANIFEST, "it is written as it is read");
    }

    #[test]
    fn what_is_not_signed_with_the_key_is_not_believed() {
        let key = UpdateKey::parse(KEY).unwrap();
        for at in (0..MANIFEST.len()).step_by(7) {
            let mut changed = MANIFEST.to_vec();
            changed[at] ^= 1;
            assert!(matches!(key.open(&changed, SIGNATURE), Err(ManifestError::Signature)), "byte {at}");
        }
        for signature in ["", "untrusted comment: x\n", &SIGNATURE.replace("k3s 2", "k3s 3")] {
            assert!(matches!(key.open(MANIFEST, signature), Err(ManifestError::Signature)), "{signature}");
        }
        let other = UpdateKey::parse(OTHER_KEY).unwrap();
        assert!(matches!(other.open(MANIFEST, SIGNATURE), Err(ManifestError::OtherKey)));
        assert!(matches!(UpdateKey::parse("key\n"), Err(ManifestError::Key(_))));
    }

    #[test]
    fn a_machine_takes_what_is_for_it_and_newer() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let said = |architecture, running| {
            manifest().check(architecture, &version(running)).map_err(|error| error.to_string())
        };
        assert_eq!(said("x86_64", "1.9"), Ok(()));
        assert_eq!(said("aarch64", "1"), Err("it is for x86_64, and this machine is aarch64".into()));
        for running in ["2", "2.1", "10"] {
            let sentence = said("x86_64", running).unwrap_err();
            assert!(
                sentence.starts_with(&format!("it is version 2, which is not newer than {running}, ")),
                "{sentence}"
            );
        }
    }

    #[test]
    fn another_format_is_told_from_a_mistake() {
        let said = |text: &str| Manifest::parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            said(r#"{"format":2,"slots":[]}"#),
            "its manifest is of format 2, and this version knows 1: update to a version in between first"
        );
        assert!(said(r#"{"format":1,"version":"2"}"#).starts_with("its manifest cannot be read: "));
        let bad_version = String::from_utf8_lossy(MANIFEST).replace(r#""2""#, r#""../2""#);
        assert!(said(&bad_version).contains("is no version"));
    }
}
