//! etcd's contract, asked for by a client that others wrote.
//!
//! Each test runs against this store, and first against etcd itself where `ETCD_BINARY` names it: what does not hold
//! there is not the contract.

mod etcdctl;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, DeleteOptions, Error as ClientError, EventType, GetOptions,
    LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::etcd::messages::{AuthStatusResponse, EmptyRequest, HealthCheckRequest, HealthCheckResponse};
use crate::{Datastore, Error, Options};

/// How often watchers that ask for it hear of progress here, in milliseconds: the least that etcd takes.
const PROGRESS: u64 = 100;

/// This store, served on a port of its own.
pub(crate) struct Served {
    pub(crate) client: Client,
    url: String,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), Error>>,
}

impl Served {
    pub(crate) async fn open(options: Options) -> Self {
        Self::start(Datastore::open(options).await.unwrap()).await
    }

    pub(crate) async fn start(datastore: Datastore) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let serving = tokio::spawn(async move {
            datastore.serve(listener, stop).await?;
            datastore.close().await
        });
        let url = format!("http://{address}");
        let client = Client::connect([&url], None).await.unwrap();
        Self { client, url, shutdown, serving }
    }

    pub(crate) async fn close(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

/// etcd, if there is one to compare with.
struct Original {
    client: Client,
    url: String,
    process: Child,
    _directory: TempDir,
}

impl Original {
    async fn start() -> Option<Self> {
        let binary = std::env::var_os("ETCD_BINARY")?;
        let directory = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let urls: Vec<_> = ports.iter().map(|port| format!("http://{}", port.local_addr().unwrap())).collect();
        drop(ports);
        let process = Command::new(binary)
            .arg("--data-dir")
            .arg(directory.path())
            .args(["--listen-client-urls", &urls[0], "--advertise-client-urls", &urls[0]])
            .args(["--listen-peer-urls", &urls[1], "--initial-advertise-peer-urls", &urls[1]])
            .args(["--initial-cluster", &format!("default={}", urls[1])])
            .arg(format!("--watch-progress-notify-interval={PROGRESS}ms"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = loop {
            let mut client = Client::connect([&urls[0]], None).await.unwrap();
            if client.status().await.is_ok() {
                break client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        Some(Self { client, url: urls[0].clone(), process, _directory: directory })
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn contract(test: impl AsyncFn(Client)) {
    contract_at(async |client, _| test(client).await).await;
}

/// For tests that also need the address.
pub(crate) async fn contract_at(test: impl AsyncFn(Client, String)) {
    if let Some(original) = Original::start().await {
        test(original.client.clone(), original.url.clone()).await;
    }
    ours_at(test).await;
}

async fn ours(test: impl AsyncFn(Client)) {
    ours_at(async |client, _| test(client).await).await;
}

async fn ours_at(test: impl AsyncFn(Client, String)) {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path().join("state.db"));
    options.progress_interval = Duration::from_millis(PROGRESS);
    let served = Served::open(options).await;
    test(served.client.clone(), served.url.clone()).await;
    served.close().await;
}

fn refusal<T>(result: Result<T, ClientError>) -> (Code, String) {
    match result {
        Err(ClientError::GRpcStatus(status)) => (status.code(), status.message().to_owned()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("should have been refused"),
    }
}

async fn put(client: &mut Client, key: &str, value: &str) -> i64 {
    client.put(key, value, None).await.unwrap().header().unwrap().revision()
}

async fn keys(client: &mut Client, key: &str, options: GetOptions) -> Vec<String> {
    let response = client.get(key, Some(options)).await.unwrap();
    response.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()).collect()
}

/// What Kubernetes sends to write an object: only if it is still at this revision; else say what it is.
fn optimistic(key: &str, revision: i64, op: TxnOp) -> Txn {
    Txn::new()
        .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
        .and_then([op])
        .or_else([TxnOp::get(key, None)])
}

#[tokio::test]
async fn revisions_begin_at_one_and_count_changes() {
    contract(async |mut client| {
        assert_eq!(client.get("a", None).await.unwrap().header().unwrap().revision(), 1);
        assert_eq!(put(&mut client, "a", "1").await, 2);
        assert_eq!(put(&mut client, "a", "2").await, 3);
        let deleted = client.delete("nothing", None).await.unwrap();
        assert_eq!((deleted.deleted(), deleted.header().unwrap().revision()), (0, 3));
        let deleted = client.delete("a", Some(DeleteOptions::new().with_prev_key())).await.unwrap();
        assert_eq!((deleted.deleted(), deleted.header().unwrap().revision()), (1, 4));
        assert_eq!(deleted.prev_kvs()[0].value(), b"2");
        assert_eq!(put(&mut client, "a", "3").await, 5);
        let response = client.get("a", None).await.unwrap();
        let kv = &response.kvs()[0];
        assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()), (5, 5, 1, 0));
    })
    .await;
}

#[tokio::test]
async fn kubernetes_writes_are_guarded_by_revision() {
    contract(async |mut client| {
        let create = || optimistic("/registry/a", 0, TxnOp::put("/registry/a", "1", None));
        let created = client.txn(create()).await.unwrap();
        assert!(created.succeeded());
        assert_eq!(created.header().unwrap().revision(), 2);

        let again = client.txn(create()).await.unwrap();
        assert!(!again.succeeded());
        assert_eq!(again.header().unwrap().revision(), 2);
        let [TxnOpResponse::Get(get)] = &again.op_responses()[..] else { panic!("should answer with the object") };
        assert_eq!((get.kvs()[0].value(), get.kvs()[0].mod_revision()), (&b"1"[..], 2));

        let update = optimistic("/registry/a", 2, TxnOp::put("/registry/a", "2", None));
        assert!(client.txn(update).await.unwrap().succeeded());
        let stale = optimistic("/registry/a", 2, TxnOp::delete("/registry/a", None));
        assert!(!client.txn(stale).await.unwrap().succeeded());

        // Without an else arm a refusal says nothing more.
        let bare = |revision| {
            Txn::new()
                .when([Compare::mod_revision("/registry/a", CompareOp::Equal, revision)])
                .and_then([TxnOp::delete("/registry/a", Some(DeleteOptions::new().with_prev_key()))])
        };
        let refused = client.txn(bare(2)).await.unwrap();
        assert!(!refused.succeeded() && refused.op_responses().is_empty());
        let deleted = client.txn(bare(3)).await.unwrap();
        assert!(deleted.succeeded());
        let [TxnOpResponse::Delete(delete)] = &deleted.op_responses()[..] else { panic!("should have deleted") };
        assert_eq!((delete.deleted(), delete.prev_kvs()[0].value()), (1, &b"2"[..]));

        // The object is not there: the else arm finds nothing.
        let missing = optimistic("/registry/a", 3, TxnOp::put("/registry/a", "3", None));
        let missing = client.txn(missing).await.unwrap();
        let [TxnOpResponse::Get(get)] = &missing.op_responses()[..] else { panic!("should have looked") };
        assert!(!missing.succeeded() && get.kvs().is_empty());
    })
    .await;
}

#[tokio::test]
async fn apiservers_compact_key_counts_versions() {
    contract(async |mut client| {
        let key = "compact_rev_key";
        for version in 0..3 {
            let txn = Txn::new()
                .when([Compare::version(key, CompareOp::Equal, version)])
                .and_then([TxnOp::put(key, format!("{}", version * 100), None)])
                .or_else([TxnOp::get(key, None)]);
            let done = client.txn(txn.clone()).await.unwrap();
            assert!(done.succeeded());
            let again = client.txn(txn).await.unwrap();
            let [TxnOpResponse::Get(get)] = &again.op_responses()[..] else { panic!("should have looked") };
            let kv = &get.kvs()[0];
            assert_eq!(kv.value_str().unwrap(), (version * 100).to_string());
            assert_eq!((kv.version(), kv.mod_revision()), (version + 1, done.header().unwrap().revision()));
        }
        assert_eq!(keys(&mut client, "c", GetOptions::new().with_prefix()).await, [key]);
    })
    .await;
}

#[tokio::test]
async fn ranges_limit_count_sort_and_filter() {
    contract(async |mut client| {
        for (key, value) in [("k/a", "3"), ("k/b", "1"), ("k/c", "2"), ("l", "x"), ("k/a", "4")] {
            put(&mut client, key, value).await;
        }
        let prefix = || GetOptions::new().with_prefix();
        assert_eq!(keys(&mut client, "k/", prefix()).await, ["k/a", "k/b", "k/c"]);
        assert_eq!(keys(&mut client, "k/b", GetOptions::new().with_from_key()).await, ["k/b", "k/c", "l"]);
        assert_eq!(keys(&mut client, "k/a", GetOptions::new().with_range("k/c")).await, ["k/a", "k/b"]);
        assert_eq!(keys(&mut client, "", GetOptions::new().with_all_keys()).await.len(), 4);

        let page = client.get("k/", Some(prefix().with_limit(2))).await.unwrap();
        assert_eq!((page.kvs().len(), page.more(), page.count()), (2, true, 3));
        let page = client.get("k/", Some(prefix().with_limit(3))).await.unwrap();
        assert!(!page.more());
        let count = client.get("k/", Some(prefix().with_count_only())).await.unwrap();
        assert_eq!((count.kvs().len(), count.count()), (0, 3));
        let names = client.get("k/", Some(prefix().with_keys_only())).await.unwrap();
        assert!(names.kvs().iter().all(|kv| kv.value().is_empty() && kv.mod_revision() > 0));

        let sorted = |target, order| prefix().with_sort(target, order).with_limit(2);
        for (target, order, expected) in [
            (SortTarget::Key, SortOrder::Descend, ["k/c", "k/b"]),
            (SortTarget::Version, SortOrder::Descend, ["k/a", "k/b"]),
            (SortTarget::Create, SortOrder::Descend, ["k/c", "k/b"]),
            (SortTarget::Mod, SortOrder::Ascend, ["k/b", "k/c"]),
            (SortTarget::Value, SortOrder::Ascend, ["k/b", "k/c"]),
        ] {
            assert_eq!(keys(&mut client, "k/", sorted(target, order)).await, expected);
        }
        let value_and_count = prefix().with_min_mod_revision(4).with_max_mod_revision(5);
        let page = client.get("k/", Some(value_and_count)).await.unwrap();
        assert_eq!((page.kvs()[0].key(), page.kvs().len(), page.count()), (&b"k/c"[..], 1, 3));
        assert_eq!(keys(&mut client, "k/", prefix().with_min_create_revision(3)).await, ["k/b", "k/c"]);
        assert_eq!(keys(&mut client, "k/", prefix().with_max_create_revision(2)).await, ["k/a"]);
    })
    .await;
}

#[tokio::test]
async fn the_past_can_be_read_until_it_is_compacted() {
    contract(async |mut client| {
        put(&mut client, "a", "1").await;
        put(&mut client, "a", "2").await;
        client.delete("a", None).await.unwrap();
        put(&mut client, "b", "1").await;
        let at = |revision| Some(GetOptions::new().with_revision(revision));
        assert_eq!(client.get("a", at(3)).await.unwrap().kvs()[0].value(), b"2");
        assert_eq!(client.get("a", at(3)).await.unwrap().header().unwrap().revision(), 5);
        assert!(client.get("a", at(4)).await.unwrap().kvs().is_empty());

        let future = (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision".to_owned());
        let compacted = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".to_owned());
        assert_eq!(refusal(client.get("a", at(6)).await), future);
        assert_eq!(refusal(client.compact(6, None).await), future);
        client.compact(3, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
        assert_eq!(client.get("a", at(3)).await.unwrap().kvs()[0].value(), b"2");
        assert_eq!(refusal(client.get("a", at(2)).await), compacted);
        assert_eq!(refusal(client.compact(3, None).await), compacted);
        client.compact(5, None).await.unwrap();
        assert_eq!(client.get("b", None).await.unwrap().kvs()[0].create_revision(), 5);
        assert!(client.get("a", None).await.unwrap().kvs().is_empty());
    })
    .await;
}

#[tokio::test]
async fn guards_compare_every_target() {
    contract(async |mut client| {
        let lease = client.lease_grant(60, None).await.unwrap().id();
        put(&mut client, "a", "m").await;
        client.put("a", "m", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        let mut holds = async |guard: Compare| client.txn(Txn::new().when([guard])).await.unwrap().succeeded();
        use CompareOp::{Equal, Greater, Less, NotEqual};
        for (op, number, value, other_lease) in
            [(Equal, 0, "m", lease), (Greater, -1, "l", lease - 1), (Less, 1, "n", lease + 1), (NotEqual, 7, "x", 1)]
        {
            assert!(holds(Compare::version("a", op, 2 + number)).await);
            assert!(holds(Compare::create_revision("a", op, 2 + number)).await);
            assert!(holds(Compare::mod_revision("a", op, 3 + number)).await);
            assert!(holds(Compare::value("a", op, value)).await);
            assert!(holds(Compare::lease("a", op, other_lease)).await);
        }
        assert!(!holds(Compare::value("a", Equal, "x")).await);
        // A missing key is all zeros, and has no value at all.
        assert!(holds(Compare::version("none", Equal, 0)).await);
        assert!(holds(Compare::mod_revision("none", Less, 1)).await);
        assert!(!holds(Compare::value("none", Equal, "")).await);
        assert!(!holds(Compare::value("none", NotEqual, "x")).await);
        // Of a range every key must comply.
        assert!(holds(Compare::create_revision("a", Greater, 0).with_prefix()).await);
        assert!(!holds(Compare::create_revision("none", Greater, 0).with_prefix()).await);
    })
    .await;
}

#[tokio::test]
async fn puts_can_keep_value_or_lease() {
    contract(async |mut client| {
        let missing = (Code::InvalidArgument, "etcdserver: key not found".to_owned());
        let keep_value = || Some(PutOptions::new().with_ignore_value());
        assert_eq!(refusal(client.put("a", "", keep_value()).await), missing);
        assert_eq!(refusal(client.put("a", "1", Some(PutOptions::new().with_ignore_lease())).await), missing);
        assert_eq!(refusal(client.put("a", "1", keep_value()).await).1, "etcdserver: value is provided");
        let both = PutOptions::new().with_ignore_lease().with_lease(7);
        assert_eq!(refusal(client.put("a", "1", Some(both)).await).1, "etcdserver: lease is provided");

        let lease = client.lease_grant(60, None).await.unwrap().id();
        put(&mut client, "a", "1").await;
        client.put("a", "", Some(PutOptions::new().with_ignore_value().with_lease(lease))).await.unwrap();
        let previous = client.put("a", "2", Some(PutOptions::new().with_ignore_lease().with_prev_key())).await.unwrap();
        let previous = previous.prev_key().unwrap();
        assert_eq!((previous.value(), previous.lease(), previous.version()), (&b"1"[..], lease, 2));
        let response = client.get("a", None).await.unwrap();
        let kv = &response.kvs()[0];
        assert_eq!((kv.value(), kv.lease(), kv.version()), (&b"2"[..], lease, 3));
    })
    .await;
}

#[tokio::test]
async fn a_transaction_reads_its_own_write() {
    contract(async |mut client| {
        put(&mut client, "a", "old").await;
        let all = || TxnOp::get("", Some(GetOptions::new().with_all_keys()));
        let txn = Txn::new().and_then([all(), TxnOp::put("b", "new", None), all()]);
        let done = client.txn(txn).await.unwrap();
        let [TxnOpResponse::Get(before), TxnOpResponse::Put(_), TxnOpResponse::Get(after)] = &done.op_responses()[..]
        else {
            panic!("should answer in order")
        };
        assert_eq!((before.count(), after.count()), (1, 2));
        assert_eq!((before.header().unwrap().revision(), after.header().unwrap().revision()), (2, 3));
    })
    .await;
}

#[tokio::test]
async fn malformed_requests_get_etcds_errors() {
    contract(async |mut client| {
        let invalid = |text: &str| (Code::InvalidArgument, text.to_owned());
        let twice = Txn::new().and_then([TxnOp::put("a", "1", None), TxnOp::put("a", "2", None)]);
        assert_eq!(refusal(client.txn(twice).await), invalid("etcdserver: duplicate key given in txn request"));
        let overlap = Txn::new()
            .or_else([TxnOp::put("a/b", "1", None), TxnOp::delete("a/", Some(DeleteOptions::new().with_prefix()))]);
        assert_eq!(refusal(client.txn(overlap).await), invalid("etcdserver: duplicate key given in txn request"));
        let many: Vec<_> = (0..129).map(|i| TxnOp::get(format!("{i}"), None)).collect();
        let many = Txn::new().and_then(many);
        assert_eq!(refusal(client.txn(many).await), invalid("etcdserver: too many operations in txn request"));
        assert_eq!(refusal(client.get("", None).await), invalid("etcdserver: key is not provided"));
        assert_eq!(refusal(client.put("", "", None).await), invalid("etcdserver: key is not provided"));
        assert_eq!(refusal(client.delete("", None).await), invalid("etcdserver: key is not provided"));
        let large = vec![0; 1600 * 1024];
        assert_eq!(refusal(client.put("a", large.clone(), None).await), invalid("etcdserver: request is too large"));
        assert_eq!(refusal(client.delete(large, None).await), invalid("etcdserver: request is too large"));
        // Beyond this nothing is read at all.
        let reason = "grpc: received message larger than max (2097160 vs. 2097152)".to_owned();
        assert_eq!(refusal(client.put("a", vec![0; 2 << 20], None).await), (Code::ResourceExhausted, reason));
        let unknown = PutOptions::new().with_lease(4711);
        let not_found = (Code::NotFound, "etcdserver: requested lease not found".to_owned());
        assert_eq!(refusal(client.put("a", "1", Some(unknown)).await), not_found);
        assert_eq!(client.get("a", None).await.unwrap().header().unwrap().revision(), 1);
    })
    .await;
}

#[tokio::test]
async fn what_is_larger_than_one_change_is_refused_whole() {
    ours(async |mut client| {
        put(&mut client, "a/1", "").await;
        put(&mut client, "a/2", "").await;
        let prefix = || Some(DeleteOptions::new().with_prefix());
        let (code, text) = refusal(client.delete("a/", prefix()).await);
        assert!(code == Code::Unimplemented && text.contains("more than one key"), "{text}");
        let two = Txn::new().and_then([TxnOp::put("b", "", None), TxnOp::put("c", "", None)]);
        assert_eq!(refusal(client.txn(two).await).0, Code::Unimplemented);
        let nested = Txn::new().and_then([TxnOp::txn(Txn::new())]);
        assert_eq!(refusal(client.txn(nested).await).0, Code::Unimplemented);
        assert_eq!(refusal(client.put("compact_rev_key_apiserver", "", None).await).0, Code::InvalidArgument);
        let response = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
        assert_eq!((response.count(), response.header().unwrap().revision()), (2, 3));
        // One key in the range is one change.
        assert_eq!(client.delete("a/2", prefix()).await.unwrap().deleted(), 1);
    })
    .await;
}

/// Opens a watch and waits for its acknowledgement.
async fn watch(client: &mut Client, key: &str, options: WatchOptions) -> WatchStream {
    let mut stream = client.watch(key, Some(options)).await.unwrap();
    assert!(message(&mut stream).await.created());
    stream
}

async fn message(stream: &mut WatchStream) -> WatchResponse {
    tokio::time::timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap().unwrap()
}

/// The next `count` events: type, key, revision, value before.
async fn events(stream: &mut WatchStream, count: usize) -> Vec<(EventType, String, i64, Option<String>)> {
    let mut events = Vec::new();
    while events.len() < count {
        let response = message(stream).await;
        assert!(!response.canceled(), "{}", response.cancel_reason());
        events.extend(response.events().iter().map(|event| {
            let kv = event.kv().unwrap();
            let before = event.prev_kv().map(|kv| kv.value_str().unwrap().to_owned());
            (event.event_type(), kv.key_str().unwrap().to_owned(), kv.mod_revision(), before)
        }));
    }
    events
}

#[tokio::test]
async fn watches_see_each_change_once_in_order() {
    contract(async |mut client| {
        put(&mut client, "a/1", "old").await;
        let mut now = watch(&mut client, "a/", WatchOptions::new().with_prefix().with_prev_key()).await;
        let past = WatchOptions::new().with_prefix().with_start_revision(2);
        let mut past = watch(&mut client, "a/", past).await;
        let future = WatchOptions::new().with_prefix().with_start_revision(5);
        let mut future = watch(&mut client, "a/", future).await;
        put(&mut client, "a/1", "new").await;
        put(&mut client, "b", "other").await;
        put(&mut client, "a/2", "x").await;
        client.delete("a/1", None).await.unwrap();

        use EventType::{Delete, Put};
        let before = |value: &str| Some(value.to_owned());
        let changes = [
            (Put, "a/1".to_owned(), 3, before("old")),
            (Put, "a/2".to_owned(), 5, None),
            (Delete, "a/1".to_owned(), 6, before("new")),
        ];
        assert_eq!(events(&mut now, 3).await, changes);
        let plain = changes.map(|(kind, key, revision, _)| (kind, key, revision, None));
        let seen = events(&mut past, 4).await;
        assert_eq!(seen[0], (Put, "a/1".to_owned(), 2, None));
        assert_eq!(seen[1..], plain);
        assert_eq!(events(&mut future, 2).await, plain[1..]);
    })
    .await;
}

#[tokio::test]
async fn watches_filter_and_one_stream_holds_many() {
    contract(async |mut client| {
        let no_puts = WatchOptions::new().with_watch_id(7).with_filters([WatchFilterType::NoPut]);
        let mut stream = watch(&mut client, "a", no_puts).await;
        let no_deletes = WatchOptions::new().with_filters([WatchFilterType::NoDelete]);
        stream.watch("a", Some(no_deletes.clone())).await.unwrap();
        let second = message(&mut stream).await;
        assert!(second.created() && second.watch_id() != 7);
        stream.watch("b", Some(WatchOptions::new().with_watch_id(7))).await.unwrap();
        let refused = message(&mut stream).await;
        assert!(refused.created() && refused.canceled());
        assert_eq!(
            (refused.watch_id(), refused.cancel_reason()),
            (-1, "mvcc: duplicate watch ID provided on the WatchStream")
        );
        stream.watch("b", Some(WatchOptions::new().with_range("a"))).await.unwrap();
        assert_eq!(message(&mut stream).await.cancel_reason(), "mvcc: watcher range is empty");

        put(&mut client, "a", "1").await;
        client.delete("a", None).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let response = message(&mut stream).await;
            seen.push((response.watch_id(), response.events()[0].kv().unwrap().mod_revision()));
        }
        seen.sort_unstable();
        let mut expected = [(second.watch_id(), 2), (7, 3)];
        expected.sort_unstable();
        assert_eq!(seen, expected);

        stream.cancel(7).await.unwrap();
        let canceled = message(&mut stream).await;
        assert!(canceled.canceled() && canceled.watch_id() == 7);
        client.delete("a", None).await.unwrap();
        put(&mut client, "a", "2").await;
        assert_eq!(message(&mut stream).await.watch_id(), second.watch_id());
    })
    .await;
}

#[tokio::test]
async fn progress_comes_after_the_events_before_it() {
    contract(async |mut client| {
        let mut stream = watch(&mut client, "a/", WatchOptions::new().with_prefix()).await;
        for round in 0..50 {
            let revision = put(&mut client, "a/1", &round.to_string()).await;
            let other = put(&mut client, "b", "").await;
            stream.request_progress().await.unwrap();
            let event = message(&mut stream).await;
            assert_eq!(event.events()[0].kv().unwrap().mod_revision(), revision);
            let progress = message(&mut stream).await;
            assert!(progress.events().is_empty() && progress.watch_id() == -1);
            assert_eq!(progress.header().unwrap().revision(), other);
        }
    })
    .await;
}

#[tokio::test]
async fn a_watch_of_the_compacted_past_is_cancelled() {
    contract(async |mut client| {
        for _ in 0..4 {
            put(&mut client, "a", "").await;
        }
        client.delete("a", None).await.unwrap();
        client.compact(6, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
        let mut stream = watch(&mut client, "a", WatchOptions::new().with_start_revision(3)).await;
        let canceled = message(&mut stream).await;
        assert!(canceled.canceled());
        assert_eq!(canceled.compact_revision(), 6);
        // The compacted revision itself can still be watched, even if it was a delete.
        let mut stream = watch(&mut client, "a", WatchOptions::new().with_start_revision(6)).await;
        assert_eq!(events(&mut stream, 1).await, [(EventType::Delete, "a".to_owned(), 6, None)]);
    })
    .await;
}

#[tokio::test]
async fn a_slow_watcher_loses_nothing() {
    contract(async |mut client| {
        let mut slow = watch(&mut client, "a", WatchOptions::new().with_prev_key()).await;
        // Far more than windows and ring hold.
        let count = 400;
        let mut revision = 0;
        for round in 0..count {
            revision = put(&mut client, "a", &format!("{round:0>8192}")).await;
        }
        let seen = events(&mut slow, count).await;
        let revisions: Vec<_> = seen.iter().map(|(_, _, revision, _)| *revision).collect();
        assert_eq!(revisions, (2..=revision).collect::<Vec<_>>());
        assert!(seen[1..].iter().all(|(.., before)| before.is_some()));
    })
    .await;
}

#[tokio::test]
async fn leases_are_granted_kept_and_revoked() {
    contract(async |mut client| {
        let granted = client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(77))).await.unwrap();
        assert_eq!((granted.id(), granted.ttl()), (77, 60));
        let again = refusal(client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(77))).await);
        assert_eq!(again, (Code::FailedPrecondition, "etcdserver: lease already exists".to_owned()));
        let endless = refusal(client.lease_grant(9_000_000_001, None).await);
        assert_eq!(endless, (Code::OutOfRange, "etcdserver: too large lease TTL".to_owned()));
        let chosen = client.lease_grant(1, None).await.unwrap();
        assert_eq!(chosen.ttl(), 2);
        assert!(chosen.id() > 0);

        for key in ["b", "a"] {
            client.put(key, "", Some(PutOptions::new().with_lease(77))).await.unwrap();
        }
        put(&mut client, "c", "").await;
        let with_keys = || Some(LeaseTimeToLiveOptions::new().with_keys());
        let state = client.lease_time_to_live(77, with_keys()).await.unwrap();
        let mut attached = state.keys().to_vec();
        attached.sort_unstable();
        assert_eq!((state.granted_ttl(), attached), (60, vec![b"a".to_vec(), b"b".to_vec()]));
        assert!((50..=60).contains(&state.ttl()));
        assert!(client.leases().await.unwrap().leases().iter().any(|lease| lease.id() == 77));

        let (mut keeper, mut kept) = client.lease_keep_alive(77).await.unwrap();
        keeper.keep_alive().await.unwrap();
        assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 60);

        client.lease_revoke(77).await.unwrap();
        assert_eq!(keys(&mut client, "", GetOptions::new().with_all_keys()).await, ["c"]);
        let gone = (Code::NotFound, "etcdserver: requested lease not found".to_owned());
        assert_eq!(refusal(client.lease_revoke(77).await), gone);
        assert_eq!(client.lease_time_to_live(77, None).await.unwrap().ttl(), -1);
        keeper.keep_alive().await.unwrap();
        assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 0);
    })
    .await;
}

#[tokio::test]
async fn keys_go_when_their_lease_ends() {
    contract(async |mut client| {
        let lease = client.lease_grant(2, None).await.unwrap().id();
        for key in ["a", "b"] {
            client.put(key, "", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        }
        // Put again without the lease: it stays.
        put(&mut client, "b", "kept").await;
        let mut stream = watch(&mut client, "", WatchOptions::new().with_all_keys()).await;
        assert_eq!(events(&mut stream, 1).await, [(EventType::Delete, "a".to_owned(), 5, None)]);
        assert_eq!(keys(&mut client, "", GetOptions::new().with_all_keys()).await, ["b"]);
    })
    .await;
}

#[tokio::test]
async fn everyday_maintenance_is_answered() {
    contract(async |mut client| {
        put(&mut client, "a", "").await;
        let status = client.status().await.unwrap();
        assert!(status.version().starts_with("3.6."), "{}", status.version());
        assert!(status.db_size() > 0 && status.leader() != 0 && status.errors().is_empty());
        client.defragment().await.unwrap();
        let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
        assert!(alarms.alarms().is_empty());
        let members = client.member_list().await.unwrap();
        assert_eq!(members.members().len(), 1);
        assert_eq!(members.members()[0].id(), status.leader());
        assert!(members.members()[0].client_urls()[0].starts_with("http://127.0.0.1:"));
        let health = client.get("health", None).await.unwrap();
        assert_eq!(health.header().unwrap().member_id(), status.leader());
    })
    .await;
}

#[tokio::test]
async fn keys_hash_as_in_etcd() {
    contract(async |client| {
        let hash = async |revision| {
            let hash = client.clone().hash_kv(revision).await?;
            Ok((hash.hash(), hash.compact_version(), hash.header().unwrap().revision()))
        };
        assert_eq!(hash(0).await.unwrap(), (0x40a4_756d, -1, 1));
        let mut client = client.clone();
        client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(77))).await.unwrap();
        put(&mut client, "a", "1").await;
        client.put("b", vec![0, 255], Some(PutOptions::new().with_lease(77))).await.unwrap();
        put(&mut client, "a", "2").await;
        client.delete("b", None).await.unwrap();
        put(&mut client, "c", "").await;
        assert_eq!(hash(0).await.unwrap(), (0x5181_8949, -1, 6));
        assert_eq!(hash(6).await.unwrap(), (0x5181_8949, -1, 6));
        assert_eq!(hash(4).await.unwrap(), (0xc2ce_62bd, -1, 6));
        client.compact(5, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
        assert_eq!(hash(0).await.unwrap(), (0x50a7_7844, 5, 6));
        let compacted = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".to_owned());
        let future = (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision".to_owned());
        assert_eq!(refusal(hash(4).await), compacted);
        assert_eq!(refusal(hash(7).await), future);
    })
    .await;
}

#[tokio::test]
async fn what_one_server_on_one_file_cannot_do_is_refused_with_the_reason() {
    ours(async |mut client| {
        let mut refused = Vec::new();
        let snapshot = match client.snapshot().await {
            Ok(mut stream) => refusal(stream.message().await),
            Err(error) => refusal::<()>(Err(error)),
        };
        refused.push((snapshot, "k3s snapshot save"));
        refused.push((refusal(client.move_leader(1).await), "always leads"));
        refused.push((refusal(client.member_add(["http://127.0.0.1:1"], None).await), "members cannot be changed"));
        refused.push((refusal(client.member_remove(1).await), "members cannot be changed"));
        refused.push((
            refusal(client.member_update(1, ["http://127.0.0.1:1".to_owned()]).await),
            "members cannot be changed",
        ));
        refused.push((refusal(client.member_promote(1).await), "members cannot be changed"));
        refused.push((refusal(client.auth_enable().await), "no users and roles"));
        refused.push((refusal(client.user_list().await), "no users and roles"));
        refused.push((refusal(client.lock("name", None).await), "as etcdctl does"));
        refused.push((refusal(client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await), "cannot be set"));
        for ((code, text), reason) in refused {
            assert!(code == Code::Unimplemented && text.contains(reason), "{code:?}: {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn authentication_is_off() {
    contract_at(async |_, url| {
        let endpoint = tonic::transport::Endpoint::from_shared(url).unwrap().connect_lazy();
        let authenticated: Result<EmptyRequest, _> =
            call(&endpoint, "/etcdserverpb.Auth/Authenticate", EmptyRequest {}).await;
        let status = authenticated.unwrap_err();
        let off = (Code::FailedPrecondition, "etcdserver: authentication is not enabled");
        assert_eq!((status.code(), status.message()), off);
        let status: AuthStatusResponse =
            call(&endpoint, "/etcdserverpb.Auth/AuthStatus", EmptyRequest {}).await.unwrap();
        assert_eq!((status.enabled, status.auth_revision), (false, 1));
    })
    .await;
}

#[tokio::test]
async fn health_is_told() {
    contract_at(async |_, url| {
        let endpoint = tonic::transport::Endpoint::from_shared(url).unwrap().connect_lazy();
        let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
        let check = async |service| -> Result<HealthCheckResponse, tonic::Status> {
            call(&endpoint, "/grpc.health.v1.Health/Check", ask(service)).await
        };
        assert_eq!(check("").await.unwrap().status, 1);
        assert_eq!(check("no.such.Service").await.unwrap_err().code(), Code::NotFound);
        let watch = async |service| {
            let mut grpc = tonic::client::Grpc::new(endpoint.clone());
            grpc.ready().await.unwrap();
            let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
            let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
            let stream = grpc.server_streaming(tonic::Request::new(ask(service)), path, codec).await;
            stream.unwrap().into_inner().message().await.unwrap().unwrap().status
        };
        assert_eq!(watch("").await, 1);
        assert_eq!(watch("no.such.Service").await, 3);
    })
    .await;
}

async fn call<Q, R>(endpoint: &tonic::transport::Channel, path: &'static str, request: Q) -> Result<R, tonic::Status>
where
    Q: prost::Message + 'static,
    R: prost::Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(endpoint.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Q, R>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    grpc.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn an_alarm_that_is_off_can_be_disarmed() {
    contract(async |mut client| {
        for action in [AlarmAction::Get, AlarmAction::Deactivate] {
            assert!(client.alarm(action, AlarmType::Nospace, None).await.unwrap().alarms().is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn leases_are_listed_by_their_end() {
    contract(async |mut client| {
        for (id, ttl) in [(1, 300), (2, 100), (3, 200)] {
            client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await.unwrap();
        }
        let leases = client.leases().await.unwrap();
        assert_eq!(leases.leases().iter().map(etcd_client::LeaseStatus::id).collect::<Vec<_>>(), [2, 3, 1]);
    })
    .await;
}

#[tokio::test]
async fn progress_comes_by_itself_to_who_asked() {
    contract(async |mut client| {
        let mut stream = watch(&mut client, "a", WatchOptions::new().with_progress_notify()).await;
        let revision = put(&mut client, "b", "").await;
        loop {
            let progress = message(&mut stream).await;
            assert!(progress.events().is_empty() && progress.watch_id() == 0 && !progress.canceled());
            if progress.header().unwrap().revision() == revision {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn large_events_come_in_pieces() {
    contract(async |mut client| {
        let value = "x".repeat(1 << 20);
        for key in ["a", "b", "c", "d"] {
            put(&mut client, key, &value).await;
        }
        for key in ["a", "b", "c", "d"] {
            client.delete(key, None).await.unwrap();
        }
        let past = WatchOptions::new().with_all_keys().with_start_revision(2).with_prev_key().with_fragment();
        let mut stream = watch(&mut client, "", past).await;
        let mut revisions = Vec::new();
        while revisions.len() < 8 {
            let response = message(&mut stream).await;
            let value = |kv: Option<&etcd_client::KeyValue>| kv.map_or(0, |kv| kv.value().len());
            let size: usize = response.events().iter().map(|event| value(event.kv()) + value(event.prev_kv())).sum();
            assert!(size < 2 << 20, "{size} bytes");
            revisions.extend(response.events().iter().map(|event| event.kv().unwrap().mod_revision()));
        }
        assert_eq!(revisions, (2..10).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn leases_outlive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new(directory.path().join("state.db"));
    let served = Served::open(options.clone()).await;
    let mut client = served.client.clone();
    for id in [1, 2] {
        client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(id))).await.unwrap();
    }
    client.put("a", "", Some(PutOptions::new().with_lease(1))).await.unwrap();
    client.lease_revoke(2).await.unwrap();
    served.close().await;

    let served = Served::open(options).await;
    let mut client = served.client.clone();
    let state = client.lease_time_to_live(1, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert_eq!((state.granted_ttl(), state.keys()), (60, &[b"a".to_vec()][..]));
    assert!((1..=60).contains(&state.ttl()));
    assert_eq!(client.lease_time_to_live(2, None).await.unwrap().ttl(), -1);
    client.lease_revoke(1).await.unwrap();
    assert_eq!(client.get("a", None).await.unwrap().count(), 0);
    served.close().await;
}
