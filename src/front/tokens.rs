//! Tokens that kube-apiserver has not accepted yet: how often it is asked about them.
//!
//! Each costs kube-apiserver a verification, and a connection of its own. Those of a source that are wrong are counted; a token that was
//! accepted once is not held up by any.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k3s_http::Status;
use k3s_listener::{Rate, Sources};
use tokio::time::Instant;

use super::party::TokenDigest;

/// Wrong tokens of one source. The many pods of a node that starts may come from one address, but their tokens are right.
const WRONG: Rate = Rate { burst: 50, interval: Duration::from_millis(100) };
/// Tokens that are remembered as accepted, of 32 bytes each.
const ACCEPTED: usize = 16 << 10;

/// What is known of tokens.
#[derive(Debug)]
pub(super) struct Tokens(Mutex<TokenTable>);

#[derive(Debug)]
struct TokenTable {
    accepted: HashSet<TokenDigest>,
    wrong: Sources,
}

/// A token that kube-apiserver is being asked about.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    tokens: &'a Tokens,
    token: TokenDigest,
    /// Who pays for a wrong one; `None` if it was accepted before.
    source: Option<IpAddr>,
}

impl Tokens {
    /// None was accepted yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(TokenTable { accepted: HashSet::new(), wrong: Sources::new(WRONG) }))
    }

    /// Before kube-apiserver is asked: a source that has shown too many wrong tokens has to wait.
    pub(super) fn try_out(&self, token: TokenDigest, source: IpAddr) -> Result<Trial<'_>, Status> {
        let mut table = self.table();
        if table.accepted.contains(&token) {
            return Ok(Trial { tokens: self, token, source: None });
        }
        if table.wrong.spend(source, Instant::now()) {
            return Ok(Trial { tokens: self, token, source: Some(source) });
        }
        Err(Status::too_many_requests("too many wrong tokens came from this address; try again later"))
    }

    fn table(&self) -> MutexGuard<'_, TokenTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trial<'_> {
    /// kube-apiserver's answer is no 401.
    pub(super) fn accepted(self) {
        let Some(source) = self.source else { return };
        let mut table = self.tokens.table();
        table.wrong.give_back(source);
        if table.accepted.len() >= ACCEPTED {
            table.accepted.clear();
        }
        table.accepted.insert(self.token);
    }

    /// It is a 401.
    pub(super) fn refused(self) {
        if self.source.is_none() {
            self.tokens.table().accepted.remove(&self.token);
        }
    }

    /// There is none.
    pub(super) fn unanswered(self) {
        if let Some(source) = self.source {
            self.tokens.table().wrong.give_back(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

    use super::*;

    fn token(token: usize) -> TokenDigest {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        TokenDigest::of(&HeaderMap::from_iter([(AUTHORIZATION, value)])).unwrap()
    }

    #[test]
    fn wrong_tokens_use_up_what_right_ones_do_not() {
        let (tokens, burst) = (Tokens::new(), WRONG.burst as usize);
        let [here, there] = ["192.0.2.1", "192.0.2.2"].map(|source| source.parse().unwrap());
        for number in 0..3 * burst {
            tokens.try_out(token(number), here).unwrap().accepted();
            tokens.try_out(token(usize::MAX), here).unwrap().unanswered();
        }
        let mut wrong = 0;
        while let Ok(trial) = tokens.try_out(token(3 * burst + wrong), here) {
            trial.refused();
            wrong += 1;
            assert!(wrong < 10 * burst, "guesses without end");
        }
        assert!(wrong >= burst);
        tokens.try_out(token(0), here).unwrap().refused();
        assert!(tokens.try_out(token(0), here).is_err(), "it is over");
        assert!(tokens.try_out(token(1), here).is_ok(), "accepted before");
        assert!(tokens.try_out(token(3 * burst), there).is_ok(), "another source");
    }
}
