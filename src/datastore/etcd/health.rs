//! `grpc.health.v1.Health`: serving, as long as the writer does.

use futures_util::Stream;
use futures_util::stream::try_unfold;
use tonic::{Status, Streaming};

use super::Service;
use super::messages::{HealthCheckRequest, HealthCheckResponse};
use crate::error::RequestError;

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;
const SERVICE_UNKNOWN: i32 = 3;

pub(super) fn check(service: &Service, request: HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    match status(service, &request) {
        SERVICE_UNKNOWN => {
            let name = request.service;
            Err(Status::not_found(format!("no health is kept for {name:?}; ask for the empty name")))
        }
        status => Ok(HealthCheckResponse { status }),
    }
}

/// Tells the status at once, and again when it changes.
pub(super) fn watch(
    service: Service,
    requests: Streaming<HealthCheckRequest>,
) -> impl Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static {
    try_unfold((service, requests, None), |(service, mut requests, reported)| async move {
        let status = match reported {
            None => match requests.message().await? {
                Some(request) => status(&service, &request),
                None => return Ok(None),
            },
            Some(reported) => tokio::select! {
                _ = service.store.stopped(), if reported == SERVING => NOT_SERVING,
                () = service.shutdown.cancelled() => {
                    return Err(RequestError::Stopped("the datastore is closing".to_owned()).into());
                }
            },
        };
        Ok(Some((HealthCheckResponse { status }, (service, requests, Some(status)))))
    })
}

fn status(service: &Service, request: &HealthCheckRequest) -> i32 {
    if !request.service.is_empty() {
        SERVICE_UNKNOWN
    } else if service.store.is_stopped() {
        NOT_SERVING
    } else {
        SERVING
    }
}
