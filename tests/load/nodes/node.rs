//! One node: its connections, its watches, its heartbeats.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use load::Log;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::interval;

use crate::{
    caller::Caller,
    identity::Identity,
    ledger::Ledger,
    objects::{lease, name, node, node_status, pod_status},
};

/// Between renewals of a node's Lease, by kubelet's defaults.
const RENEWAL: Duration = Duration::from_secs(10);
/// Between statuses that tell nothing new, by kubelet's defaults.
const STATUS: Duration = Duration::from_secs(300);

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// What kubelet watches, beside the node's pods.
fn watches_of_kubelet(name: &str) -> [String; 4] {
    [
        own_node(name),
        watch("/api/v1/services"),
        watch("/apis/node.k8s.io/v1/runtimeclasses"),
        watch("/apis/storage.k8s.io/v1/csidrivers"),
    ]
}

/// What kube-proxy does.
fn watches_of_kube_proxy(name: &str) -> [String; 3] {
    [own_node(name), watch("/api/v1/services"), watch("/apis/discovery.k8s.io/v1/endpointslices")]
}

fn own_node(name: &str) -> String {
    format!("{}&fieldSelector=metadata.name%3D{name}", watch("/api/v1/nodes"))
}

fn watch(resource: &str) -> String {
    format!("{resource}?watch=1&resourceVersion=0")
}

/// A node that the API knows.
pub(crate) struct Node {
    number: usize,
    kubelet: Caller,
    kube_proxy: Caller,
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
    pub(crate) async fn join(number: usize, identity: Identity, ledger: Ledger) -> Result<Self> {
        let mut kubelet = Caller::connect(&identity.kubelet, ledger.clone()).await?;
        let kube_proxy = Caller::connect(&identity.kube_proxy, ledger.clone()).await?;
        kubelet.ask(Method::POST, "/api/v1/nodes", body(&node(number))).await?;
        let made = kubelet.ask(Method::POST, LEASES, body(&lease(number, None))).await?;
        let Written { metadata } = serde_json::from_slice(&made).context("a Lease cannot be read")?;
        let mut node = Self { number, kubelet, kube_proxy, version: metadata.resource_version, ledger };
        node.tell_status().await?;
        Ok(node)
    }

    /// Works until something fails.
    pub(crate) async fn live(self) -> Result<()> {
        let name = name(self.number);
        let (mut kubelet, mut kube_proxy) = (self.kubelet.clone(), self.kube_proxy.clone());
        let mut streams = Vec::new();
        for path in watches_of_kubelet(&name) {
            streams.push(kubelet.send(Method::GET, &path, Vec::new()).await?);
        }
        for path in watches_of_kube_proxy(&name) {
            streams.push(kube_proxy.send(Method::GET, &path, Vec::new()).await?);
        }
        let path = format!("{}&fieldSelector=spec.nodeName%3D{name}", watch("/api/v1/pods"));
        let pods = kubelet.send(Method::GET, &path, Vec::new()).await?;
        let (number, ledger) = (self.number, self.ledger.clone());
        let reading = async {
            let read = streams.into_iter().map(|stream| tokio::spawn(drain(stream)));
            for read in read.collect::<Vec<_>>() {
                read.await??;
            }
            Ok(())
        };
        tokio::try_join!(self.beat(), run_pods(number, kubelet, pods, &ledger), reading).map(drop)
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
        let written = self.kubelet.ask(Method::PUT, &path, body(&lease(self.number, Some(&self.version)))).await?;
        let Written { metadata } = serde_json::from_slice(&written).context("a Lease cannot be read")?;
        self.version = metadata.resource_version;
        Ok(())
    }

    async fn tell_status(&mut self) -> Result<()> {
        let path = format!("/api/v1/nodes/{}/status", name(self.number));
        self.kubelet.ask(Method::PATCH, &path, body(&node_status(self.number))).await.map(drop)
    }
}

/// Says of each pod that it runs. What is deleted goes by itself: no pod has a grace period.
async fn run_pods(node: usize, mut kubelet: Caller, mut pods: Incoming, ledger: &Ledger) -> Result<()> {
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
                kubelet.ask(Method::PATCH, &path, body(&pod_status(node, count))).await?;
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
