//! The bucket against a server that answers as S3 does, and as it should not.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use k3s_config::s3::{CaSource, S3Proxy, S3Security};

use crate::{
    Bucket, Metadata, Object, S3Error,
    testing::{Asked, Server, answer, settings},
};

const EMPTY_LIST: &str = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

fn list(names: &[&str], next: Option<&str>) -> String {
    let object = |name: &&str| format!("<Contents><Key>{name}</Key><Size>7</Size></Contents>");
    let objects: String = names.iter().map(object).collect();
    let next = next.map_or_else(String::new, |token| {
        format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>")
    });
    format!("<ListBucketResult>{objects}{next}</ListBucketResult>")
}

fn refusal(code: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>No.</Message></Error>")
}

fn query(asked: &Asked) -> String {
    asked.uri().query().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_file_is_sent_whole_with_what_k3s_notes_of_it() {
    let server = Server::answering(|_: &Asked| answer(200, EMPTY_LIST)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    fs::write(&path, "a database").unwrap();
    let metadata = Metadata { node: Some("edge-7".to_owned()), token_hash: Some("1ec1c26b50d5".to_owned()) };
    let bucket = server.bucket();
    bucket.upload("on-demand-edge-7-1", &path, &metadata).await.unwrap();
    assert_eq!(bucket.location("on-demand-edge-7-1"), "s3://backups/edge/on-demand-edge-7-1");

    let [listed, put] = &server.asked()[..] else { panic!("{:?}", server.asked()) };
    assert_eq!((listed.method(), query(listed).contains("max-keys=1&")), (&Method::GET, true));
    assert_eq!((put.method(), put.uri().path()), (&Method::PUT, "/backups/edge/on-demand-edge-7-1"));
    assert_eq!((put.body().as_ref(), &put.headers()["content-length"]), (&b"a database"[..], &"10".parse().unwrap()));
    assert_eq!(put.headers()["x-amz-meta-k3s-node-name"], "edge-7");
    let authorization = put.headers()["authorization"].to_str().unwrap();
    assert!(authorization.contains(";x-amz-meta-k3s-node-name;x-amz-meta-k3s-token-hash,"), "{authorization}");
}

#[tokio::test]
async fn what_is_noted_of_a_file_is_read_back() {
    let server = Server::answering(|_: &Asked| {
        let mut noted = answer(200, "");
        noted.headers_mut().insert("x-amz-meta-k3s-node-name", "edge-7".parse().unwrap());
        noted
    })
    .await;
    let noted = server.bucket().metadata("s").await.unwrap();
    assert_eq!(noted, Metadata { node: Some("edge-7".to_owned()), token_hash: None });
    assert_eq!(server.asked()[0].method(), Method::HEAD);
}

#[tokio::test]
async fn a_list_is_read_page_by_page_without_what_is_in_folders() {
    let server = Server::answering(|asked: &Asked| {
        let first = !query(asked).contains("continuation-token=a%2Fb");
        answer(
            200,
            if first { list(&["edge/", "edge/one"], Some("a/b")) } else { list(&["edge/two", "edge/x/y"], None) },
        )
    })
    .await;
    let listed = server.bucket().list().await.unwrap();
    let object = |name: &str| Object { name: name.to_owned(), bytes: 7, modified: None };
    assert_eq!(listed, [object("one"), object("two")]);
    assert!(server.asked().iter().all(|asked| query(asked).contains("prefix=edge%2F")));
}

#[tokio::test]
async fn a_list_without_an_end_is_given_up() {
    let server = Server::answering(|_: &Asked| answer(200, list(&["edge/same"], Some("again")))).await;
    let error = server.bucket().list().await.unwrap_err();
    assert!(matches!(error, S3Error::TooMany { limit: 20_000, .. }), "{error}");
    assert!(error.to_string().starts_with("s3://backups/edge/ holds more than 20000 objects: "), "{error}");
}

#[tokio::test]
async fn an_answer_larger_than_any_list_is_not_read() {
    let server = Server::answering(|_: &Asked| answer(200, vec![b' '; 8 << 20])).await;
    let error = server.bucket().list().await.unwrap_err();
    assert!(matches!(error, S3Error::Broken { .. }), "{error}");
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    for (status, code, sentence) in [
        (404, "NoSuchBucket", "there is no bucket backups at 127.0.0.1"),
        (403, "InvalidAccessKeyId", "does not accept the key (InvalidAccessKeyId: No): correct --etcd-s3-access-key"),
        (403, "SignatureDoesNotMatch", "does not accept the key"),
        (403, "AccessDenied", "the key may not do this in the bucket backups"),
        (403, "RequestTimeTooSkewed", "set the clock"),
        (301, "PermanentRedirect", "is in another region"),
    ] {
        let server = Server::answering(move |_: &Asked| answer(status, refusal(code))).await;
        let error = server.bucket().list().await.unwrap_err().to_string();
        assert!(error.contains(sentence), "{code}: {error}");
        assert_eq!(server.asked().len(), 1, "{code}: asking again would not help");
    }
    let server = Server::answering(|_: &Asked| answer(200, "<html>Welcome</html>")).await;
    let error = server.bucket().list().await.unwrap_err();
    assert!(matches!(error, S3Error::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn what_passes_by_itself_is_tried_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Server::answering(move |_: &Asked| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => answer(503, refusal("SlowDown")),
        _ => answer(200, EMPTY_LIST),
    })
    .await;
    assert_eq!(server.bucket().list().await.unwrap(), []);

    let server = Server::answering(|_: &Asked| answer(503, refusal("SlowDown"))).await;
    let error = server.bucket().list().await.unwrap_err().to_string();
    assert!(error.contains("answers 503 (SlowDown: No)"), "{error}");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_file_is_fetched_whole_or_not_at_all() {
    let server = Server::answering(|asked: &Asked| match asked.uri().path() {
        "/backups/edge/there" => answer(200, "a database"),
        _ => answer(404, refusal("NoSuchKey")),
    })
    .await;
    let (bucket, folder) = (server.bucket(), tempfile::tempdir().unwrap());
    let to = folder.path().join("fetched");
    bucket.download("there", &to, 10).await.unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"a database");

    let error = bucket.download("there", &to, 9).await.unwrap_err();
    assert!(matches!(error, S3Error::TooLarge { bytes: 10, room: 9, .. }), "{error}");
    let error = bucket.download("gone", &to, 10).await.unwrap_err();
    assert!(error.to_string().starts_with("there is no snapshot s3://backups/edge/gone"), "{error}");
    assert!(!to.exists());
}

#[tokio::test]
async fn one_that_is_gone_counts_as_deleted() {
    let server = Server::answering(|_: &Asked| answer(404, "")).await;
    server.bucket().delete("gone").await.unwrap();
    assert_eq!(server.asked()[0].method(), Method::DELETE);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_only_so_long() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut impatient = settings(listener.local_addr().unwrap());
    impatient.timeout = Duration::from_millis(200);
    let error = Bucket::new(&impatient).unwrap().list().await.unwrap_err();
    assert!(matches!(error, S3Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn plain_http_behind_a_proxy_names_the_whole_address_to_it() {
    let proxy = Server::answering(|_: &Asked| answer(200, EMPTY_LIST)).await;
    let mut behind = settings("192.0.2.1:9000".parse().unwrap());
    let url = format!("http://user:hunter2@{}", proxy.address);
    behind.proxy = S3Proxy::Http(k3s_config::secret::Secret::new(url));
    Bucket::new(&behind).unwrap().list().await.unwrap();
    let asked = &proxy.asked()[0];
    assert!(asked.uri().to_string().starts_with("http://192.0.2.1:9000/backups/?"), "{}", asked.uri());
    assert_eq!(asked.headers()["proxy-authorization"], "Basic dXNlcjpodW50ZXIy");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let proxy = Server::answering(|_: &Asked| answer(407, "")).await;
    let mut behind = settings("192.0.2.1:9000".parse().unwrap());
    behind.security = S3Security::Unverified;
    behind.proxy = S3Proxy::Http(k3s_config::secret::Secret::new(format!("http://{}", proxy.address)));
    let error = Bucket::new(&behind).unwrap().list().await.unwrap_err();
    assert!(matches!(error, S3Error::Proxy { status: 407, .. }), "{error}");
    assert_eq!(proxy.asked()[0].method(), Method::CONNECT);
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart() {
    let server = Server::answering(|_: &Asked| answer(200, EMPTY_LIST)).await;
    let mut with_tls = settings(server.address);
    with_tls.security = S3Security::Unverified;
    let error = Bucket::new(&with_tls).unwrap().list().await.unwrap_err().to_string();
    assert!(error.contains("give --etcd-s3-insecure"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_trusted_by_its_authority_or_by_order() {
    let (server, pem) = Server::answering_over_tls(|_: &Asked| answer(200, EMPTY_LIST)).await;
    let list = async |security| {
        let mut with_tls = settings(server.address);
        with_tls.security = security;
        Bucket::new(&with_tls).unwrap().list().await
    };
    assert_eq!(list(S3Security::Verified(vec![CaSource::Pem(pem)])).await.unwrap(), []);
    assert_eq!(list(S3Security::Unverified).await.unwrap(), []);
    let error = list(S3Security::Verified(Vec::new())).await.unwrap_err();
    assert!(matches!(error, S3Error::Untrusted { .. }), "{error}");
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn an_authority_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    fs::write(&path, "no certificate").unwrap();
    for (source, why) in [
        (CaSource::File(path), "ca.pem is no authority for S3's certificate (it holds no certificate)"),
        (CaSource::File("/nowhere/ca.pem".into()), "No such file"),
        (CaSource::Pem(b"-----BEGIN".to_vec()), "what etcd-s3-endpoint-ca holds is no authority"),
    ] {
        let mut wrong = settings("192.0.2.1:443".parse().unwrap());
        wrong.security = S3Security::Verified(vec![source]);
        let error = Bucket::new(&wrong).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
