//! The part of CRI by which pods are ended and listed images pulled (`runtime.v1.RuntimeService` and `ImageService` of k8s.io/cri-api, with its field numbers).

use std::{collections::HashMap, path::Path, time::Duration};

use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{self, Channel},
};
use tonic_prost::ProstCodec;

/// As kubelet's own client has it: lists of many pods with long annotations are large.
const LARGEST_ANSWER: usize = 16 << 20;

/// containerd's CRI service.
#[derive(Debug, Clone)]
pub(crate) struct Runtime(Channel);

impl Runtime {
    pub(crate) async fn connect(socket: &Path) -> Result<Self, transport::Error> {
        containerd_client::connect(socket).await.map(Self)
    }

    /// Every pod sandbox, ended ones too.
    pub(crate) async fn pod_sandboxes(&self) -> Result<Vec<PodSandbox>, Status> {
        let list: PodSandboxes = self.call("/runtime.v1.RuntimeService/ListPodSandbox", Nothing {}).await?;
        Ok(list.items)
    }

    /// Every container, ended ones too.
    pub(crate) async fn containers(&self) -> Result<Vec<Container>, Status> {
        let list: Containers = self.call("/runtime.v1.RuntimeService/ListContainers", Nothing {}).await?;
        Ok(list.containers)
    }

    /// Runs a command in a container and comes back with its exit code.
    pub(crate) async fn exec(&self, container: &str, command: &[String], limit: Duration) -> Result<i32, Status> {
        let request = ExecSync { container_id: container.to_owned(), cmd: command.to_vec(), timeout: seconds(limit) };
        let done: ExecSyncDone = self.call("/runtime.v1.RuntimeService/ExecSync", request).await?;
        Ok(done.exit_code)
    }

    /// Asks a container to end, and kills it after `grace`.
    pub(crate) async fn stop_container(&self, container: &str, grace: Duration) -> Result<(), Status> {
        let request = StopContainer { container_id: container.to_owned(), timeout: seconds(grace) };
        let Nothing {} = self.call("/runtime.v1.RuntimeService/StopContainer", request).await?;
        Ok(())
    }

    /// Ends what is left of a pod: its network, and containers without any grace.
    pub(crate) async fn stop_pod_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let request = StopPodSandbox { pod_sandbox_id: sandbox.to_owned() };
        let Nothing {} = self.call("/runtime.v1.RuntimeService/StopPodSandbox", request).await?;
        Ok(())
    }

    /// Pulls an image, as a pod without a pull secret would have it pulled.
    pub(crate) async fn pull(&self, image: &str) -> Result<(), Status> {
        let request = PullImage { image: Some(ImageSpec { image: image.to_owned() }) };
        let Nothing {} = self.call("/runtime.v1.ImageService/PullImage", request).await?;
        Ok(())
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.0.clone()).max_decoding_message_size(LARGEST_ANSWER);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(method);
        Ok(grpc.unary(Request::new(request), path, ProstCodec::default()).await?.into_inner())
    }
}

/// `PodSandbox`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) metadata: Option<PodSandboxMetadata>,
    /// 0 is ready.
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
}

/// `PodSandboxMetadata`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

/// `Container`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Container {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) metadata: Option<ContainerMetadata>,
    /// 1 is running.
    #[prost(int32, tag = "6")]
    pub(crate) state: i32,
    #[prost(map = "string, string", tag = "9")]
    pub(crate) annotations: HashMap<String, String>,
}

/// `ContainerMetadata`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncDone {
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StopContainer {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StopPodSandbox {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

/// A request for everything, and an answer that only says that it is done.
#[derive(Clone, PartialEq, Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
