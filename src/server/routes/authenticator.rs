//! Who may ask what.

use std::{path::PathBuf, time::SystemTime};

use http::HeaderMap;
use k3s_identity::BootstrapToken;
use k3s_pki::Rejection;
use tracing::debug;

use super::{
    accounts::Accounts,
    authorization::Authorization,
    bootstrap_token,
    caller::{Caller, Group},
};
use crate::{
    core::Core,
    front::{Peer, Status},
};

/// Verifies passwords, client certificates and bootstrap tokens.
#[derive(Debug)]
pub(super) struct Authenticator {
    accounts: Accounts,
    core: Core,
}

impl Authenticator {
    pub(super) fn new(passwd: PathBuf, core: Core) -> Self {
        Self { accounts: Accounts::new(passwd), core }
    }

    /// Who asks, if it is in one of `groups`. As in k3s: whoever brings nothing is refused like one who may not (403); whoever brings
    /// something that is wrong, and nothing that is right, with 401.
    pub(super) async fn admit(&self, groups: &[Group], headers: &HeaderMap, peer: &Peer) -> Result<Caller, Status> {
        match self.caller(headers, peer).await? {
            Some(caller) if caller.is_in(groups) => Ok(caller),
            _ => Err(Status::forbidden("forbidden")),
        }
    }

    async fn caller(&self, headers: &HeaderMap, peer: &Peer) -> Result<Option<Caller>, Status> {
        let authorization = Authorization::of(headers);
        let (mut wrong, mut unchecked) = (None, None);
        if let Some(Authorization::Basic { user, password }) = &authorization {
            match self.accounts.log_in(user, password).await {
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
            Some(Authorization::Bootstrap(token)) => match self.bootstrap(token).await? {
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

    async fn bootstrap(&self, token: &BootstrapToken) -> Result<Option<Caller>, Status> {
        bootstrap_token::log_in(self.core.client()?, token).await.map_err(|error| {
            debug!(%error, "A bootstrap token cannot be checked.");
            Status::unavailable("apiserver not ready")
        })
    }
}
