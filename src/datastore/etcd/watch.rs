//! `etcdserverpb.Watch`: many watchers on one stream.
//!
//! A stream is pulled by its client: nothing is prepared while the client does not read, so a slow one costs no
//! memory and stays behind in the hub instead. Everything that is sent goes through one queue in order; that is how
//! a progress notification never overtakes an event.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::Service;
use super::messages::{self, WatchCreateRequest, WatchRequest, WatchRequestKind, WatchResponse};
use crate::error::RequestError;
use crate::follow::{Delivery, Step};
use crate::key::KeyRange;
use crate::revision::Revision;
use crate::watch::{Interest, WatcherId};

/// The watch id of messages that are about no watcher, or about all.
const NO_WATCHER: i64 = -1;

pub(super) fn watch(
    service: Service,
    requests: Streaming<WatchRequest>,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + 'static {
    try_unfold(WatchStream::new(service, requests), |mut stream| async move {
        Ok(stream.next().await?.map(|response| (response, stream)))
    })
}

struct WatchStream {
    service: Service,
    requests: Streaming<WatchRequest>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    /// Woken by the hub when one of our watchers is behind.
    wake: Arc<Notify>,
    ready: VecDeque<WatchResponse>,
    /// Whether the client waits for a progress notification about the whole stream.
    progress_requested: bool,
    /// When watchers that asked for it get progress notifications; `None` while there are none.
    tick: Option<Instant>,
}

struct Watcher {
    id: WatcherId,
    interest: Interest,
    prev_kv: bool,
    /// Whether it asked for notifications, and the last revision that it was reported.
    progress: Option<Revision>,
}

impl WatchStream {
    fn new(service: Service, requests: Streaming<WatchRequest>) -> Self {
        Self {
            service,
            requests,
            watchers: BTreeMap::new(),
            next_id: 0,
            wake: Arc::default(),
            ready: VecDeque::new(),
            progress_requested: false,
            tick: None,
        }
    }

    /// The next message for the client; `None` when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(response));
            }
            if !self.service.shutdown.is_cancelled() && self.collect_events().await? {
                continue;
            }
            if self.progress_requested {
                self.progress_requested = false;
                self.report_progress();
                continue;
            }
            let tick = self.tick;
            let ticked = async {
                match tick {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.service.shutdown.cancelled() => {
                    return Err(RequestError::Stopped("the datastore is closing".to_owned()).into());
                }
                request = self.requests.message() => match request? {
                    Some(request) => self.take_request(request),
                    None => return Ok(None),
                },
                () = self.wake.notified() => {}
                () = ticked => self.tick(),
            }
        }
    }

    fn take_request(&mut self, request: WatchRequest) {
        match request.request {
            Some(WatchRequestKind::Create(create)) => self.create(create),
            Some(WatchRequestKind::Cancel(cancel)) => {
                if let Some(watcher) = self.watchers.remove(&cancel.watch_id) {
                    let mut hub = self.service.store.hub();
                    hub.unwatch(watcher.id);
                    let header = self.service.header(hub.published());
                    drop(hub);
                    self.ready.push_back(WatchResponse {
                        header,
                        watch_id: cancel.watch_id,
                        canceled: true,
                        ..WatchResponse::default()
                    });
                }
            }
            Some(WatchRequestKind::Progress(_)) => self.progress_requested = true,
            // etcd ignores it too: a newer client may ask for what we do not know.
            None => {}
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { Bytes::copy_from_slice(&request.key) };
        let keys = KeyRange::new(key, Bytes::copy_from_slice(&request.range_end));
        let refusal = if request.start_revision < 0 {
            Some(RequestError::Compacted.to_string())
        } else if keys.is_empty() {
            Some("mvcc: watcher range is empty".to_owned())
        } else if request.watch_id != 0 && self.watchers.contains_key(&request.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
        } else {
            None
        };
        if let Some(cancel_reason) = refusal {
            self.ready.push_back(WatchResponse {
                header: self.service.header_now(),
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason,
                ..WatchResponse::default()
            });
            return;
        }
        let watch_id = if request.watch_id == 0 { self.unused_id() } else { request.watch_id };
        let interest = Interest { keys, puts: !request.filters.contains(&0), deletes: !request.filters.contains(&1) };
        let start = Revision(request.start_revision);
        let compacted = self.service.store.state().compacted;
        let (id, published) = self.service.store.hub().watch(interest.clone(), start, Arc::clone(&self.wake));
        let progress = request.progress_notify.then_some(Revision::ZERO);
        if progress.is_some() && self.tick.is_none() {
            self.tick = Some(self.service.store.next_tick());
        }
        self.watchers.insert(watch_id, Watcher { id, interest, prev_kv: request.prev_kv, progress });
        self.ready.push_back(WatchResponse {
            header: self.service.header(published),
            watch_id,
            created: true,
            ..WatchResponse::default()
        });
        if start > Revision::ZERO && start < compacted {
            self.cancel_compacted(watch_id, compacted);
        }
    }

    fn unused_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Fetches what the watchers have to see next, one message for each. Returns whether there was anything.
    async fn collect_events(&mut self) -> Result<bool, Status> {
        let store = Arc::clone(&self.service.store);
        let mut compacted = Vec::new();
        let mut any = false;
        for (&watch_id, watcher) in &mut self.watchers {
            match store.follow(watcher.id, &watcher.interest, watcher.prev_kv).await? {
                Step::UpToDate => continue,
                Step::Compacted(revision) => compacted.push((watch_id, revision)),
                Step::Changes { changes, .. } if changes.is_empty() => {}
                Step::Changes { changes, through } => {
                    if let Some(reported) = &mut watcher.progress {
                        *reported = through;
                    }
                    let header = self.service.header(through);
                    let events = changes.into_iter().map(Into::into).collect();
                    self.ready.push_back(WatchResponse { header, watch_id, events, ..WatchResponse::default() });
                }
            }
            any = true;
        }
        for (watch_id, revision) in compacted {
            self.cancel_compacted(watch_id, revision);
        }
        Ok(any)
    }

    fn cancel_compacted(&mut self, watch_id: i64, compact_revision: Revision) {
        if let Some(watcher) = self.watchers.remove(&watch_id) {
            self.service.store.hub().unwatch(watcher.id);
        }
        self.ready.push_back(WatchResponse {
            header: self.service.header_now(),
            watch_id,
            canceled: true,
            compact_revision: compact_revision.0,
            ..WatchResponse::default()
        });
    }

    /// Answers a request for progress of the whole stream. As etcd, it stays silent while a watcher is behind; the
    /// client asks again.
    fn report_progress(&mut self) {
        let progress = self.service.store.hub().progress(self.watchers.values().map(|watcher| watcher.id));
        if let Some(revision) = progress
            && !self.watchers.is_empty()
        {
            let header = self.service.header(revision);
            self.ready.push_back(WatchResponse { header, watch_id: NO_WATCHER, ..WatchResponse::default() });
        }
    }

    /// Tells the watchers that asked for it how far they are, unless they know.
    fn tick(&mut self) {
        let hub = self.service.store.hub();
        let mut asking = false;
        for (&watch_id, watcher) in &mut self.watchers {
            let Some(reported) = &mut watcher.progress else { continue };
            asking = true;
            if let Some(revision) = hub.progress(std::iter::once(watcher.id))
                && revision > *reported
            {
                *reported = revision;
                let header = self.service.header(revision);
                self.ready.push_back(WatchResponse { header, watch_id, ..WatchResponse::default() });
            }
        }
        drop(hub);
        self.tick = asking.then(|| self.service.store.next_tick());
    }
}

impl From<Delivery> for messages::Event {
    fn from(delivery: Delivery) -> Self {
        Self {
            kind: i32::from(delivery.kv.entry.is_tombstone()),
            kv: Some(delivery.kv.into()),
            prev_kv: delivery.previous.map(Into::into),
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        let mut hub = self.service.store.hub();
        for watcher in self.watchers.values() {
            hub.unwatch(watcher.id);
        }
    }
}
