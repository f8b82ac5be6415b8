//! Where a rotation of keys is, as it stands in `cred/encryption-state.json`, in the bootstrap data and on each server's Node.

use std::{fmt, str::FromStr};

use super::config::{EncryptionConfig, hash_of};

/// The stages, with k3s' names.
///
/// ```text
///            prepare              rotate                reencrypt
/// start ─────────────► prepare ───────────► rotate ───────────────────┐
///   │        rotate-keys             all servers have it              ▼           all Secrets are written
///   ├──────────────────────► rotate_keys ─────────────────► reencrypt_active ──────────────────────────► reencrypt_finished
///   └──────────────────────────────────────────────────────────────┘ enable, disable                     (and on as from start)
/// ```
/// From `rotate_keys` and `reencrypt_active` the server that leads goes on by itself, also after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The key is the first one.
    Start,
    /// A new key reads.
    Prepare,
    /// The new key writes.
    Rotate,
    /// A new key reads, and writes as soon as all servers have it.
    RotateKeys,
    /// Secrets are being written again.
    ReencryptActive,
    /// They are, and old keys are gone.
    ReencryptFinished,
}

/// A stage, and the file that it is about. All servers show the same when they have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) stage: Stage,
    /// SHA-256 of the configuration's file, in hex.
    pub(crate) hash: String,
}

/// A text that is no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a stage and a hash")]
pub(crate) struct NoState;

impl Stage {
    const ALL: [Self; 6] =
        [Self::Start, Self::Prepare, Self::Rotate, Self::RotateKeys, Self::ReencryptActive, Self::ReencryptFinished];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Prepare => "prepare",
            Self::Rotate => "rotate",
            Self::RotateKeys => "rotate_keys",
            Self::ReencryptActive => "reencrypt_active",
            Self::ReencryptFinished => "reencrypt_finished",
        }
    }

    /// Whether the server that leads goes on from here.
    pub(super) fn is_under_way(self) -> bool {
        matches!(self, Self::RotateKeys | Self::ReencryptActive)
    }
}

impl State {
    pub(super) fn of(stage: Stage, config: &EncryptionConfig) -> Self {
        Self { stage, hash: hash_of(&config.to_json()) }
    }

    /// The state that goes with a file: the one that is known, unless a program was stopped between the file and its state, as k3s may be.
    /// Whatever it was doing, with several keys Secrets may be written with any of them.
    pub(super) fn fitting(known: Option<Self>, config: &EncryptionConfig, file: &[u8]) -> Self {
        let hash = hash_of(file);
        let stage = match known {
            Some(known) if known.hash == hash => return known,
            Some(Self { stage: stage @ (Stage::Prepare | Stage::Rotate | Stage::RotateKeys), .. }) => stage,
            Some(_) | None if config.encrypts() && config.has_old_keys() => Stage::ReencryptActive,
            Some(Self { stage, .. }) => stage,
            None => Stage::Start,
        };
        Self { stage, hash }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.stage.name(), self.hash)
    }
}

impl FromStr for State {
    type Err = NoState;

    fn from_str(text: &str) -> Result<Self, NoState> {
        let (stage, hash) = text.trim().split_once('-').ok_or(NoState)?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        // Before k3s 1.28 there was a stage for what was asked for and had not begun.
        let stage = if stage == "reencrypt_request" { Stage::ReencryptActive.name() } else { stage };
        let stage = Stage::ALL.into_iter().find(|known| known.name() == stage).filter(|_| is_hash).ok_or(NoState)?;
        Ok(Self { stage, hash: hash.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k3s_config::server::EncryptionProvider::AesCbc;

    use super::*;

    #[test]
    fn every_state_is_read_as_it_was_written() {
        let config = EncryptionConfig::identity();
        for stage in Stage::ALL {
            let state = State::of(stage, &config);
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        for bad in [
            "",
            "start",
            "start-",
            "start-12",
            "begin-6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        ] {
            assert_eq!(bad.parse::<State>(), Err(NoState), "{bad}");
        }
    }

    #[test]
    fn a_file_whose_state_was_not_written_any_more_is_gone_on_with() {
        let one = EncryptionConfig::new(AesCbc).unwrap();
        let two = one.with_new_key(AesCbc, Timestamp::UNIX_EPOCH).unwrap().with_newest_first();
        let fitting =
            |known: Option<State>, config: &EncryptionConfig| State::fitting(known, config, &config.to_json()).stage;
        assert_eq!(fitting(None, &one), Stage::Start);
        assert_eq!(fitting(None, &two), Stage::ReencryptActive);
        assert_eq!(fitting(Some(State::of(Stage::Start, &one)), &two), Stage::ReencryptActive);
        assert_eq!(fitting(Some(State::of(Stage::Prepare, &one)), &two), Stage::Prepare);
        assert_eq!(fitting(Some(State::of(Stage::Start, &one)), &one.switched(false).unwrap()), Stage::Start);
        assert_eq!(fitting(Some(State::of(Stage::Rotate, &two)), &two), Stage::Rotate);
    }
}
