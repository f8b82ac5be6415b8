//! What users ask for: `k3s secrets-encrypt`, of ours and of k3s.

use std::time::Duration;

use jiff::Timestamp;
use k3s_http::Status;
use k3s_supervisor_api::{EncryptionRequest, EncryptionStatus};
use kube::Client;
use tokio::time::timeout;
use tracing::info;

use super::{
    EncryptionError, Reader, SecretsEncryption,
    config::EncryptionConfig,
    files::Encryption,
    servers::{self, disagreement},
    stage::Stage,
};

/// How long a request waits for Secrets to be written again. They are, whether it waits or not.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Switch { on: bool },
    Prepare,
    Rotate,
    Reencrypt { keep_keys: bool },
    RotateKeys,
}

impl Asked {
    fn of(request: &EncryptionRequest) -> Result<Self, EncryptionError> {
        match (request.stage.as_deref(), request.enabled) {
            (Some("prepare"), _) => Ok(Self::Prepare),
            (Some("rotate"), _) => Ok(Self::Rotate),
            (Some("reencrypt_active"), _) => Ok(Self::Reencrypt { keep_keys: request.skip }),
            (Some("rotate_keys"), _) => Ok(Self::RotateKeys),
            (Some(other), _) => {
                let other: String = other.chars().take(40).collect();
                Err(EncryptionError::BadRequest(format!("unknown stage {other} requested")))
            }
            (None, Some(on)) => Ok(Self::Switch { on }),
            (None, None) => Err(EncryptionError::BadRequest("the request names neither a stage nor enable".into())),
        }
    }

    /// The stages that it follows on, and what to do in another one.
    fn follows(self) -> (&'static [Stage], &'static str) {
        match self {
            Self::Switch { .. } | Self::Prepare | Self::RotateKeys => (
                &[Stage::Start, Stage::ReencryptFinished],
                "let the rotation come to its end first: from prepare by `rotate`, from rotate by `reencrypt`, from others by itself",
            ),
            Self::Rotate => (&[Stage::Prepare], "run `k3s secrets-encrypt prepare` first"),
            Self::Reencrypt { .. } => (&[Stage::Rotate], "run `k3s secrets-encrypt rotate` first"),
        }
    }
}

impl SecretsEncryption {
    /// How Secrets are encrypted. Where that is not set up, nobody has to be asked.
    pub(crate) async fn status(
        &self,
        client: impl FnOnce() -> Result<Client, Status>,
    ) -> Result<EncryptionStatus, Status> {
        let found = self.take().await.map_err(|error| error.status())?;
        let Some(Encryption { config, state }) = found else { return Ok(EncryptionStatus::default()) };
        let servers = servers::listed(&client()?).await.map_err(|error| EncryptionError::from(error).status())?;
        let disagreement = disagreement(&servers, &state);
        Ok(EncryptionStatus {
            stage: state.stage.name().to_owned(),
            active_key: config.active_key().unwrap_or_default(),
            enabled: Some(config.encrypts()),
            hashes_match: disagreement.is_none(),
            hash_error: disagreement.unwrap_or_default(),
            inactive_keys: config.inactive_keys(),
        })
    }

    /// Whether this server can change anything about it.
    ///
    /// # Errors
    /// [`EncryptionError::NoKubeApiserver`]
    pub(crate) fn check_place(&self) -> Result<(), EncryptionError> {
        if self.settings.reader == Reader::Nobody { Err(EncryptionError::NoKubeApiserver) } else { Ok(()) }
    }

    /// Does what is asked for, and waits until Secrets are written again where that is part of it.
    pub(crate) async fn request(&self, client: &Client, request: &EncryptionRequest) -> Result<(), EncryptionError> {
        let asked = Asked::of(request)?;
        let Some(found) = self.take().await? else {
            return match asked {
                Asked::Switch { on: true } => self.set_up().await,
                Asked::Switch { on: false }
                | Asked::Prepare
                | Asked::Rotate
                | Asked::Reencrypt { .. }
                | Asked::RotateKeys => Err(EncryptionError::NotSetUp),
            };
        };
        if matches!(asked, Asked::Switch { on } if on == found.config.encrypts()) {
            return Ok(());
        }
        if self.settings.reader == Reader::NextStart {
            return Err(EncryptionError::NotRead);
        }
        if !request.force {
            let (stages, wanted) = asked.follows();
            if !stages.contains(&found.state.stage) {
                return Err(EncryptionError::WrongStage { stage: found.state.stage.name(), wanted });
            }
            if let Some(why) = disagreement(&servers::listed(client).await?, &found.state) {
                return Err(EncryptionError::Disagreement(why));
            }
        }
        match self.next(&found, asked)? {
            Some((config, stage)) => self.replace(&found, config, stage).await?,
            None => self.passes.send_modify(|passes| *passes += 1),
        }
        match asked {
            Asked::Switch { .. } | Asked::RotateKeys => self.finished().await,
            // As k3s, whose clients wait ten seconds.
            Asked::Prepare | Asked::Rotate | Asked::Reencrypt { .. } => Ok(()),
        }
    }

    /// What is to be stored; `None` if only Secrets are to be written again.
    fn next(&self, found: &Encryption, asked: Asked) -> Result<Option<(EncryptionConfig, Stage)>, EncryptionError> {
        let config = &found.config;
        let with_new_key = || config.with_new_key(self.settings.provider, Timestamp::now());
        if !config.encrypts() && !matches!(asked, Asked::Switch { .. } | Asked::RotateKeys) {
            return Err(EncryptionError::Off);
        }
        Ok(Some(match asked {
            Asked::Switch { on } => (config.switched(on).ok_or(EncryptionError::NoKeyYet)?, Stage::ReencryptActive),
            Asked::Prepare => (with_new_key()?, Stage::Prepare),
            Asked::Rotate => (config.with_newest_first(), Stage::Rotate),
            Asked::Reencrypt { keep_keys: true } => return Ok(None),
            Asked::Reencrypt { keep_keys: false } => (config.clone(), Stage::ReencryptActive),
            // Other servers have to read what this one is going to write.
            Asked::RotateKeys if self.settings.is_shared => (with_new_key()?, Stage::RotateKeys),
            Asked::RotateKeys => (with_new_key()?.with_newest_first(), Stage::ReencryptActive),
        }))
    }

    /// Lets all servers read what is going to be encrypted, once they have started again.
    async fn set_up(&self) -> Result<(), EncryptionError> {
        self.change(|stored| match stored {
            None => Ok((EncryptionConfig::identity(), Stage::Start)),
            Some(_) => Err(EncryptionError::Changed),
        })
        .await?;
        info!("Encryption of Secrets is set up, and begins when servers have started again and a key is made.");
        Ok(())
    }

    /// Waits until the server that leads has written all Secrets again.
    async fn finished(&self) -> Result<(), EncryptionError> {
        let mut known = self.known.subscribe();
        let finished = known.wait_for(|known| {
            known.as_ref().is_some_and(|known| known.encryption.state.stage == Stage::ReencryptFinished)
        });
        match timeout(PATIENCE, finished).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(EncryptionError::Stopped),
            Err(_) => Err(EncryptionError::UnderWay),
        }
    }
}
