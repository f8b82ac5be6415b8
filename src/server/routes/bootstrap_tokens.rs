//! Logins by bootstrap token, judged as kube-apiserver judges them.
//!
//! Guesses are made by strangers, and what they cost is ours: so the tokens that exist are listed, once a second at most, and not one of
//! them is asked for. A token that the last list has is right or wrong at once; whether there is one that it has not, the next list says.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k3s_http::Status;
use k3s_identity::{BootstrapToken, BootstrapTokenSecret, SECRET_TYPE, Usage};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tracing::debug;

use crate::caller::{Caller, Group};

/// Before the id, in the name of the user.
const USER: &str = "system:bootstrap:";
/// How long a list counts, and the time between two.
const PERIOD: Duration = Duration::from_secs(1);
/// Requests that wait for the next list.
const WAITING: usize = 64;

/// The bootstrap tokens of the cluster.
#[derive(Debug)]
pub(super) struct BootstrapTokens {
    last: Mutex<Option<Arc<List>>>,
    /// Held by whoever makes the next list; when the last one was begun, whatever became of it.
    next: tokio::sync::Mutex<Option<Instant>>,
    waiting: Semaphore,
}

/// The Secrets of tokens, by name; `None` if they could not be listed.
#[derive(Debug)]
struct List {
    begun: Instant,
    secrets: Option<HashMap<String, Secret>>,
}

impl BootstrapTokens {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self { last: Mutex::default(), next: tokio::sync::Mutex::default(), waiting: Semaphore::new(WAITING) }
    }

    /// Who shows this token, now; `None` if it is wrong or over.
    pub(super) async fn log_in(&self, client: Client, token: &BootstrapToken) -> Result<Option<Caller>, Status> {
        let secrets: Api<Secret> = Api::namespaced(client, "kube-system");
        let params = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
        let found = self.find(token.id(), async || secrets.list(&params).await.map(|list| list.items)).await?;
        let accepted = found.is_some_and(|found| accepts(found, token, Timestamp::now()));
        // Every such token has this group; those that a token adds open no route.
        Ok(accepted.then(|| Caller::new(format!("{USER}{}", token.id()), &[Group::Bootstrappers.name().to_owned()])))
    }

    /// The Secret of the token with this id.
    async fn find(
        &self,
        id: &str,
        list: impl AsyncFnOnce() -> kube::Result<Vec<Secret>>,
    ) -> Result<Option<Secret>, Status> {
        let (name, asked) = (BootstrapToken::secret_name(id), Instant::now());
        let fresh = self.last().filter(|last| asked < last.begun + PERIOD);
        if let Some(found) = fresh.as_ref().and_then(|last| last.secrets.as_ref()?.get(&name)) {
            return Ok(Some(found.clone()));
        }
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(Status::too_many_requests("Too many requests, please try again later."));
        };
        match &self.list_after(asked, list).await.secrets {
            Some(secrets) => Ok(secrets.get(&name).cloned()),
            None => Err(Status::unavailable("apiserver not ready")),
        }
    }

    /// A list that was begun after that time: this request's own, or another one's.
    async fn list_after(&self, asked: Instant, list: impl AsyncFnOnce() -> kube::Result<Vec<Secret>>) -> Arc<List> {
        let mut next = self.next.lock().await;
        if let Some(last) = self.last().filter(|last| last.begun > asked) {
            return last;
        }
        if let Some(begun) = *next {
            sleep_until(begun + PERIOD).await;
        }
        let begun = Instant::now();
        *next = Some(begun);
        let by_name = |secrets: Vec<Secret>| secrets.into_iter().map(|secret| (secret.name_any(), secret)).collect();
        let listed =
            list().await.map(by_name).inspect_err(|error| debug!(%error, "Bootstrap tokens cannot be listed."));
        let list = Arc::new(List { begun, secrets: listed.ok() });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(list.clone());
        list
    }

    fn last(&self) -> Option<Arc<List>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn accepts(found: Secret, token: &BootstrapToken, now: Timestamp) -> bool {
    let name = found.name_any();
    if found.type_.as_deref() != Some(SECRET_TYPE) || found.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let data: BTreeMap<_, _> = found.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
    BootstrapTokenSecret::from_data(&name, &data).is_ok_and(|known| {
        known.token == *token && known.usages.contains(&Usage::Authentication) && !known.has_expired(now)
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;

    fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    /// The Secret of a token that is right for another second.
    fn secret() -> Secret {
        let token = BootstrapTokenSecret {
            token: "abcdef.0123456789abcdef".parse().unwrap(),
            description: String::new(),
            expires: Some("2026-06-01T00:00:01Z".parse().unwrap()),
            usages: [Usage::Authentication].into(),
            groups: Vec::new(),
        };
        let mut secret = Secret { type_: Some(SECRET_TYPE.into()), ..Secret::default() };
        secret.metadata.name = Some("bootstrap-token-abcdef".into());
        secret.data = Some(token.to_data().into_iter().map(|(key, value)| (key, ByteString(value))).collect());
        secret
    }

    #[test]
    fn a_token_is_accepted_while_it_lasts() {
        let accepted = |change: fn(&mut Secret), token: &str, now: Timestamp| {
            let mut secret = secret();
            change(&mut secret);
            accepts(secret, &token.parse().unwrap(), now)
        };
        let right = "abcdef.0123456789abcdef";
        assert!(accepted(|_| {}, right, now()));
        assert!(!accepted(|_| {}, "abcdef.0123456789abcdee", now()));
        assert!(!accepted(|_| {}, right, "2026-06-01T00:00:01Z".parse().unwrap()));
        assert!(!accepted(|secret| secret.type_ = Some("Opaque".into()), right, now()));
        assert!(!accepted(|secret| secret.metadata.deletion_timestamp = Some(Time(now())), right, now()));
        assert!(!accepted(|secret| drop(secret.data.take()), right, now()));
        let no_usage = |secret: &mut Secret| {
            secret.data.as_mut().unwrap().remove("usage-bootstrap-authentication");
        };
        assert!(!accepted(no_usage, right, now()));
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_cost_one_list_a_second() {
        let (tokens, lists) = (BootstrapTokens::new(), std::cell::Cell::new(0));
        let find = |id: &'static str| {
            tokens.find(id, async || {
                lists.set(lists.get() + 1);
                tokio::task::yield_now().await;
                Ok(vec![secret()])
            })
        };
        let start = Instant::now();
        assert!(find("abcdef").await.unwrap().is_some());
        assert_eq!(start.elapsed(), Duration::ZERO);

        let guesses = futures_util::future::join_all((0..2 * WAITING).map(|_| find("guess0"))).await;
        let refused = guesses.iter().filter(|guess| guess.is_err()).count();
        assert_eq!((refused, lists.get()), (WAITING, 2), "each has an answer, of a list that was begun after it asked");
        assert!(guesses.iter().flatten().all(Option::is_none));
        assert_eq!(start.elapsed().as_secs(), 1);

        assert!(find("abcdef").await.unwrap().is_some(), "one that exists does not wait");
        assert_eq!((start.elapsed().as_secs(), lists.get()), (1, 2));
        tokio::time::advance(PERIOD).await;
        assert!(find("abcdef").await.unwrap().is_some());
        assert_eq!(lists.get(), 3, "it may be gone");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_does_not_answer_is_asked_once_for_all() {
        let (tokens, lists) = (BootstrapTokens::new(), std::cell::Cell::new(0));
        let find = || {
            tokens.find("abcdef", async || {
                lists.set(lists.get() + 1);
                tokio::task::yield_now().await;
                Err(kube::Error::LinesCodecMaxLineLengthExceeded)
            })
        };
        let refusal = Err(Status::unavailable("apiserver not ready"));
        assert_eq!(find().await, refusal);
        let refused = futures_util::future::join_all((0..10).map(|_| find())).await;
        assert!(refused.iter().all(|refused| *refused == refusal));
        assert_eq!(lists.get(), 2);
    }
}
