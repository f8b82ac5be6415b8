//! `etcdserverpb.Cluster`: a cluster of one.

use tonic::Status;

use super::messages::{EmptyRequest, Member, MemberListResponse};
use super::{MEMBER_ID, Service};

pub(super) fn member_list(service: &Service, _: EmptyRequest) -> Result<MemberListResponse, Status> {
    let urls = vec![service.url.to_string()];
    let member =
        Member { id: MEMBER_ID, name: "k3s".to_owned(), peer_urls: urls.clone(), client_urls: urls, is_learner: false };
    Ok(MemberListResponse { header: service.header_now(), members: vec![member] })
}
