//! A store that others run can be away, refuse, take no writes or be full: the status says which, and what to do, at the start and while
//! the server runs. Nobody restarts for it.

use std::{
    fmt,
    mem::discriminant,
    time::{Duration, Instant},
};

use k3s_config::datastore::KINE;
use k3s_datastore::{Client, ClientError, Revision};
use k3s_supervise::{Backoff, Gate, StatusLine, Supervisor, TaskError};
use serde::Deserialize;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use crate::{etcd::MembersSeen, store_reach::StoreReach};

/// How long to wait before a store that does not answer at the start is asked again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// How often it is asked while all is well.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often while something is wrong.
const TROUBLED: Duration = Duration::from_secs(2);
/// What a healthy store never takes for one key.
const SLOW: Duration = Duration::from_secs(1);
/// Bytes of a store's own words that a sentence quotes.
const QUOTED: usize = 240;
/// Written where nobody else writes, to see whether anybody could.
const WRITE_CHECK: &str = "/k3s.io/write-check";
/// The key of the warning in the status.
const WARNING: &str = "datastore";

/// What is wrong with a store. `Display` says it as the rest of a sentence, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreProblem {
    kind: Kind,
    /// What it says itself; empty if nothing.
    words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nobody listens at its address.
    Away,
    /// It starts, stops or recovers.
    Restarting,
    /// It does not know the user, or not by this password.
    Credentials,
    /// It has no database of this name, and the user may not create one.
    NoDatabase,
    /// The user may not do what it has to.
    NoRights,
    /// It can be read.
    ReadOnly,
    /// Its disk is full, or its own quota.
    Full,
    /// It serves too many already.
    Connections,
    /// NATS without JetStream.
    NoJetStream,
    /// It answers late.
    Slow(Duration),
    /// It does not answer at all, and lets itself be connected to.
    Silent,
    /// Something else, which it says itself.
    Other,
}

/// Codes and words by which PostgreSQL (SQLSTATE), MySQL and MariaDB (numbers), NATS and etcd tell what is wrong. The first one counts.
const SIGNS: [(&str, Kind); 38] = [
    ("SQLSTATE 28P01", Kind::Credentials),
    ("SQLSTATE 28000", Kind::Credentials),
    ("Error 1045", Kind::Credentials),
    ("Error 1698", Kind::Credentials),
    ("Authorization Violation", Kind::Credentials),
    ("SQLSTATE 3D000", Kind::NoDatabase),
    ("Error 1049", Kind::NoDatabase),
    ("SQLSTATE 42501", Kind::NoRights),
    ("Error 1044", Kind::NoRights),
    ("Error 1142", Kind::NoRights),
    ("SQLSTATE 25006", Kind::ReadOnly),
    ("Error 1290", Kind::ReadOnly),
    ("Error 1792", Kind::ReadOnly),
    ("Error 1836", Kind::ReadOnly),
    ("SQLSTATE 53100", Kind::Full),
    ("No space left on device", Kind::Full),
    ("Error 1021", Kind::Full),
    ("Error 1114", Kind::Full),
    ("database space exceeded", Kind::Full),
    ("insufficient storage", Kind::Full),
    ("insufficient resources", Kind::Full),
    ("maximum bytes exceeded", Kind::Full),
    ("SQLSTATE 53300", Kind::Connections),
    ("Error 1040", Kind::Connections),
    ("Error 1203", Kind::Connections),
    ("SQLSTATE 57P0", Kind::Restarting),
    ("Error 1053", Kind::Restarting),
    ("etcdserver: no leader", Kind::Restarting),
    ("jetstream not enabled", Kind::NoJetStream),
    ("JetStream not enabled", Kind::NoJetStream),
    // kine's own socket, before it has found its database.
    ("kine.sock: Connection refused", Kind::Restarting),
    ("No such file or directory", Kind::Restarting),
    ("no answer within", Kind::Silent),
    ("onnection refused", Kind::Away),
    ("no such host", Kind::Away),
    ("no servers available", Kind::Away),
    ("no route to host", Kind::Away),
    ("i/o timeout", Kind::Away),
];

impl StoreProblem {
    /// What a store's own words mean.
    pub(crate) fn of(words: &str) -> Self {
        let words = message(words);
        let sign = SIGNS.into_iter().find(|(sign, _)| words.contains(sign));
        let quoted = words[..words.floor_char_boundary(QUOTED)].trim().to_owned();
        Self { kind: sign.map_or(Kind::Other, |(_, kind)| kind), words: quoted }
    }

    /// What is wrong where no answer came. A child of ours that serves the store and is not there yet has said why: `last_error`.
    pub(crate) fn unanswered(why: &str, last_error: Option<String>) -> Self {
        let problem = Self::of(why);
        match last_error.filter(|_| problem.kind == Kind::Restarting) {
            Some(words) => Self::of(&words),
            None => problem,
        }
    }

    /// What is wrong where a write came to nothing, and only the child that serves the store has said why, if anybody has.
    fn unwritten(last_error: Option<String>) -> Self {
        last_error
            .map(|words| Self::of(&words))
            .filter(Self::is_of_the_store)
            .unwrap_or(Self { kind: Kind::ReadOnly, words: String::new() })
    }

    /// The store's own.
    pub(crate) fn words(&self) -> &str {
        &self.words
    }

    /// Whether it is the same problem, in other words perhaps.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        discriminant(&self.kind) == discriminant(&other.kind)
    }

    /// Whether the store is not there for this server, whatever it would say.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(self.kind, Kind::Away | Kind::Restarting | Kind::Silent)
    }

    /// Whether it is one that goes by itself or by what its administrator does, and not a peculiarity of what was asked.
    pub(crate) fn is_of_the_store(&self) -> bool {
        self.kind != Kind::Other
    }
}

impl fmt::Display for StoreProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Away => f.write_str("nobody answers at its address: start it, or correct --datastore-endpoint"),
            Kind::Restarting => f.write_str("it is starting, stopping or recovering"),
            Kind::Credentials => {
                f.write_str("it refuses the user or the password of --datastore-endpoint: correct them")
            }
            Kind::NoDatabase => f.write_str(
                "it has no database of the name in --datastore-endpoint, which this user may not create: create it",
            ),
            Kind::NoRights => {
                f.write_str("the user of --datastore-endpoint lacks rights: grant it all of them in its database")
            }
            Kind::ReadOnly => {
                f.write_str("it can be read and not written, as a replica: make it writable, or name the primary")
            }
            Kind::Full => f.write_str("it has no space left: make room on its disk, or raise its quota"),
            Kind::Connections => {
                f.write_str("it takes no more connections: raise its limit, or set --datastore-max-open-connections")
            }
            Kind::NoJetStream => f.write_str("NATS keeps nothing without JetStream: enable it there"),
            Kind::Silent => f.write_str(
                "it does not answer: it is away, overloaded or stopped, or the network between loses packets",
            ),
            Kind::Slow(took) => write!(f, "it takes {:.1} s to answer", took.as_secs_f32()),
            Kind::Other => return f.write_str(&self.words),
        }?;
        if self.words.is_empty() { Ok(()) } else { write!(f, " ({})", self.words) }
    }
}

/// The message of a line of kine's log, or the text as it is.
fn message(text: &str) -> String {
    #[derive(Deserialize)]
    struct Line {
        message: String,
    }
    let text = text.trim();
    match serde_json::from_str(text) {
        Ok(Line { message }) => message,
        // A long line was cut.
        Err(_) => text.strip_prefix("{\"message\":\"").unwrap_or(text).replace("\\\"", "\""),
    }
}

/// A store that others run, and who else knows what is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct RemoteStore {
    pub(crate) client: Client,
    /// Knows the child that serves it, where it has one.
    pub(crate) supervisor: Supervisor,
    /// How other servers' members of etcd do, where they are the store.
    pub(crate) members: Option<watch::Receiver<MembersSeen>>,
}

impl RemoteStore {
    /// What the child that serves it says is wrong.
    fn last_error(&self) -> Option<String> {
        self.supervisor.last_error(KINE)
    }

    /// What is wrong where no answer came.
    fn unanswered(&self, why: &str) -> StoreProblem {
        StoreProblem::unanswered(why, self.last_error())
    }

    /// The problem with what to do, as the rest of a sentence.
    fn sentence(&self, problem: &StoreProblem) -> String {
        match &self.members {
            Some(members) if problem.is_out_of_reach() || !problem.is_of_the_store() => {
                members.borrow().problem().unwrap_or_else(|| {
                    format!("the etcd of the cluster's other servers does not answer yet ({})", problem.words())
                })
            }
            _ => problem.to_string(),
        }
    }

    /// Waits until members have been asked how they do, where they are the store.
    async fn until_seen(&self) {
        if let Some(mut members) = self.members.clone() {
            // Nobody asks any more when this process ends.
            let _ = members.wait_for(|seen| *seen != MembersSeen::default()).await;
        }
    }

    /// Waits for the first answer; `gate` says meanwhile what is missing. A refusal that is about what was asked is for whoever asks in
    /// earnest.
    pub(crate) async fn answers(&self, key: &str, gate: &Gate) {
        let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
        let mut told = None;
        loop {
            let problem = match self.client.get(key).await {
                Ok(_) => break,
                Err(ClientError::Unreachable(why)) => self.unanswered(&why),
                Err(error) => match StoreProblem::of(&error.to_string()) {
                    problem if problem.is_of_the_store() => problem,
                    _ => break,
                },
            };
            self.until_seen().await;
            let sentence = self.sentence(&problem);
            gate.waiting(sentence.clone());
            if !told.as_ref().is_some_and(|told| problem.is_like(told)) {
                warn!(problem = sentence, "The datastore does not answer yet; waiting for it.");
                told = Some(problem);
            }
            backoff.wait().await;
        }
        if told.is_some() {
            info!("The datastore answers.");
        }
    }
}

/// Looks after a store elsewhere for as long as this server runs.
pub(crate) async fn watch(store: RemoteStore, line: StatusLine, mut reach: StoreReach) -> Result<(), TaskError> {
    let supervisor = store.supervisor.clone();
    let mut check = Check { client: store.client.clone(), seen: None };
    let mut known: Option<StoreProblem> = None;
    loop {
        let began = Instant::now();
        let answer = check.ask().await;
        let is_unreached = matches!(answer, Err(CheckError::Store(ClientError::Unreachable(_))));
        let problem = match answer {
            Ok(Answer { revision, took }) => {
                let who = store.members.as_ref().map(|members| format!("{}; ", members.borrow().in_use()));
                let (who, took_ms) = (who.unwrap_or_default(), took.as_millis().max(1));
                line.set(format!("{who}revision {revision}, answers within {took_ms} ms"));
                (took > SLOW).then(|| StoreProblem { kind: Kind::Slow(took), words: String::new() })
            }
            Err(CheckError::Unwritten) => Some(StoreProblem::unwritten(store.last_error())),
            Err(CheckError::Store(ClientError::Unreachable(why))) => Some(store.unanswered(&why)),
            Err(CheckError::Store(error)) => Some(StoreProblem::of(&error.to_string())),
        };
        reach.saw(!is_unreached && !problem.as_ref().is_some_and(StoreProblem::is_out_of_reach), began);
        match &problem {
            Some(problem) => {
                let sentence = store.sentence(problem);
                if !known.as_ref().is_some_and(|known| problem.is_like(known)) {
                    warn!(problem = sentence, "The datastore is not as it should be.");
                }
                line.set(sentence.clone());
                supervisor.warn(WARNING, format!("The datastore is not as it should be: {sentence}."));
            }
            None if known.is_some() => {
                info!("The datastore is as it should be again.");
                supervisor.clear(WARNING);
            }
            None => {}
        }
        known = problem;
        sleep(if known.is_some() { TROUBLED } else { INTERVAL }).await;
    }
}

/// Asks a store whether it is read and written.
struct Check {
    client: Client,
    /// The revision that it had the last time.
    seen: Option<Revision>,
}

struct Answer {
    revision: Revision,
    took: Duration,
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Store(#[from] ClientError),
    /// kine answers an update that its database refused as if another one had come first.
    #[error("an update was refused as late, and nobody had made another")]
    Unwritten,
}

impl Check {
    /// Reads; and writes where nobody has since the last time, since only that tells a store that takes no writes.
    async fn ask(&mut self) -> Result<Answer, CheckError> {
        let began = Instant::now();
        let (mut revision, stored) = self.client.get_at(WRITE_CHECK).await?;
        if self.seen == Some(revision) {
            let before = stored.map(|stored| stored.modified);
            let written = match before {
                None => self.client.create(WRITE_CHECK, "").await,
                Some(modified) => self.client.update(WRITE_CHECK, "", modified).await,
            };
            revision = match written {
                Err(ClientError::Exists(_) | ClientError::Changed(_)) => {
                    let now = self.client.get(WRITE_CHECK).await?.map(|stored| stored.modified);
                    if now == before {
                        return Err(CheckError::Unwritten);
                    }
                    // Another server did.
                    revision
                }
                written => written?,
            };
        }
        self.seen = Some(revision);
        Ok(Answer { revision, took: began.elapsed() })
    }
}

#[cfg(test)]
mod tests {
    use k3s_datastore::{Datastore, Options};

    use super::*;

    /// As these programs say it, by way of kine's log or its answers.
    #[test]
    fn each_store_has_its_own_words_for_the_same_things() {
        for (words, kind) in [
            (
                r#"{"message":"Failed to ping database connection: failed to connect to `user=k3s database=k3s`: 10.0.0.1:5432 (10.0.0.1): dial error: dial tcp 10.0.0.1:5432: connect: connection refused","severity":"error","time":"2026-11-29T11:21:42Z"}"#,
                Kind::Away,
            ),
            (
                r#"{"message":"failed to create driver for configured endpoint: Error 1045 (28000): Access denied for user 'k3s'@'localhost' (using password: YES)","severity":"fatal","time":"2026"}"#,
                Kind::Credentials,
            ),
            ("FATAL: password authentication failed for user \"k3s\" (SQLSTATE 28P01)", Kind::Credentials),
            ("FATAL: database \"k3s\" does not exist (SQLSTATE 3D000)", Kind::NoDatabase),
            ("Error 1044 (42000): Access denied for user 'k3s'@'%' to database 'k3s'", Kind::NoRights),
            ("ERROR: cannot execute INSERT in a read-only transaction (SQLSTATE 25006)", Kind::ReadOnly),
            ("Error 1290 (HY000): The MariaDB server is running with the --read-only option", Kind::ReadOnly),
            ("ERROR: could not extend file: No space left on device (SQLSTATE 53100)", Kind::Full),
            ("Error 1114 (HY000): The table 'kine' is full", Kind::Full),
            ("etcdserver: mvcc: database space exceeded", Kind::Full),
            ("FATAL: the database system is starting up (SQLSTATE 57P03)", Kind::Restarting),
            ("failed to connect to NATS server: nats: no servers available for connection", Kind::Away),
            ("key is not there", Kind::Other),
        ] {
            let problem = StoreProblem::of(words);
            assert_eq!(problem.kind, kind, "{words}");
            assert_eq!(problem.is_out_of_reach(), [Kind::Away, Kind::Restarting].contains(&kind), "{words}");
            assert!(!problem.to_string().contains("{\"message"), "{problem}");
        }
    }

    #[test]
    fn a_child_that_is_not_there_yet_has_said_why() {
        let of =
            |why: &str, last_error: Option<&str>| StoreProblem::unanswered(why, last_error.map(str::to_owned)).kind;
        let refused = Some("FATAL: password authentication failed (SQLSTATE 28P01)");
        assert_eq!(of("/run/kine.sock: No such file or directory (os error 2)", refused), Kind::Credentials);
        assert_eq!(of("/run/kine.sock: No such file or directory (os error 2)", None), Kind::Restarting);
        assert_eq!(of("http://10.0.0.1:2379: Connection refused (os error 111)", None), Kind::Away);
        let unwritten = |last_error: Option<&str>| StoreProblem::unwritten(last_error.map(str::to_owned)).kind;
        let full = "Insert error for key /k3s.io/write-check: ERROR: could not access status of transaction 0 (SQLSTATE 53100)";
        assert_eq!(unwritten(Some(full)), Kind::Full);
        assert_eq!(unwritten(Some("slow SQL")), Kind::ReadOnly);
        assert_eq!(unwritten(None), Kind::ReadOnly);
        // What it said long ago is not why.
        assert_eq!(of("/run/kine.sock: no answer within 5 s", refused), Kind::Silent);
    }

    #[test]
    fn long_words_are_cut() {
        let problem = StoreProblem::of(&format!("{{\"message\":\"error in txn: Error 1114 {}", "ä".repeat(1000)));
        assert!(problem.to_string().starts_with("it has no space left: make room"), "{problem}");
        assert!(problem.to_string().len() < 400, "{problem}");
    }

    #[tokio::test]
    async fn it_writes_only_where_nobody_does() {
        let directory = tempfile::tempdir().unwrap();
        let store = Datastore::open(Options::new(directory.path().join("state.db"))).await.unwrap();
        let mut check = Check { client: store.client(), seen: None };
        let first = check.ask().await.unwrap().revision;
        store.client().create("/another", "").await.unwrap();
        let second = check.ask().await.unwrap().revision;
        assert!(second > first);
        assert_eq!(store.client().get(WRITE_CHECK).await, Ok(None));

        let third = check.ask().await.unwrap().revision;
        assert!(third > second, "nobody else wrote");
        assert!(store.client().get(WRITE_CHECK).await.unwrap().is_some());
        store.close().await.unwrap();
    }
}
