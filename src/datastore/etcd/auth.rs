//! `etcdserverpb.Auth`, as etcd answers while authentication is off: clients that are given a user ask and go on without.

use tonic::Status;

use super::Service;
use super::messages::{AuthStatusResponse, EmptyRequest};
use crate::error::RequestError;

/// What etcd's store of users has before there are any.
const FIRST_REVISION: u64 = 1;

pub(super) fn status(service: &Service, _: EmptyRequest) -> Result<AuthStatusResponse, Status> {
    Ok(AuthStatusResponse { header: service.header_now(), enabled: false, auth_revision: FIRST_REVISION })
}

pub(super) fn authenticate(_: EmptyRequest) -> Result<EmptyRequest, Status> {
    Err(RequestError::AuthNotEnabled.into())
}
