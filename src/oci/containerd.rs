//! What importing needs of containerd's API: content, images and leases in the namespace `k8s.io`.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateImageRequest, CreateRequest, DeleteRequest, GetImageRequest, Image, Info, InfoRequest,
    Resource, UpdateImageRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Response, Status, Streaming, transport};
use containerd_client::types::Descriptor as TargetDescriptor;
use futures_util::stream;
use oci_spec::image::Descriptor;
use prost_types::{FieldMask, Timestamp};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::{Digest, ImageName};

/// CRI's namespace.
const NAMESPACE: &str = "k8s.io";
/// Labels that make CRI list an image and keep kubelet from collecting it (containerd `internal/cri/labels`).
const IMAGE_LABELS: [(&str, &str); 2] =
    [("io.cri-containerd.image", "managed"), ("io.cri-containerd.pinned", "pinned")];
/// Longer than any import; what a crash leaves is collected after it.
const LEASE_TIME: Duration = Duration::from_secs(6 * 3600);

/// containerd refused a call, or went away.
#[derive(Debug, Error)]
#[error("containerd cannot {action}: {}", status.message())]
pub struct RpcError {
    action: String,
    #[source]
    status: Box<Status>,
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Containerd(Channel);

/// Keeps what is written under it from being collected before an image refers to it.
#[derive(Debug)]
pub(crate) struct Lease(String);

impl Containerd {
    pub(crate) async fn connect(socket: &Path) -> Result<Self, transport::Error> {
        containerd_client::connect(socket).await.map(Self)
    }

    /// The labels of a blob; `None` if it is not there.
    pub(crate) async fn content_labels(&self, digest: &Digest) -> Result<Option<HashMap<String, String>>, RpcError> {
        let request = request(InfoRequest { digest: digest.to_string() }, None);
        let response = ContentClient::new(self.0.clone()).info(request).await;
        let found = optional(response).map_err(failed(|| format!("look for {digest}")))?;
        Ok(found.map(|response| response.info.unwrap_or_default().labels))
    }

    pub(crate) async fn set_content_labels(
        &self,
        digest: &Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), RpcError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let request = request(UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) }, None);
        let response = ContentClient::new(self.0.clone()).update(request).await;
        response.map_err(failed(|| format!("label {digest}"))).map(drop)
    }

    pub(crate) async fn image(&self, name: &ImageName) -> Result<Option<Image>, RpcError> {
        let request = request(GetImageRequest { name: name.to_string() }, None);
        let response = ImagesClient::new(self.0.clone()).get(request).await;
        let found = optional(response).map_err(failed(|| format!("look for {name}")))?;
        Ok(found.and_then(|response| response.image))
    }

    /// Creates the image or points it to another target; managed by CRI and pinned.
    pub(crate) async fn set_image(&self, name: &ImageName, target: &Descriptor, lease: &Lease) -> Result<(), RpcError> {
        let image = Image {
            name: name.to_string(),
            labels: image_labels(),
            target: Some(TargetDescriptor {
                media_type: target.media_type().to_string(),
                digest: target.digest().to_string(),
                size: target.size().try_into().unwrap_or(i64::MAX),
                ..TargetDescriptor::default()
            }),
            ..Image::default()
        };
        let create = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
        match ImagesClient::new(self.0.clone()).create(request(create, Some(lease))).await {
            Err(status) if status.code() == Code::AlreadyExists => self.update_image(image, &["target"]).await,
            created => created.map_err(failed(|| format!("create the image {name}"))).map(drop),
        }
    }

    /// Gives an image the labels that it lacks. Returns whether there were any.
    pub(crate) async fn pin(&self, image: Image) -> Result<bool, RpcError> {
        if IMAGE_LABELS.iter().all(|(key, value)| image.labels.get(*key).is_some_and(|label| label == value)) {
            return Ok(false);
        }
        self.update_image(Image { labels: image_labels(), ..image }, &[]).await?;
        Ok(true)
    }

    async fn update_image(&self, image: Image, fields: &[&str]) -> Result<(), RpcError> {
        let name = image.name.clone();
        let labels = IMAGE_LABELS.iter().map(|(key, _)| format!("labels.{key}"));
        let paths = fields.iter().map(|field| (*field).to_owned()).chain(labels).collect();
        let update = UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths }),
            ..UpdateImageRequest::default()
        };
        let response = ImagesClient::new(self.0.clone()).update(request(update, None)).await;
        response.map_err(failed(|| format!("update the image {name}"))).map(drop)
    }

    pub(crate) async fn lease(&self) -> Result<Lease, RpcError> {
        let now = SystemTime::now();
        let unique = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = format!("k3s-import-{}-{unique}", std::process::id());
        let labels = [("containerd.io/gc.expire".to_owned(), Timestamp::from(now + LEASE_TIME).to_string())].into();
        let create = request(CreateRequest { id: id.clone(), labels }, None);
        LeasesClient::new(self.0.clone()).create(create).await.map_err(failed(|| "create a lease".to_owned()))?;
        Ok(Lease(id))
    }

    /// Keeps content that is there already under the lease, too.
    pub(crate) async fn hold(&self, lease: &Lease, digest: &Digest) -> Result<(), RpcError> {
        let resource = Resource { id: digest.to_string(), r#type: "content".to_owned() };
        let add = request(AddResourceRequest { id: lease.0.clone(), resource: Some(resource) }, None);
        let response = LeasesClient::new(self.0.clone()).add_resource(add).await;
        response.map_err(failed(|| format!("lease {digest}"))).map(drop)
    }

    pub(crate) async fn release(&self, lease: Lease) -> Result<(), RpcError> {
        let delete = request(DeleteRequest { id: lease.0, sync: false }, None);
        LeasesClient::new(self.0.clone()).delete(delete).await.map_err(failed(|| "end a lease".to_owned())).map(drop)
    }

    /// Begins to write a blob; `None` if it turns out to be there.
    pub(crate) async fn write(&self, lease: &Lease, digest: Digest, size: u64) -> Result<Option<BlobWriter>, RpcError> {
        let action = || format!("write {digest}");
        let stat = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("{}-{digest}", lease.0),
            total: size.try_into().unwrap_or(i64::MAX),
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        let (requests, mut receiver) = mpsc::channel(1);
        let stream = stream::poll_fn(move |context| receiver.poll_recv(context));
        requests.try_send(stat).expect("an empty channel takes one message");
        let response = match ContentClient::new(self.0.clone()).write(request(stream, Some(lease))).await {
            Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
            response => response.map_err(failed(action))?,
        };
        let mut writer = BlobWriter { digest, size, requests, responses: response.into_inner(), offset: 0 };
        let Some(status) = writer.answer().await? else { return Ok(None) };
        // Content of another namespace is shared: containerd has all of it and only waits for the commit.
        writer.offset = status.offset;
        Ok(Some(writer))
    }
}

/// A blob on its way into the content store. Each request is answered before the next is sent, so that one piece is in
/// memory at a time.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    digest: Digest,
    size: u64,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    offset: i64,
}

impl BlobWriter {
    /// Whether containerd wants no data.
    fn is_full(&self) -> bool {
        u64::try_from(self.offset).is_ok_and(|offset| offset == self.size)
    }

    pub(crate) async fn write(&mut self, data: Vec<u8>) -> Result<(), RpcError> {
        if self.is_full() {
            return Ok(());
        }
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset,
            data,
            ..WriteContentRequest::default()
        };
        if let Some(response) = self.exchange(request).await? {
            self.offset = response.offset;
        }
        Ok(())
    }

    /// containerd compares length and digest before the blob exists.
    pub(crate) async fn commit(mut self, labels: HashMap<String, String>) -> Result<(), RpcError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: self.size.try_into().unwrap_or(i64::MAX),
            expected: self.digest.to_string(),
            offset: self.offset,
            labels,
            ..WriteContentRequest::default()
        };
        self.exchange(request).await.map(drop)
    }

    async fn exchange(&mut self, request: WriteContentRequest) -> Result<Option<WriteContentResponse>, RpcError> {
        // A closed channel means that the call has ended: the answer says why.
        let _ = self.requests.send(request).await;
        self.answer().await
    }

    /// `None` if the blob exists by now.
    async fn answer(&mut self) -> Result<Option<WriteContentResponse>, RpcError> {
        let digest = self.digest;
        match self.responses.message().await {
            Ok(Some(response)) => Ok(Some(response)),
            Ok(None) => Err(failed(|| format!("write {digest}"))(Status::aborted("the call ended early"))),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(failed(|| format!("write {digest}"))(status)),
        }
    }
}

fn image_labels() -> HashMap<String, String> {
    IMAGE_LABELS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn request<T>(message: T, lease: Option<&Lease>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("the namespace is ASCII"));
    if let Some(Lease(id)) = lease {
        request.metadata_mut().insert("containerd-lease", id.parse().expect("lease ids are ASCII"));
    }
    request
}

fn optional<T>(response: Result<Response<T>, Status>) -> Result<Option<T>, Status> {
    match response {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        response => response.map(|response| Some(response.into_inner())),
    }
}

fn failed(action: impl Fn() -> String) -> impl Fn(Status) -> RpcError {
    move |status| RpcError { action: action(), status: Box::new(status) }
}

/// What tests do to containerd behind the importer's back.
#[cfg(test)]
impl Containerd {
    /// Ending a lease synchronously ends with a garbage collection.
    pub(crate) async fn collect_garbage(&self) {
        let lease = self.lease().await.unwrap();
        let delete = request(DeleteRequest { id: lease.0, sync: true }, None);
        LeasesClient::new(self.0.clone()).delete(delete).await.unwrap();
    }

    pub(crate) async fn strip_labels(&self, image: &Image) {
        let update = UpdateImageRequest {
            image: Some(Image { labels: HashMap::new(), ..image.clone() }),
            update_mask: Some(FieldMask { paths: vec!["labels".to_owned()] }),
            ..UpdateImageRequest::default()
        };
        ImagesClient::new(self.0.clone()).update(request(update, None)).await.unwrap();
    }

    pub(crate) async fn remove_content(&self, digest: &Digest) {
        let delete = containerd_client::services::v1::DeleteContentRequest { digest: digest.to_string() };
        ContentClient::new(self.0.clone()).delete(request(delete, None)).await.unwrap();
    }
}
