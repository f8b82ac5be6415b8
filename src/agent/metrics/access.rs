//! Who may see the page: by a certificate of the cluster's or by a bearer token, and by the API's word.
//!
//! What k3s' delegated authentication and authorization do: a certificate of the client authority names a user by itself, a token is shown
//! to the API (`TokenReview`), and the API says whether that user may `get` the path `/metrics` (`SubjectAccessReview`). Members of
//! `system:masters` may without a question. Nobody comes in without a name.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest;
use http::{HeaderMap, header};
use k3s_listener::Peer;
use k3s_pki::{ClientCa, ClientIdentity};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, time::timeout};
use tracing::debug;

use super::refusal::Refusal;
use crate::error::chain;

/// How long a verdict holds, as in Kubernetes' delegated options.
const HOLDS: Duration = Duration::from_secs(10);
/// Verdicts that are kept: strangers cannot make us keep more.
const KEPT: usize = 256;
/// Questions to the API at one time: strangers cannot make us ask more.
const QUESTIONS: usize = 4;
/// How long one request's questions may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Its members may do everything.
const MASTERS: &str = "system:masters";
/// What everybody with a name is in.
const AUTHENTICATED: &str = "system:authenticated";
/// Where a user's certificate is named.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Decides who may see the page.
pub(super) struct Access {
    /// What clients' certificates are verified by.
    pub(super) client_ca: Arc<ClientCa>,
    /// Asks with kubelet's credentials, which suffice for both reviews.
    client: Client,
    questions: Semaphore,
    verdicts: Mutex<Verdicts>,
}

/// Whether the page is shown.
pub(super) type Verdict = Result<(), Refusal>;

/// What a request shows for itself.
enum Credential {
    /// A certificate of the cluster's, which names a user.
    Certificate(ClientIdentity),
    /// Whatever the API makes of it.
    Token(String),
}

/// SHA-256 of a credential, as tokens are not to lie around.
type Key = [u8; digest::SHA256_OUTPUT_LEN];

/// What was decided of late.
#[derive(Debug, Default)]
struct Verdicts(HashMap<Key, (Instant, Verdict)>);

impl Access {
    pub(super) fn new(client_ca: ClientCa, client: Client) -> Self {
        Self {
            client_ca: Arc::new(client_ca),
            client,
            questions: Semaphore::new(QUESTIONS),
            verdicts: Mutex::default(),
        }
    }

    /// Decides of a request of `peer` with these headers.
    pub(super) async fn decide(&self, headers: &HeaderMap, peer: &Peer) -> Verdict {
        let credential = Credential::of(headers, peer, SystemTime::now()).ok_or(Refusal::Unauthorized)?;
        let key = credential.key();
        if let Some(verdict) = self.verdicts().find(&key, Instant::now()) {
            return verdict;
        }
        let asked = timeout(PATIENCE, self.ask(credential)).await;
        let verdict = asked.map_err(|_| Refusal::Unavailable)?.map_err(|error| {
            debug!(error = chain(&error), "The API does not say who may see metrics.");
            Refusal::Unavailable
        })?;
        self.verdicts().keep(key, verdict.clone(), Instant::now());
        verdict
    }

    async fn ask(&self, credential: Credential) -> Result<Verdict, kube::Error> {
        let user = match credential {
            Credential::Certificate(identity) => user_of(identity),
            Credential::Token(token) => match self.review(token).await? {
                Some(user) => user,
                None => return Ok(Err(Refusal::Unauthorized)),
            },
        };
        if user.groups.iter().flatten().any(|group| group == MASTERS) {
            return Ok(Ok(()));
        }
        let name = user.username.clone().unwrap_or_default();
        let review = SubjectAccessReview { spec: question(user), ..SubjectAccessReview::default() };
        let status = self.post(&review).await?.status.unwrap_or_default();
        Ok(if status.allowed && status.denied != Some(true) {
            Ok(())
        } else {
            Err(Refusal::Forbidden { user: name, reason: status.reason.unwrap_or_default() })
        })
    }

    /// Whose token this is, by the API.
    async fn review(&self, token: String) -> Result<Option<UserInfo>, kube::Error> {
        let spec = TokenReviewSpec { token, audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = self.post(&review).await?.status.unwrap_or_default();
        let user = status.user.filter(|user| status.authenticated == Some(true) && user.username.is_some());
        Ok(user.map(authenticated))
    }

    /// Asks, when it is our turn.
    async fn post<K>(&self, review: &K) -> Result<K, kube::Error>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
    {
        let _turn = self.questions.acquire().await.expect("it is never closed");
        Api::all(self.client.clone()).create(&PostParams::default(), review).await
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        // A cache is whole at any time.
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Credential {
    /// A certificate goes before a token, as in Kubernetes; one that means nothing leaves the word to it.
    fn of(headers: &HeaderMap, peer: &Peer, now: SystemTime) -> Option<Self> {
        match peer.identity(now) {
            Ok(identity) => Some(Self::Certificate(identity.clone())),
            Err(rejection) => {
                let token = bearer_token(headers);
                if token.is_none() {
                    debug!(%rejection, "Somebody without credentials asked for metrics.");
                }
                token.map(|token| Self::Token(token.to_owned()))
            }
        }
    }

    fn key(&self) -> Key {
        let text = match self {
            Self::Certificate(identity) => format!("certificate {}", identity.credential_id),
            Self::Token(token) => format!("token {token}"),
        };
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        digest.as_ref().try_into().expect("SHA-256 has as many bytes")
    }
}

impl Verdicts {
    fn find(&self, key: &Key, now: Instant) -> Option<Verdict> {
        let (since, verdict) = self.0.get(key)?;
        (now.saturating_duration_since(*since) < HOLDS).then(|| verdict.clone())
    }

    fn keep(&mut self, key: Key, verdict: Verdict, now: Instant) {
        if self.0.len() >= KEPT {
            self.0.retain(|_, (since, _)| now.saturating_duration_since(*since) < HOLDS);
        }
        if self.0.len() >= KEPT
            && let Some(oldest) = self.0.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| *key)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(key, (now, verdict));
    }
}

fn user_of(identity: ClientIdentity) -> UserInfo {
    authenticated(UserInfo {
        username: Some(identity.user),
        groups: Some(identity.groups.into_iter().collect()),
        extra: Some(BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![identity.credential_id])])),
        uid: None,
    })
}

/// Adds the group of all who have a name.
fn authenticated(mut user: UserInfo) -> UserInfo {
    let groups = user.groups.get_or_insert_default();
    if !groups.iter().any(|group| group == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    user
}

fn question(user: UserInfo) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: user.username,
        groups: user.groups,
        uid: user.uid,
        extra: user.extra,
        non_resource_attributes: Some(NonResourceAttributes {
            path: Some("/metrics".into()),
            verb: Some("get".into()),
        }),
        resource_attributes: None,
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_verdict_holds_for_a_moment() {
        let (mut verdicts, now) = (Verdicts::default(), Instant::now());
        let key = Credential::Token("t".into()).key();
        verdicts.keep(key, Err(Refusal::Unauthorized), now);
        assert_eq!(verdicts.find(&key, now + HOLDS / 2), Some(Err(Refusal::Unauthorized)));
        assert_eq!(verdicts.find(&key, now + HOLDS), None);
        assert_eq!(verdicts.find(&Credential::Token("u".into()).key(), now), None);
    }

    #[test]
    fn strangers_drive_out_the_oldest_verdicts_and_no_more() {
        let (mut verdicts, start) = (Verdicts::default(), Instant::now());
        let key = |n: u32| Credential::Token(n.to_string()).key();
        for n in 0..=KEPT as u32 {
            verdicts.keep(key(n), Ok(()), start + Duration::from_millis(n.into()));
        }
        assert_eq!(verdicts.0.len(), KEPT);
        let now = start + Duration::from_secs(1);
        assert_eq!((verdicts.find(&key(0), now), verdicts.find(&key(1), now)), (None, Some(Ok(()))));
        verdicts.keep(key(0), Ok(()), start + 2 * HOLDS);
        assert_eq!(verdicts.0.len(), 1, "those that do not hold any more go first");
    }

    #[test]
    fn a_token_is_what_follows_bearer() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic abc", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(bearer_token(&headers), token, "{value}");
        }
    }
}
