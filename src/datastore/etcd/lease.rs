//! `etcdserverpb.Lease`.

use futures_util::Stream;
use futures_util::stream::try_unfold;
use tonic::{Status, Streaming};

use super::Service;
use super::messages::{
    EmptyRequest, HeaderResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRequest, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::error::RequestError;
use crate::revision::LeaseId;
use crate::writer::Command;

pub(super) async fn grant(service: Service, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
    let LeaseGrantRequest { ttl, id } = request;
    let (id, ttl) = service.store.command(|reply| Command::Grant { id: LeaseId(id), ttl, reply }).await?;
    Ok(LeaseGrantResponse { header: service.header_now(), id: id.0, ttl })
}

pub(super) async fn revoke(service: Service, request: LeaseRequest) -> Result<HeaderResponse, Status> {
    let revision = service.store.command(|reply| Command::Revoke { id: LeaseId(request.id), reply }).await?;
    Ok(HeaderResponse { header: service.header(revision) })
}

pub(super) fn keep_alive(
    service: Service,
    requests: Streaming<LeaseRequest>,
) -> impl Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send + 'static {
    try_unfold((service, requests), |(service, mut requests)| async move {
        let message = tokio::select! {
            message = requests.message() => message?,
            () = service.shutdown.cancelled() => {
                return Err(RequestError::Stopped("the datastore is closing".to_owned()).into());
            }
        };
        let Some(LeaseRequest { id }) = message else { return Ok(None) };
        // Taken before, so that a client never sees the lease alive at a revision at which it has ended.
        let header = service.header_now();
        let ttl = service.store.renew(LeaseId(id)).await?.unwrap_or(0);
        Ok(Some((LeaseKeepAliveResponse { header, id, ttl }, (service, requests))))
    })
}

pub(super) fn time_to_live(
    service: &Service,
    request: LeaseTimeToLiveRequest,
) -> Result<LeaseTimeToLiveResponse, Status> {
    let LeaseTimeToLiveRequest { id, keys } = request;
    let header = service.header_now();
    Ok(match service.store.lease_state(LeaseId(id)) {
        Some(state) => LeaseTimeToLiveResponse {
            header,
            id,
            ttl: state.remaining,
            granted_ttl: state.granted,
            keys: if keys { state.keys } else { Vec::new() },
        },
        None => LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() },
    })
}

pub(super) fn leases(service: &Service, _: EmptyRequest) -> Result<LeaseLeasesResponse, Status> {
    let leases = service.store.lessor().ids().map(|id| LeaseStatus { id: id.0 }).collect();
    Ok(LeaseLeasesResponse { header: service.header_now(), leases })
}
