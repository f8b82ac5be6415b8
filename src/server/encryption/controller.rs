//! What servers do about encryption by themselves.

use std::{future::pending, sync::Arc, time::Duration};

use k3s_controllers::{Context, Controller, Place, set_annotations};
use k3s_supervise::TaskError;
use kube::Client;
use tokio::{select, time::sleep};

use super::{
    EncryptionError, Reader, SecretsEncryption,
    files::Encryption,
    secrets::Reencrypting,
    servers::{self, ANNOTATION, Servers, disagreement},
    stage::{Stage, State},
};
use crate::BootstrapError;

/// As the status names what servers have in common.
const STORED: &str = "bootstrap data";
/// How often kube-apiserver is asked what it goes by. It looks at the file each minute.
const ASKED_EACH: Duration = Duration::from_secs(3);
/// How often it is looked whether another server has changed something.
const LOOKED_EACH: Duration = Duration::from_secs(10);

/// Brings this server to what is stored, and tells on its Node when kube-apiserver goes by it.
pub(crate) struct KeptEncryption(pub(crate) Arc<SecretsEncryption>);

/// Writes Secrets again when they are to be, also when the server that was asked for it has died.
pub(crate) struct Reencryption {
    pub(crate) encryption: Arc<SecretsEncryption>,
    /// The server, as events name it.
    pub(crate) server: String,
}

impl Controller for KeptEncryption {
    const NAME: &'static str = "secrets-encryption";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let Self(encryption) = self;
        let mut servers = servers::watched(&context.view);
        let (mut known, mut passes) = (encryption.known.subscribe(), encryption.passes.subscribe());
        let mut told = Servers::new();
        loop {
            known.mark_unchanged();
            let stored = match encryption.take().await {
                Err(EncryptionError::Bootstrap(error)) if matches!(*error, BootstrapError::OtherToken { .. }) => {
                    let why = "another server has exchanged the token: start this one again with the new one";
                    context.status.problem(STORED, why);
                    None
                }
                taken => {
                    context.status.solved(STORED);
                    taken?
                }
            };
            let settled = match &stored {
                Some(stored) => encryption.tell(&context, stored, &told).await?,
                None => true,
            };
            let next = async {
                match (settled, encryption.settings.is_shared) {
                    (false, _) => sleep(ASKED_EACH).await,
                    (true, true) => sleep(LOOKED_EACH).await,
                    (true, false) => pending().await,
                }
            };
            select! {
                changed = servers.changed() => told = changed,
                Ok(()) = known.changed() => {}
                Ok(()) = passes.changed() => {
                    let server = encryption.settings.own_node.as_deref().unwrap_or_default();
                    Reencrypting::new(&context, server).run().await?;
                }
                () = next => {}
            }
        }
    }
}

impl SecretsEncryption {
    /// Tells on this server's Node what kube-apiserver goes by; says whether there is nothing left to wait for.
    async fn tell(&self, context: &Context, stored: &Encryption, told: &Servers) -> Result<bool, EncryptionError> {
        let state = &stored.state;
        match self.settings.reader {
            Reader::KubeApiserver => {}
            Reader::NextStart => {
                context.status.set("waiting for this server to be started again, so that kube-apiserver goes by cred/encryption-config.json");
                return Ok(true);
            }
            Reader::Nobody => {
                context.status.set(format!("stage {}, on servers with kube-apiserver", state.stage.name()));
                return Ok(true);
            }
        }
        // The last step takes old keys away, and what is loaded has the same first one.
        let needs_loading = state.stage != Stage::ReencryptFinished && !self.is_noted_loaded(stored);
        if needs_loading && !has_loaded(&context.client, state).await? {
            context
                .status
                .set("waiting for kube-apiserver to load cred/encryption-config.json, which takes up to a minute");
            return Ok(false);
        }
        self.note_loaded(stored);
        context.status.set(format!("stage {}", state.stage.name()));
        let Some(own) = &self.settings.own_node else { return Ok(true) };
        match told.get(own) {
            Some(Some(known)) if *known == state.to_string() => {}
            Some(_) => set_annotations(&context.client, own, &[(ANNOTATION, state.to_string())].into()).await?,
            // Its Node is still to come, and told then.
            None => {}
        }
        Ok(true)
    }
}

impl Controller for Reencryption {
    const NAME: &'static str = "secrets-reencrypt";
    const PLACE: Place = Place::Leader;

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let mut servers = servers::watched(&context.view);
        let mut known = self.encryption.known.subscribe();
        let mut told = None;
        loop {
            let current = known.borrow_and_update().clone();
            if let (Some(current), Some(told)) = (current, &told)
                && current.encryption.state.stage.is_under_way()
            {
                match disagreement(told, &current.encryption.state) {
                    None if current.is_loaded => {
                        self.go_on(&context, &current.encryption).await?;
                        continue;
                    }
                    None => context.status.set("waiting for kube-apiserver to load the configuration"),
                    Some(why) => context.status.set(format!("waiting: {why}")),
                }
            } else {
                context.status.set("no Secret has to be written again");
            }
            select! {
                changed = servers.changed() => told = Some(changed),
                changed = known.changed() => changed.map_err(|_| EncryptionError::Stopped)?,
            }
        }
    }
}

impl Reencryption {
    /// The next step of what is under way, which all servers have.
    async fn go_on(&self, context: &Context, found: &Encryption) -> Result<(), EncryptionError> {
        let (next, stage) = match found.state.stage {
            Stage::RotateKeys => (found.config.with_newest_first(), Stage::ReencryptActive),
            _ => {
                // The second time for those that were being written with the old key while the new one was loaded.
                for _ in 0..2 {
                    Reencrypting::new(context, &self.server).run().await?;
                }
                (found.config.without_old_keys(), Stage::ReencryptFinished)
            }
        };
        match self.encryption.replace(found, next, stage).await {
            // What it is now is seen next.
            Err(EncryptionError::Changed) => self.encryption.take().await.map(drop),
            replaced => replaced,
        }
    }
}

/// Whether kube-apiserver goes by the file of `state`: it tells the digest of what it has loaded.
async fn has_loaded(client: &Client, state: &State) -> Result<bool, EncryptionError> {
    let request = http::Request::get("/metrics").body(Vec::new()).expect("the path is one");
    Ok(is_loaded(&client.request_text(request).await?, &state.hash))
}

fn is_loaded(metrics: &str, hash: &str) -> bool {
    let label = format!("hash=\"sha256:{hash}\"");
    let told = |line: &str| {
        let labels = line.strip_prefix("apiserver_encryption_config_controller_last_config_info{");
        labels.is_some_and(|labels| labels.split([',', '}']).any(|known| known == label))
    };
    metrics.lines().any(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_apiserver_tells_what_it_goes_by() {
        let metrics = "# TYPE apiserver_encryption_config_controller_last_config_info gauge\n\
             apiserver_encryption_config_controller_last_config_info{apiserver_id_hash=\"sha256:aa\",hash=\"sha256:bb\"} 1\n";
        assert!(is_loaded(metrics, "bb"));
        assert!(!is_loaded(metrics, "aa") && !is_loaded(metrics, "b") && !is_loaded("", "bb"));
    }
}
