//! `grpc.health.v1.Health`: serving, as long as the writer does.

use tonic::Status;

use super::Service;
use super::messages::{HealthCheckRequest, HealthCheckResponse};

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

pub(super) fn check(service: &Service, request: HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    if !request.service.is_empty() {
        return Err(Status::not_found(format!("no health is kept for {:?}; ask for the empty name", request.service)));
    }
    let status = if service.store.is_stopped() { NOT_SERVING } else { SERVING };
    Ok(HealthCheckResponse { status })
}
