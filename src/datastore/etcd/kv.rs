//! `etcdserverpb.KV`: from messages to requests of the store, and back.

use bytes::Bytes;
use tonic::Status;

use super::Service;
use super::call::check_size;
use super::messages::{
    self, CompactionRequest, Compare, CompareOperand, DeleteRangeRequest, DeleteRangeResponse, HeaderResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, RequestOpKind, ResponseHeader, ResponseOp,
    ResponseOpKind, TxnRequest, TxnResponse,
};
use crate::error::RequestError;
use crate::key::KeyRange;
use crate::range::{KeyValue, Page, Range, RevisionBounds, SortOrder, SortTarget};
use crate::revision::{LeaseId, Revision};
use crate::txn::{Delete, Guard, Op, OpReply, Put, Relation, Target, Txn};
use crate::writer::Command;

pub(super) async fn range(service: Service, request: RangeRequest) -> Result<RangeResponse, Status> {
    let page = service.store.range(&request.try_into()?).await?;
    let header = service.header(page.revision);
    Ok(RangeResponse { header, ..page.into() })
}

pub(super) async fn put(service: Service, request: PutRequest) -> Result<PutResponse, Status> {
    check_size(&request)?;
    let reply = service.store.txn(Txn::of(Op::Put(request.try_into()?))).await?;
    let header = service.header(reply.revision);
    match reply.replies.into_iter().next() {
        Some(OpReply::Put { previous, .. }) => Ok(PutResponse { header, prev_kv: previous.map(Into::into) }),
        _ => Err(Status::internal("a put was answered as something else")),
    }
}

pub(super) async fn delete_range(service: Service, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
    check_size(&request)?;
    let reply = service.store.txn(Txn::of(Op::Delete(request.try_into()?))).await?;
    let header = service.header(reply.revision);
    match reply.replies.into_iter().next() {
        Some(OpReply::Delete { deleted, previous, .. }) => {
            let prev_kvs = previous.into_iter().map(Into::into).collect();
            Ok(DeleteRangeResponse { header, deleted: count(deleted), prev_kvs })
        }
        _ => Err(Status::internal("a delete was answered as something else")),
    }
}

pub(super) async fn txn(service: Service, request: TxnRequest) -> Result<TxnResponse, Status> {
    check_size(&request)?;
    let reply = service.store.txn(request.try_into()?).await?;
    Ok(TxnResponse {
        header: service.header(reply.revision),
        succeeded: reply.succeeded,
        responses: reply.replies.into_iter().map(Into::into).collect(),
    })
}

pub(super) async fn compact(service: Service, request: CompactionRequest) -> Result<HeaderResponse, Status> {
    let CompactionRequest { revision, physical } = request;
    let command = |reply| Command::Compact { revision: Revision(revision), physical, reply };
    let revision = service.store.command(command).await?;
    Ok(HeaderResponse { header: service.header(revision) })
}

impl TryFrom<RangeRequest> for Range {
    type Error = RequestError;

    fn try_from(request: RangeRequest) -> Result<Self, RequestError> {
        let order = match request.sort_order {
            0 => None,
            1 => Some(SortOrder::Ascend),
            2 => Some(SortOrder::Descend),
            _ => return Err(RequestError::InvalidSortOption),
        };
        let target = match request.sort_target {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::Create,
            3 => SortTarget::Mod,
            4 => SortTarget::Value,
            _ => return Err(RequestError::InvalidSortOption),
        };
        let bounds = |min, max| RevisionBounds { min: Revision(min), max: Revision(max) };
        Ok(Self {
            keys: keys(request.key, request.range_end)?,
            revision: Revision(request.revision),
            limit: usize::try_from(request.limit).ok().filter(|&limit| limit > 0),
            order,
            target,
            keys_only: request.keys_only,
            count_only: request.count_only,
            modified: bounds(request.min_mod_revision, request.max_mod_revision),
            created: bounds(request.min_create_revision, request.max_create_revision),
        })
    }
}

impl TryFrom<PutRequest> for Put {
    type Error = RequestError;

    fn try_from(request: PutRequest) -> Result<Self, RequestError> {
        let PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
        if key.is_empty() {
            return Err(RequestError::EmptyKey);
        }
        if ignore_value && !value.is_empty() {
            return Err(RequestError::ValueProvided);
        }
        if ignore_lease && lease != 0 {
            return Err(RequestError::LeaseProvided);
        }
        Ok(Self {
            // A copy: a slice would keep the whole receive buffer alive for as long as the key is known.
            key: Bytes::copy_from_slice(&key),
            value: (!ignore_value).then(|| Bytes::from(value.into_boxed_slice())),
            lease: (!ignore_lease).then_some(LeaseId(lease)),
            return_previous: prev_kv,
        })
    }
}

impl TryFrom<DeleteRangeRequest> for Delete {
    type Error = RequestError;

    fn try_from(request: DeleteRangeRequest) -> Result<Self, RequestError> {
        Ok(Self { keys: keys(request.key, request.range_end)?, return_previous: request.prev_kv })
    }
}

impl TryFrom<TxnRequest> for Txn {
    type Error = RequestError;

    fn try_from(request: TxnRequest) -> Result<Self, RequestError> {
        let ops = |ops: Vec<RequestOp>| ops.into_iter().map(Op::try_from).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            guards: request.compare.into_iter().map(Guard::try_from).collect::<Result<_, _>>()?,
            success: ops(request.success)?,
            failure: ops(request.failure)?,
        })
    }
}

impl TryFrom<RequestOp> for Op {
    type Error = RequestError;

    fn try_from(op: RequestOp) -> Result<Self, RequestError> {
        match op.request {
            Some(RequestOpKind::Range(range)) => Ok(Self::Range(range.try_into()?)),
            Some(RequestOpKind::Put(put)) => Ok(Self::Put(put.try_into()?)),
            Some(RequestOpKind::DeleteRange(delete)) => Ok(Self::Delete(delete.try_into()?)),
            Some(RequestOpKind::Txn(_)) => {
                Err(RequestError::Unsupported("a transaction within a transaction: send them one by one".to_owned()))
            }
            None => Err(RequestError::KeyNotFound),
        }
    }
}

impl TryFrom<Compare> for Guard {
    type Error = RequestError;

    fn try_from(compare: Compare) -> Result<Self, RequestError> {
        let relation = match compare.result {
            0 => Relation::Equal,
            1 => Relation::Greater,
            2 => Relation::Less,
            3 => Relation::NotEqual,
            other => return Err(RequestError::Unsupported(format!("comparison {other}"))),
        };
        // The operand of another target counts as missing, which is zero.
        let target = match (compare.target, compare.operand) {
            (0, Some(CompareOperand::Version(version))) => Target::Version(version),
            (0, _) => Target::Version(0),
            (1, Some(CompareOperand::CreateRevision(revision))) => Target::Create(Revision(revision)),
            (1, _) => Target::Create(Revision::ZERO),
            (2, Some(CompareOperand::ModRevision(revision))) => Target::Mod(Revision(revision)),
            (2, _) => Target::Mod(Revision::ZERO),
            (3, Some(CompareOperand::Value(value))) => Target::Value(value),
            (3, _) => Target::Value(Bytes::new()),
            (4, Some(CompareOperand::Lease(lease))) => Target::Lease(LeaseId(lease)),
            (4, _) => Target::Lease(LeaseId::NONE),
            (other, _) => return Err(RequestError::Unsupported(format!("comparison with target {other}"))),
        };
        Ok(Self { keys: keys(compare.key, compare.range_end)?, target, relation })
    }
}

fn keys(key: Bytes, range_end: Bytes) -> Result<KeyRange, RequestError> {
    if key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(KeyRange::new(key, range_end)) }
}

impl From<KeyValue> for messages::KeyValue {
    fn from(kv: KeyValue) -> Self {
        let KeyValue { key, entry, value } = kv;
        Self {
            key,
            create_revision: entry.created.0,
            mod_revision: entry.modified.0,
            version: entry.version,
            value,
            lease: entry.lease.0,
        }
    }
}

impl From<Page> for RangeResponse {
    fn from(page: Page) -> Self {
        Self {
            header: inner_header(page.revision),
            kvs: page.kvs.into_iter().map(Into::into).collect(),
            more: page.more,
            count: count(page.count),
        }
    }
}

impl From<OpReply> for ResponseOp {
    fn from(reply: OpReply) -> Self {
        let response = match reply {
            OpReply::Range(page) => ResponseOpKind::Range(page.into()),
            OpReply::Put { revision, previous } => {
                ResponseOpKind::Put(PutResponse { header: inner_header(revision), prev_kv: previous.map(Into::into) })
            }
            OpReply::Delete { revision, deleted, previous } => ResponseOpKind::DeleteRange(DeleteRangeResponse {
                header: inner_header(revision),
                deleted: count(deleted),
                prev_kvs: previous.into_iter().map(Into::into).collect(),
            }),
        };
        Self { response: Some(response) }
    }
}

/// Headers within a transaction's answer say only the revision.
fn inner_header(revision: Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: revision.0, ..ResponseHeader::default() })
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
