//! The phases: how many nodes there are, and what runs on them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Subcommand;
use http::Method;
use load::{Client, Connection, Log, Outcome};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    identity::Identities,
    ledger::Ledger,
    node::Node,
    objects::{GROUP, group, name},
};

/// How many nodes register at once.
const AT_ONCE: usize = 8;
/// How long pods may take to run.
const PATIENCE: Duration = Duration::from_secs(900);

/// A line of standard input.
#[derive(Subcommand)]
pub(crate) enum Phase {
    /// More nodes register, up to so many; an operation is one of them.
    Nodes {
        /// How many there are then.
        count: usize,
    },
    /// More pods are deployed, up to so many, and run; an operation is a group of them that is created.
    Pods {
        /// How many there are then.
        count: usize,
    },
    /// All pods are deleted, and go.
    Clear,
    /// Nodes are left alone; an operation is a heartbeat.
    Rest {
        /// For how long.
        seconds: u64,
    },
}

/// The nodes.
pub(crate) struct Fleet {
    /// Deploys.
    client: Client,
    identities: Identities,
    ledger: Ledger,
    alive: JoinSet<Result<()>>,
    groups: usize,
}

impl Fleet {
    pub(crate) fn new(client: Client, identities: Identities) -> Self {
        Self { client, identities, ledger: Ledger::new(), alive: JoinSet::new(), groups: 0 }
    }

    async fn grow(&mut self, count: usize) -> Result<Log> {
        let mut log = Log::default();
        while self.alive.len() < count {
            let first = self.alive.len();
            let mut joining = JoinSet::new();
            for number in first..count.min(first + AT_ONCE) {
                joining.spawn(Node::join(number, self.identities.of(&name(number))?, self.ledger.clone()));
            }
            while let Some(node) = log.write(async { Ok(joining.join_next().await) }).await? {
                let node = node??;
                self.alive.spawn(node.live());
            }
        }
        Ok(log)
    }

    async fn deploy(&mut self, count: usize) -> Result<Log> {
        let (mut log, mut connection) = (Log::default(), Connection::open(&self.client).await?);
        while self.groups * GROUP < count {
            for (path, object) in group(self.groups, GROUP.min(count - self.groups * GROUP)) {
                log.write(connection.ask(Method::POST, path, object.to_string().into_bytes())).await?;
            }
            self.groups += 1;
        }
        self.wait_for(|running| running >= count).await?;
        Ok(log)
    }

    async fn clear(&mut self) -> Result<Log> {
        let (mut log, mut connection) = (Log::default(), Connection::open(&self.client).await?);
        for number in 0..self.groups {
            for (path, object) in group(number, 0) {
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
                log.write(connection.ask(Method::DELETE, &path, Vec::new())).await?;
            }
        }
        self.groups = 0;
        self.wait_for(|running| running == 0).await?;
        Ok(log)
    }

    /// Waits for so many pods to run; a node that fails ends it.
    async fn wait_for(&mut self, enough: impl Fn(usize) -> bool) -> Result<()> {
        let mut running = self.ledger.running.subscribe();
        tokio::select! {
            waited = timeout(PATIENCE, running.wait_for(|running| enough(*running))) => {
                waited.with_context(|| format!("{} pods run", *self.ledger.running.borrow()))??;
                Ok(())
            }
            failure = failure(&mut self.alive) => Err(failure),
        }
    }
}

impl Phase {
    pub(crate) async fn run(self, fleet: &mut Fleet) -> Result<Outcome> {
        let started = Instant::now();
        fleet.ledger.take();
        let log = match self {
            Self::Nodes { count } => fleet.grow(count).await?,
            Self::Pods { count } => fleet.deploy(count).await?,
            Self::Clear => fleet.clear().await?,
            Self::Rest { seconds } => tokio::select! {
                () = sleep(Duration::from_secs(seconds)) => return Ok(Outcome::new([fleet.ledger.take()], started.elapsed())),
                failure = failure(&mut fleet.alive) => return Err(failure),
            },
        };
        let refused = Log { refused: fleet.ledger.take().refused, ..Log::default() };
        Ok(Outcome::new([log, refused], started.elapsed()))
    }
}

/// What the first node died of; none does without.
async fn failure(alive: &mut JoinSet<Result<()>>) -> anyhow::Error {
    match alive.join_next().await {
        Some(Ok(Err(failure))) => failure,
        Some(Err(panic)) => panic.into(),
        Some(Ok(Ok(()))) => anyhow::anyhow!("a node ended"),
        None => std::future::pending().await,
    }
}
