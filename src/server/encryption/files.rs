//! `cred/encryption-config.json` and `cred/encryption-state.json`, on this disk and in the bootstrap data.

use std::path::Path;

use k3s_config::server::EncryptionProvider;
use k3s_files::{self as files, PRIVATE, is_torn};
use k3s_supervisor_api::BootstrapData;
use tracing::{info, warn};

use super::{
    EncryptionError,
    config::{BadConfig, EncryptionConfig},
    stage::{Stage, State},
};
use crate::bootstrap_data;

/// Both files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encryption {
    pub(super) config: EncryptionConfig,
    pub(super) state: State,
}

/// What a server that is to encrypt Secrets starts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// There is no Secret yet.
    NewCluster,
    /// There are Secrets, and no other server that would have to read them.
    OneServer,
    /// Other servers have no key, and could not read what this one writes.
    BesideOthers,
}

impl Encryption {
    /// # Errors
    /// It is none that could be read again.
    pub(super) fn new(config: EncryptionConfig, stage: Stage) -> Result<Self, BadConfig> {
        EncryptionConfig::parse(&config.to_json())?;
        Ok(Self { state: State::of(stage, &config), config })
    }

    /// What all servers go by; `None` where nothing is set up.
    pub(super) fn stored_in(data: &BootstrapData) -> Result<Option<Self>, BadConfig> {
        let (config, state) = bootstrap_data::encryption(data);
        Self::read(config.unwrap_or_default(), state.unwrap_or_default())
    }

    fn read(config: &[u8], state: &[u8]) -> Result<Option<Self>, BadConfig> {
        if is_torn(config) {
            return Ok(None);
        }
        let known = std::str::from_utf8(state).ok().and_then(|text| text.parse().ok());
        let file = config;
        let config = EncryptionConfig::parse(file)?;
        Ok(Some(Self { state: State::fitting(known, &config, file), config }))
    }

    pub(super) fn store_in(&self, data: &mut BootstrapData, on_disk: &BootstrapData) {
        bootstrap_data::set_encryption(data, on_disk, self.config.to_json(), self.state.to_string().into_bytes());
    }
}

/// Sets encryption up on this disk where it is `wanted` and not there; a state that is missing or of another file is made to fit.
///
/// # Errors
/// The files cannot be read or written, or there is no randomness.
pub(crate) fn ensure(server: &Path, wanted: Option<EncryptionProvider>, setup: Setup) -> Result<(), EncryptionError> {
    let [config_file, state_file] = bootstrap_data::ENCRYPTION_FILES.map(|file| server.join(file));
    let config = files::read(&config_file)?.unwrap_or_default();
    let state = files::read(&state_file)?.unwrap_or_default();
    match (Encryption::read(&config, &state), wanted) {
        (Ok(Some(found)), wanted) => {
            let text = found.state.to_string();
            if text.as_bytes() != state {
                files::write(&state_file, text.as_bytes(), PRIVATE)?;
            }
            if wanted.is_none() {
                info!("Secrets stay encrypted as the cluster has it set up, also without --secrets-encryption.");
            }
        }
        (Ok(None), Some(provider)) => {
            let (config, stage) = match setup {
                Setup::NewCluster => (EncryptionConfig::new(provider)?, Stage::Start),
                Setup::OneServer => (EncryptionConfig::new(provider)?, Stage::ReencryptActive),
                Setup::BesideOthers => (EncryptionConfig::identity(), Stage::Start),
            };
            let made = Encryption::new(config, stage)?;
            // A state alone is made anew, and a configuration alone would count as one that has been there for long.
            files::write(&state_file, made.state.to_string().as_bytes(), PRIVATE)?;
            files::write(&config_file, &made.config.to_json(), PRIVATE)?;
            match setup {
                Setup::NewCluster | Setup::OneServer => {
                    info!(provider = provider.name(), "Secrets are encrypted from now on.");
                }
                Setup::BesideOthers => warn!(
                    "Secrets are not encrypted yet, since other servers could not read them: start all servers with --secrets-encryption, and \
                     then run `k3s secrets-encrypt rotate-keys`."
                ),
            }
        }
        (Ok(None), None) => {}
        (Err(error), _) => warn!(
            path = %config_file.display(), %error,
            "kube-apiserver goes by an encryption configuration that k3s has not written: its keys are yours to exchange."
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use k3s_config::server::EncryptionProvider::{AesCbc, Secretbox};
    use tempfile::TempDir;

    use super::*;

    fn server() -> TempDir {
        let server = tempfile::tempdir().unwrap();
        fs::create_dir(server.path().join("cred")).unwrap();
        server
    }

    fn read(server: &TempDir) -> Option<Encryption> {
        Encryption::stored_in(&bootstrap_data::from_disk(server.path()).unwrap()).unwrap()
    }

    #[test]
    fn it_is_set_up_once_where_it_is_wanted() {
        let server = server();
        ensure(server.path(), None, Setup::NewCluster).unwrap();
        assert_eq!(read(&server), None);
        ensure(server.path(), Some(AesCbc), Setup::NewCluster).unwrap();
        let made = read(&server).unwrap();
        assert_eq!((made.state.stage, made.config.active_key().as_deref()), (Stage::Start, Some("AES-CBC aescbckey")));
        for file in ["cred/encryption-config.json", "cred/encryption-state.json"] {
            assert_eq!(fs::metadata(server.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        for (wanted, setup) in [(Some(Secretbox), Setup::OneServer), (None, Setup::BesideOthers)] {
            ensure(server.path(), wanted, setup).unwrap();
            assert_eq!(read(&server).as_ref(), Some(&made));
        }
    }

    #[test]
    fn secrets_that_are_there_are_encrypted_unless_others_could_not_read_them() {
        for (setup, stage, encrypts) in
            [(Setup::OneServer, Stage::ReencryptActive, true), (Setup::BesideOthers, Stage::Start, false)]
        {
            let server = server();
            ensure(server.path(), Some(Secretbox), setup).unwrap();
            let made = read(&server).unwrap();
            assert_eq!((made.state.stage, made.config.encrypts()), (stage, encrypts));
        }
    }

    #[test]
    fn a_state_is_made_to_fit_and_a_foreign_file_left_alone() {
        let server = server();
        ensure(server.path(), Some(AesCbc), Setup::NewCluster).unwrap();
        let made = read(&server);
        let path = |file: &str| server.path().join("cred").join(file);
        fs::write(path("encryption-state.json"), "").unwrap();
        ensure(server.path(), Some(AesCbc), Setup::OneServer).unwrap();
        assert_eq!(read(&server), made);
        fs::write(path("encryption-config.json"), "kind: EncryptionConfiguration").unwrap();
        ensure(server.path(), Some(AesCbc), Setup::OneServer).unwrap();
        assert_eq!(fs::read_to_string(path("encryption-config.json")).unwrap(), "kind: EncryptionConfiguration");
    }
}
