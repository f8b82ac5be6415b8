//! Network policies on this node.
//!
//! ```text
//! disabled ──► the table is removed
//! enabled, and there were policies in the last life, and no table (a reboot) ──► closed: no pod is reached before its policies are known
//!    │
//!    ▼         no policies ◄──────────────────────────────┐
//! the API tells ─┬─► no table, pods are not even watched  │ (the last one goes)
//!                └─► the whole table ──► changes to it ───┘
//! ```
//!
//! The table is in the kernel and stays while k3s restarts. It is replaced as a whole at a start, when somebody else has changed it, and when
//! a change is refused; each time in one step.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use k3s_components::{Node, Paths};
use k3s_controllers::{ClusterView, PolicyChange, PolicyObjects};
use k3s_files as files;
use k3s_network::{Attached, Attachments, BRIDGE, Table};
use k3s_policy::{Compiler, Event, Family, ObjectKey, Options, REMOVE, TABLE};
use k3s_supervise::{Backoff, StatusLine, Supervisor, TaskError};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::error::chain;

/// In `k3s status`, and the node's journal.
const TASK: &str = "network-policy";
/// Between replacements of a table that somebody else keeps changing at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Whoever has left the table alone for so long does not keep changing it.
const CALM: Duration = Duration::from_secs(60);

/// What enforces policies on one node.
#[derive(Debug, Clone)]
pub(crate) struct NetworkPolicies {
    options: Options,
    memory: Memory,
}

impl NetworkPolicies {
    pub(crate) fn new(node: &Node, paths: &Paths) -> Self {
        let families = [Family::V4, Family::V6].into_iter();
        let cidrs = &node.network.cluster_cidrs;
        let families = families.filter(|family| cidrs.iter().any(|cidr| Family::of(cidr.addr()) == *family));
        let options = Options { node: node.config.name.clone(), families: families.collect(), bridge: BRIDGE.into() };
        Self { options, memory: Memory(paths.agent().join("network-policy.json")) }
    }

    /// Makes the packet filter right for a node on which no pod has started yet: before the API is heard, pods are closed if there were
    /// policies. What fails is told; the node starts nevertheless, and [`Self::run`] tries again.
    pub(crate) async fn prepare(&self, enabled: bool) {
        let prepared = if enabled { self.close().await } else { self.clear().await };
        if let Err(error) = prepared {
            warn!(error = chain(&*error), enabled, "The packet filter could not be prepared for network policies.");
        }
    }

    async fn close(&self) -> Result<(), TaskError> {
        let Some(Remembered { ranges }) = self.memory.recall()? else { return Ok(()) };
        let mut table = Table::open(TABLE)?;
        if !table.exists().await? {
            table.apply(&k3s_policy::closed(&self.options, &ranges)).await?;
            info!("Pods are closed until their network policies are known.");
        }
        Ok(())
    }

    /// Leaves nothing of ours in the packet filter. A host that has none has nothing of ours.
    async fn clear(&self) -> Result<(), TaskError> {
        self.memory.forget()?;
        let Ok(mut table) = Table::open(TABLE) else { return Ok(()) };
        if table.exists().await.unwrap_or(false) {
            table.apply(REMOVE).await?;
            info!("The rules of network policies are removed.");
        }
        Ok(())
    }

    /// Enforces policies until `shutdown`, as a task of its own.
    pub(crate) async fn run(&self, view: &ClusterView, supervisor: &Supervisor, shutdown: &CancellationToken) {
        let start = |status| {
            let (policies, view) = (self.clone(), view.clone());
            async move { policies.enforce(&view, &status).await }
        };
        supervisor.task(TASK).run(shutdown, start).await;
    }

    async fn enforce(&self, view: &ClusterView, status: &StatusLine) -> Result<(), TaskError> {
        let objects = view.policy_objects(&self.options.node);
        status.set("waits for the API to tell the policies");
        if !objects.any().await {
            self.clear().await?;
            status.set("there are no policies");
            objects.until_any().await;
        }
        let table = Table::open(TABLE)?;
        let enforcer = Enforcer {
            compiler: Compiler::new(self.options.clone()),
            table,
            memory: &self.memory,
            remembered: None,
            ranges: Vec::new(),
            status,
            said: String::new(),
        };
        enforcer.run(&objects).await
    }
}

/// What keeps the table what the compiler says.
struct Enforcer<'a> {
    compiler: Compiler,
    table: Table,
    memory: &'a Memory,
    /// What is on disk.
    remembered: Option<Option<Remembered>>,
    ranges: Vec<IpNet>,
    status: &'a StatusLine,
    said: String,
}

impl Enforcer<'_> {
    async fn run(mut self, objects: &PolicyObjects) -> Result<(), TaskError> {
        let (mut attachments, attached) = Attachments::follow()?;
        self.take_attached(attached);
        let (all, mut changes) = objects.follow().await;
        all.into_iter().for_each(|change| self.take(change));
        self.replace().await?;
        let (mut pauses, mut replaced) = (Backoff::between(PAUSES.0, PAUSES.1), Instant::now());
        loop {
            tokio::select! {
                // What a pod was given comes before what the API tells of it.
                biased;
                attached = attachments.next() => self.take_attached(attached?),
                changes = futures_util::StreamExt::next(&mut changes) => {
                    changes.into_iter().flatten().for_each(|change| self.take(change));
                }
                touched = self.table.touched() => {
                    touched?;
                    warn!(table = TABLE, "Somebody has changed the rules of network policies; they are put in place again.");
                    if replaced.elapsed() > CALM {
                        pauses.begin_anew();
                    }
                    pauses.wait().await;
                    self.replace().await?;
                    replaced = Instant::now();
                    continue;
                }
            }
            self.update().await?;
        }
    }

    fn take(&mut self, change: PolicyChange) {
        match change {
            PolicyChange::Event(event) => {
                match &event {
                    Event::Policy(key, _) => self.status.solved(&named(key)),
                    Event::Ranges(ranges) => self.ranges.clone_from(ranges),
                    _ => {}
                }
                self.compiler.apply(event);
            }
            PolicyChange::Invalid(key, error) => {
                self.status.problem(&named(&key), format!("it is not enforced: {error}"));
                self.compiler.apply(Event::Policy(key, None));
            }
        }
    }

    fn take_attached(&mut self, attached: Vec<Attached>) {
        for Attached { namespace, name, addresses } in attached {
            self.compiler.apply(Event::Attached(ObjectKey::new(namespace, name), addresses));
        }
    }

    /// Brings the table up to date by what has changed.
    async fn update(&mut self) -> Result<(), TaskError> {
        let Some(changes) = self.compiler.changes() else {
            self.tell();
            return Ok(());
        };
        // Before a first rule: it is what a node goes by that starts before it hears of policies.
        self.remember()?;
        let counts = changes.counts();
        match self.table.apply(&changes.to_string()).await {
            Ok(()) => debug!(?counts, "The rules of network policies have changed."),
            Err(error) => {
                debug!(error = chain(&error), "A change of network policies was refused; all rules are replaced.");
                return self.replace().await;
            }
        }
        self.tell();
        Ok(())
    }

    /// Puts the whole table in the place of whatever is there.
    async fn replace(&mut self) -> Result<(), TaskError> {
        self.remember()?;
        let whole = self.compiler.whole();
        self.table.apply(&whole.to_string()).await?;
        debug!(counts = ?whole.counts(), "The rules of network policies are in place.");
        self.tell();
        Ok(())
    }

    fn remember(&mut self) -> Result<(), TaskError> {
        let now = self.compiler.has_policies().then(|| Remembered { ranges: self.ranges.clone() });
        if self.remembered.as_ref() != Some(&now) {
            match &now {
                Some(now) => self.memory.keep(now)?,
                None => self.memory.forget()?,
            }
            self.remembered = Some(now);
        }
        Ok(())
    }

    fn tell(&mut self) {
        let said = match self.compiler.summary() {
            (0, ..) => "there are no policies".to_owned(),
            (policies, active, pods) => {
                format!("{active} of {policies} policies isolate {pods} pods here")
            }
        };
        if said != self.said {
            self.status.set(said.as_str());
            self.said = said;
        }
    }
}

fn named(policy: &ObjectKey) -> String {
    format!("NetworkPolicy {policy}")
}

/// `<data>/agent/network-policy.json`: there while the cluster has policies.
#[derive(Debug, Clone)]
struct Memory(PathBuf);

/// What a node has to know to close its pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// The ranges of its pods.
    ranges: Vec<IpNet>,
}

impl Memory {
    fn keep(&self, what: &Remembered) -> Result<(), TaskError> {
        files::write(&self.0, &serde_json::to_vec(what)?, files::PRIVATE)?;
        Ok(())
    }

    fn recall(&self) -> Result<Option<Remembered>, TaskError> {
        let Some(text) = files::read(&self.0)?.filter(|text| !files::is_torn(text)) else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&text)?))
    }

    fn forget(&self) -> Result<(), TaskError> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_remembers_that_there_are_policies() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory(dir.path().join("network-policy.json"));
        assert_eq!(memory.recall().unwrap(), None);
        let what = Remembered { ranges: vec!["10.42.1.0/24".parse().unwrap()] };
        memory.keep(&what).unwrap();
        assert_eq!(memory.recall().unwrap(), Some(what));
        memory.forget().unwrap();
        memory.forget().unwrap();
        assert_eq!(memory.recall().unwrap(), None);
    }
}
