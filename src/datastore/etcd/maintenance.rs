//! `etcdserverpb.Maintenance`, as far as it makes sense for one server on one file.

use tonic::Status;

use super::messages::{AlarmMember, AlarmRequest, AlarmResponse, EmptyRequest, HeaderResponse, StatusResponse};
use super::{MEMBER_ID, RAFT_TERM, Service, VERSION};
use crate::writer::Command;

const NO_SPACE: i32 = 1;
const ACTIVATE: i32 = 1;

pub(super) async fn status(service: Service, _: EmptyRequest) -> Result<StatusResponse, Status> {
    let size = service.store.size().await?;
    let revision = service.store.revision();
    let index = u64::try_from(revision.0).unwrap_or(0);
    let errors = service.store.has_no_space().then(|| format!("memberID:{MEMBER_ID} alarm:NOSPACE "));
    Ok(StatusResponse {
        header: service.header(revision),
        version: VERSION.to_owned(),
        db_size: size.total,
        leader: MEMBER_ID,
        raft_index: index,
        raft_term: RAFT_TERM,
        raft_applied_index: index,
        errors: errors.into_iter().collect(),
        db_size_in_use: size.in_use,
        storage_version: "3.6.0".to_owned(),
    })
}

/// The one alarm there is follows the file system: it goes off by itself when there is room again.
pub(super) fn alarm(service: &Service, request: AlarmRequest) -> Result<AlarmResponse, Status> {
    if request.action == ACTIVATE {
        return Err(Status::unimplemented("alarms follow the state of the file system and cannot be set"));
    }
    let asked = request.alarm == 0 || request.alarm == NO_SPACE;
    let raised = asked && service.store.has_no_space();
    let alarms = raised.then_some(AlarmMember { member_id: MEMBER_ID, alarm: NO_SPACE });
    Ok(AlarmResponse { header: service.header_now(), alarms: alarms.into_iter().collect() })
}

pub(super) async fn defragment(service: Service, _: EmptyRequest) -> Result<HeaderResponse, Status> {
    service.store.command(|reply| Command::Defragment { reply }).await?;
    Ok(HeaderResponse { header: service.header_now() })
}
