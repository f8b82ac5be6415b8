//! Who may ask what.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use http::HeaderMap;
use k3s_http::Status;
use k3s_identity::BootstrapToken;
use k3s_listener::Peer;
use k3s_pki::Rejection;
use k3s_supervisor_api::Authorization;
use tracing::debug;

use super::{accounts::Accounts, bootstrap_tokens::BootstrapTokens, guesses::Guesses};
use crate::{
    admin_client::AdminClient,
    caller::{Caller, Group},
};

/// Verifies passwords, client certificates and bootstrap tokens.
#[derive(Debug)]
pub(super) struct Authenticator {
    accounts: Accounts,
    bootstrap_tokens: BootstrapTokens,
    guesses: Arc<Guesses>,
    admin_client: AdminClient,
}

impl Authenticator {
    pub(super) fn new(passwd: PathBuf, admin_client: AdminClient) -> Self {
        let guesses = Arc::new(Guesses::new());
        let accounts = Accounts::new(passwd, guesses.clone());
        Self { accounts, bootstrap_tokens: BootstrapTokens::new(), guesses, admin_client }
    }

    /// Who asks, if it is in one of `groups`. As in k3s: whoever brings nothing is refused like one who may not (403); whoever brings
    /// something that is wrong, and nothing that is right, with 401.
    pub(super) async fn admit(&self, groups: &[Group], headers: &HeaderMap, peer: &Peer) -> Result<Caller, Status> {
        let caller = self.caller(headers, peer).await?;
        if caller.is_some() {
            peer.authenticate();
        }
        caller.filter(|caller| caller.is_in(groups)).ok_or_else(|| Status::forbidden("forbidden"))
    }

    async fn caller(&self, headers: &HeaderMap, peer: &Peer) -> Result<Option<Caller>, Status> {
        let authorization = Authorization::of(headers);
        let (mut wrong, mut unchecked) = (None, None);
        if let Some(Authorization::Basic { user, password }) = &authorization {
            match self.accounts.log_in(user, password, peer.address.ip()).await {
                Ok(Some(caller)) => return Ok(Some(caller)),
                Ok(None) => wrong = Some(format!("the password of user {user:?} is wrong")),
                Err(why) => unchecked = Some(why),
            }
        }
        match peer.identity(SystemTime::now()) {
            Ok(identity) => return Ok(Some(Caller::new(identity.user.as_str(), &identity.groups))),
            Err(Rejection::None | Rejection::NoUser) => {}
            Err(rejection) => wrong = Some(rejection.to_string()),
        }
        match &authorization {
            Some(Authorization::Bootstrap(token)) => match self.bootstrap(token, peer).await? {
                Some(caller) => return Ok(Some(caller)),
                None => wrong = Some(format!("the bootstrap token {} is wrong or over", token.id())),
            },
            Some(Authorization::Bearer) => {
                wrong = Some("a bearer token that is no bootstrap token is not for here".into());
            }
            Some(Authorization::Basic { .. }) | None => {}
        }
        match (unchecked, wrong) {
            (Some(why), _) => Err(why),
            (None, Some(why)) => {
                debug!(peer = %peer.address, why, "Refused a request's credentials.");
                Err(Status::unauthorized("not authorized"))
            }
            (None, None) => Ok(None),
        }
    }

    async fn bootstrap(&self, token: &BootstrapToken, peer: &Peer) -> Result<Option<Caller>, Status> {
        let client = self.admin_client.client()?;
        let guess = self.guesses.begin(peer.address.ip())?;
        let checked = self.bootstrap_tokens.log_in(client, token).await;
        if !matches!(checked, Ok(None)) {
            guess.not_wrong();
        }
        checked
    }
}
