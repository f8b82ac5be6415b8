//! One node: its connection, its watches, its heartbeats.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use load::{Client, Connection, Log};
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::watch, time::interval};

use crate::objects::{lease, name, node, node_status, pod_status};

/// Between renewals of a node's Lease, by kubelet's defaults.
const RENEWAL: Duration = Duration::from_secs(10);
/// Between statuses that tell nothing new, by kubelet's defaults.
const STATUS: Duration = Duration::from_secs(300);

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// What kubelet and kube-proxy watch, beside the node's pods.
fn watches(name: &str) -> [String; 5] {
    [
        format!("/api/v1/nodes?watch=1&resourceVersion=0&fieldSelector=metadata.name%3D{name}"),
        "/api/v1/services?watch=1&resourceVersion=0".to_owned(),
        "/apis/discovery.k8s.io/v1/endpointslices?watch=1&resourceVersion=0".to_owned(),
        "/apis/node.k8s.io/v1/runtimeclasses?watch=1&resourceVersion=0".to_owned(),
        "/apis/storage.k8s.io/v1/csidrivers?watch=1&resourceVersion=0".to_owned(),
    ]
}

/// What nodes have done, together.
#[derive(Clone)]
pub(crate) struct Ledger {
    /// Heartbeats since somebody looked.
    heartbeats: Arc<Mutex<Log>>,
    /// How many pods run.
    pub(crate) running: watch::Sender<usize>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { heartbeats: Arc::default(), running: watch::Sender::new(0) }
    }

    /// The heartbeats since the last look.
    pub(crate) fn take(&self) -> Log {
        std::mem::take(&mut *self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, heartbeat: Log) {
        let mut all = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        all.writes += heartbeat.writes;
        all.latencies.extend(heartbeat.latencies);
    }
}

/// A node that the API knows.
pub(crate) struct Node {
    number: usize,
    connection: Connection,
    /// Of its Lease.
    version: String,
    ledger: Ledger,
}

#[derive(Deserialize)]
struct Written {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Pod,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize, Default)]
struct PodStatus {
    #[serde(default)]
    phase: String,
}

impl Node {
    /// Registers it.
    pub(crate) async fn join(number: usize, client: Client, ledger: Ledger) -> Result<Self> {
        let mut connection = Connection::open(&client).await?;
        connection.ask(Method::POST, "/api/v1/nodes", body(&node(number))).await?;
        let made = connection.ask(Method::POST, LEASES, body(&lease(number, None))).await?;
        let Written { metadata } = serde_json::from_slice(&made).context("a Lease cannot be read")?;
        let mut node = Self { number, connection, version: metadata.resource_version, ledger };
        node.tell_status().await?;
        Ok(node)
    }

    /// Works until something fails.
    pub(crate) async fn live(self) -> Result<()> {
        let name = name(self.number);
        let mut connection = self.connection.clone();
        let mut streams = Vec::new();
        for path in watches(&name) {
            streams.push(connection.send(Method::GET, &path, Vec::new()).await?);
        }
        let path = format!("/api/v1/pods?watch=1&resourceVersion=0&fieldSelector=spec.nodeName%3D{name}");
        let pods = connection.send(Method::GET, &path, Vec::new()).await?;
        let (number, ledger) = (self.number, self.ledger.clone());
        let reading = async {
            let read = streams.into_iter().map(|stream| tokio::spawn(drain(stream)));
            for read in read.collect::<Vec<_>>() {
                read.await??;
            }
            Ok(())
        };
        tokio::try_join!(self.beat(), run_pods(number, connection, pods, &ledger), reading).map(drop)
    }

    async fn beat(mut self) -> Result<()> {
        let (mut renewal, mut status) = (interval(RENEWAL), interval(STATUS));
        loop {
            let mut log = Log::default();
            tokio::select! {
                _ = renewal.tick() => log.write(self.renew()).await?,
                _ = status.tick() => log.write(self.tell_status()).await?,
            }
            self.ledger.add(log);
        }
    }

    async fn renew(&mut self) -> Result<()> {
        let path = format!("{LEASES}/{}", name(self.number));
        let written = self.connection.ask(Method::PUT, &path, body(&lease(self.number, Some(&self.version)))).await?;
        let Written { metadata } = serde_json::from_slice(&written).context("a Lease cannot be read")?;
        self.version = metadata.resource_version;
        Ok(())
    }

    async fn tell_status(&mut self) -> Result<()> {
        let path = format!("/api/v1/nodes/{}/status", name(self.number));
        self.connection.ask(Method::PATCH, &path, body(&node_status(self.number))).await.map(drop)
    }
}

/// Says of each pod that it runs. What is deleted goes by itself: no pod has a grace period.
async fn run_pods(node: usize, mut connection: Connection, mut pods: Incoming, ledger: &Ledger) -> Result<()> {
    let mut text = BytesMut::new();
    let (mut running, mut count) = (BTreeSet::new(), 0);
    while let Some(frame) = pods.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        text.extend_from_slice(&data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let Event { kind, object: Pod { metadata, status } } =
                serde_json::from_slice(&text.split_to(end + 1)).context("an event cannot be read")?;
            if kind == "DELETED" {
                if running.remove(&metadata.name) {
                    ledger.running.send_modify(|running| *running -= 1);
                }
            } else if status.phase == "Pending" && running.insert(metadata.name.clone()) {
                let path = format!("/api/v1/namespaces/{}/pods/{}/status", metadata.namespace, metadata.name);
                connection.ask(Method::PATCH, &path, body(&pod_status(node, count))).await?;
                count += 1;
                ledger.running.send_modify(|running| *running += 1);
            }
        }
    }
    anyhow::bail!("the watch of the pods of {} ended", name(node))
}

async fn drain(mut stream: Incoming) -> Result<()> {
    while let Some(frame) = stream.frame().await {
        frame?;
    }
    anyhow::bail!("a watch ended")
}

fn body(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}
