//! `etcdserverpb.Maintenance`, as far as it makes sense for one server on one file.

use tonic::Status;

use super::messages::{
    AlarmMember, AlarmRequest, AlarmResponse, DowngradeInfo, EmptyRequest, HashKvRequest, HashKvResponse, HashResponse,
    HeaderResponse, StatusResponse,
};
use super::{MEMBER_ID, RAFT_TERM, Service, VERSION};
use crate::revision::Revision;
use crate::writer::Command;

/// Alarms.
const ANY: i32 = 0;
const NO_SPACE: i32 = 1;
/// Actions on them.
const ACTIVATE: i32 = 1;
const DEACTIVATE: i32 = 2;
/// What etcd says for a store that was never compacted.
const NEVER_COMPACTED: i64 = -1;

pub(super) async fn status(service: Service, _: EmptyRequest) -> Result<StatusResponse, Status> {
    let size = service.store.size().await?;
    let revision = service.store.revision();
    let index = u64::try_from(revision.0).unwrap_or(0);
    let errors = service.store.space.look().then(|| format!("memberID:{MEMBER_ID} alarm:NOSPACE "));
    let room = i64::try_from(service.store.space.room()).unwrap_or(i64::MAX);
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
        is_learner: false,
        storage_version: "3.6.0".to_owned(),
        db_size_quota: size.total.saturating_add(room),
        downgrade_info: Some(DowngradeInfo {}),
    })
}

/// The one alarm there is follows the file system: it goes off by itself when there is room again.
pub(super) fn alarm(service: &Service, request: AlarmRequest) -> Result<AlarmResponse, Status> {
    let before = service.store.has_no_space();
    let raised = service.store.space.look();
    let asked = request.alarm == ANY || request.alarm == NO_SPACE;
    let listed = match request.action {
        ACTIVATE => return Err(Status::unimplemented("alarms follow the file system and cannot be set")),
        DEACTIVATE if asked && raised => {
            return Err(Status::failed_precondition(
                "the file system is still nearly full: make room on it, and the alarm goes by itself",
            ));
        }
        // As etcd, it answers with what was disarmed.
        DEACTIVATE => asked && before,
        _ => asked && raised,
    };
    let alarms = listed.then_some(AlarmMember { member_id: MEMBER_ID, alarm: NO_SPACE });
    Ok(AlarmResponse { header: service.header_now(), alarms: alarms.into_iter().collect() })
}

pub(super) async fn defragment(service: Service, _: EmptyRequest) -> Result<HeaderResponse, Status> {
    service.store.command(|reply| Command::Defragment { reply }).await?;
    Ok(HeaderResponse { header: service.header_now() })
}

/// etcd hashes its whole file here, which says nothing about another one's; ours is the hash of the keys.
pub(super) async fn hash(service: Service, _: EmptyRequest) -> Result<HashResponse, Status> {
    let hash = service.store.hash_keys(Revision::ZERO).await?;
    Ok(HashResponse { header: service.header(hash.head), hash: hash.hash })
}

pub(super) async fn hash_kv(service: Service, request: HashKvRequest) -> Result<HashKvResponse, Status> {
    let hash = service.store.hash_keys(Revision(request.revision)).await?;
    let compact_revision = if hash.compacted == Revision::ZERO { NEVER_COMPACTED } else { hash.compacted.0 };
    Ok(HashKvResponse {
        header: service.header(hash.head),
        hash: hash.hash,
        compact_revision,
        hash_revision: hash.at.0,
    })
}
