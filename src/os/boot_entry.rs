//! What the boot loader can start: a kernel image of each version, whose name says how often it may still be tried.
//!
//! ```text
//! k3s_2+3.efi ──▶ k3s_2+2-1.efi ──▶ k3s_2+1-2.efi ──▶ k3s_2+0-3.efi    systemd-boot renames it before each start of it
//!      └─────────────────┴─────────────────┴──▶ k3s_2.efi              systemd-bless-boot, once boot-complete.target is reached
//! ```
//! systemd-boot starts the newest version that has tries left or needs none.

use std::{cmp::Reverse, fmt};

use crate::Version;

/// How often a new version is started before the other one is.
pub const TRIES: u32 = 3;

/// A kernel image of ours on the ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEntry {
    /// Of the root that it starts.
    pub version: Version,
    /// Where it stands.
    pub assessment: Assessment,
}

/// What is known of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assessment {
    /// It has shown that it is good, or came with the machine.
    Good,
    /// It is being tried.
    OnTrial {
        /// Starts that it has still.
        left: u32,
        /// Starts that it had.
        done: u32,
    },
    /// It was tried, and is not started any more while there is another one.
    Bad {
        /// Starts that it had.
        done: u32,
    },
}

impl BootEntry {
    /// What a name in `EFI/Linux` says; none if it is not one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_prefix("k3s_")?.strip_suffix(".efi")?;
        let (version, tries) = match stem.split_once('+') {
            Some((version, tries)) => (version, Some(tries)),
            None => (stem, None),
        };
        let assessment = match tries.map(|tries| tries.split_once('-').unwrap_or((tries, "0"))) {
            None => Assessment::Good,
            Some((left, done)) => Assessment::of(count(left)?, count(done)?),
        };
        Some(Self { version: version.parse().ok()?, assessment })
    }

    /// Its name in `EFI/Linux`.
    pub fn file_name(&self) -> String {
        match self.assessment {
            Assessment::Good => format!("k3s_{}.efi", self.version),
            Assessment::OnTrial { left, done: 0 } => format!("k3s_{}+{left}.efi", self.version),
            Assessment::OnTrial { left, done } => format!("k3s_{}+{left}-{done}.efi", self.version),
            Assessment::Bad { done } => format!("k3s_{}+0-{done}.efi", self.version),
        }
    }

    /// The one that is started next.
    pub fn next(entries: &[Self]) -> Option<&Self> {
        entries.iter().min_by_key(|entry| (entry.assessment.is_bad(), Reverse(&entry.version)))
    }
}

impl Assessment {
    fn of(left: u32, done: u32) -> Self {
        if left == 0 { Self::Bad { done } } else { Self::OnTrial { left, done } }
    }

    /// Whether it was tried in vain.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Bad { .. })
    }

    /// How often it was started without having shown that it is good.
    pub fn done(self) -> u32 {
        match self {
            Self::Good => 0,
            Self::OnTrial { done, .. } | Self::Bad { done } => done,
        }
    }
}

impl fmt::Display for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("good"),
            Self::OnTrial { left, done: 0 } => write!(f, "new, {left} tries"),
            Self::OnTrial { left, done } => write!(f, "on trial, try {done}, {left} more"),
            Self::Bad { done } => write!(f, "bad, after {done} tries"),
        }
    }
}

/// As the boot loader reads them: digits only.
fn count(digits: &str) -> Option<u32> {
    let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    are_digits.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> BootEntry {
        BootEntry::parse(name).expect(name)
    }

    #[test]
    fn a_name_tells_version_and_tries() {
        for (name, assessment) in [
            ("k3s_0.1.0.efi", Assessment::Good),
            ("k3s_0.1.0+3.efi", Assessment::OnTrial { left: 3, done: 0 }),
            ("k3s_0.1.0+2-1.efi", Assessment::OnTrial { left: 2, done: 1 }),
            ("k3s_0.1.0+0-3.efi", Assessment::Bad { done: 3 }),
        ] {
            assert_eq!(entry(name).assessment, assessment, "{name}");
            assert_eq!(entry(name).version.as_str(), "0.1.0", "{name}");
            assert_eq!(entry(name).file_name(), name);
        }
        assert_eq!(entry("k3s_1+3-0.efi"), entry("k3s_1+3.efi"), "systemd-boot takes both");
    }

    #[test]
    fn names_of_others_are_none() {
        for name in [
            "k3s_2.new",
            "linux.efi",
            "k3s_.efi",
            "k3s_1+.efi",
            "k3s_1+3-.efi",
            "k3s_1+x.efi",
            "k3s_1++3.efi",
            "k3s_1_2.efi",
        ] {
            assert_eq!(BootEntry::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_newest_that_is_not_bad_is_started() {
        for (names, expected) in [
            (&["k3s_1.efi", "k3s_2+3.efi"][..], "k3s_2+3.efi"),
            (&["k3s_1.efi", "k3s_2+0-3.efi"], "k3s_1.efi"),
            (&["k3s_10.efi", "k3s_9.efi"], "k3s_10.efi"),
            // There is no other one.
            (&["k3s_1+0-3.efi", "k3s_2+0-3.efi"], "k3s_2+0-3.efi"),
        ] {
            let entries: Vec<_> = names.iter().map(|name| entry(name)).collect();
            assert_eq!(BootEntry::next(&entries).map(BootEntry::file_name).as_deref(), Some(expected));
        }
        assert_eq!(BootEntry::next(&[]), None);
    }
}
