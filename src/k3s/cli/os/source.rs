//! Where a set for an update comes from: a file, or an address that answers HTTP. It is read once, from its beginning to its end.

use std::{
    fs::File,
    io::{self, Read},
    str::FromStr,
    time::Duration,
};

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use k3s_pki::{client_config, system_roots};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::super::{
    Failure,
    failure::{NO_INPUT, UNAVAILABLE},
};

/// For an answer, and for each part of it that follows.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often an answer may name another address.
const REDIRECTS: usize = 5;

/// What a user names.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(String),
    Url(Uri),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return Ok(Self::File(text.to_owned()));
        }
        let uri: Uri = text.parse().map_err(|error| format!("this is no address: {error}"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => Ok(Self::Url(uri)),
            (Some("http" | "https"), _) => Err("leave out the user's name: none is sent".to_owned()),
            _ => Err("write a file's path, or an address that begins with https:// or http://".to_owned()),
        }
    }
}

impl Source {
    /// Its bytes, to be read where blocking is allowed.
    pub(super) async fn open(&self) -> Result<Box<dyn Read + Send>, Failure> {
        match self {
            Self::File(path) => match File::open(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) => Err(Failure::new(NO_INPUT, format!("{path} cannot be read: {error}"))),
            },
            Self::Url(uri) => {
                let body = get(uri).await?;
                let chunks = futures_util::stream::try_unfold(body, next);
                let reader = StreamReader::new(Box::pin(chunks));
                Ok(Box::new(SyncIoBridge::new_with_handle(reader, Handle::current())))
            }
        }
    }
}

/// A server that stops in the middle is not waited for without end.
async fn next(mut body: Incoming) -> io::Result<Option<(Bytes, Incoming)>> {
    loop {
        let frame = timeout(PATIENCE, body.frame()).await;
        let frame = frame.map_err(|_| io::Error::other(format!("nothing came for {} s", PATIENCE.as_secs())))?;
        match frame.transpose().map_err(io::Error::other)?.map(hyper::body::Frame::into_data) {
            None => return Ok(None),
            Some(Ok(bytes)) => return Ok(Some((bytes, body))),
            // Trailers.
            Some(Err(_)) => {}
        }
    }
}

async fn get(first: &Uri) -> Result<Incoming, Failure> {
    let unreachable = |uri: &Uri, why: String| Failure::new(UNAVAILABLE, format!("{uri} cannot be fetched: {why}"));
    // Whom the system trusts. What is fetched is believed by its signature alone; this keeps from others what a machine fetches.
    let tls = client_config(system_roots()).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(connector);
    let mut uri = first.clone();
    for _ in 0..=REDIRECTS {
        let request = Request::get(&uri).header(header::USER_AGENT, "k3s").body(Empty::new());
        let request = request.map_err(|error| unreachable(&uri, error.to_string()))?;
        let answer = match timeout(PATIENCE, client.request(request)).await {
            Ok(answer) => answer
                .map_err(|error| Failure::from_error(UNAVAILABLE, &error))
                .map_err(|failure| unreachable(&uri, failure.to_string()))?,
            Err(_) => return Err(unreachable(&uri, format!("no answer within {} s", PATIENCE.as_secs()))),
        };
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer.into_body());
        }
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        match location.filter(|_| status.is_redirection()) {
            Some(location) => uri = redirected(&uri, location).map_err(|why| unreachable(&uri, why))?,
            None => return Err(unreachable(&uri, format!("the answer is {status}"))),
        }
    }
    Err(unreachable(first, format!("it leads from one address to another more than {REDIRECTS} times")))
}

/// An address that may be given without its host.
fn redirected(from: &Uri, location: &str) -> Result<Uri, String> {
    let wrong = || format!("it leads to {location:?}, which is no address");
    let to: Uri = location.parse().map_err(|_| wrong())?;
    if to.scheme().is_some() {
        return if matches!(to.scheme_str(), Some("http" | "https")) { Ok(to) } else { Err(wrong()) };
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = to.into_parts().path_and_query;
    Uri::from_parts(parts).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::spawn_blocking,
    };

    use super::*;

    #[test]
    fn a_file_is_told_from_an_address() {
        assert!(matches!("/mnt/k3s_2.update".parse(), Ok(Source::File(_))));
        assert!(matches!("https://a.example/k3s_2.update".parse(), Ok(Source::Url(_))));
        for bad in ["ftp://a.example/x", "https://user@a.example/x", "http://"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_without_a_host_is_one_of_the_same_host() {
        let from: Uri = "https://a.example/x?y".parse().unwrap();
        assert_eq!(redirected(&from, "/z").unwrap(), "https://a.example/z");
        assert_eq!(redirected(&from, "http://b.example/z").unwrap(), "http://b.example/z");
        assert!(redirected(&from, "file:///etc/passwd").is_err());
    }

    /// What is read from a server that answers each request with the next of `answers`.
    async fn fetched(answers: Vec<&'static str>) -> Result<String, String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = async {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let source: Source = format!("http://{address}/k3s_2.update").parse().unwrap();
        let read = async {
            let mut reader = source.open().await.map_err(|failure| failure.to_string())?;
            let read = spawn_blocking(move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).map(|_| text)
            });
            read.await.unwrap().map_err(|error| error.to_string())
        };
        let (_, read) = tokio::join!(served, read);
        read.map_err(|error| error.replace(&address.to_string(), "ADDRESS"))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_address_gives_is_read_to_its_end() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        assert_eq!(fetched(vec![whole]).await.unwrap(), "hello");
        let moved = "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(fetched(vec![moved, whole]).await.unwrap(), "hello");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_breaks_off_or_is_not_there_is_an_error() {
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\nhello";
        assert!(fetched(vec![cut]).await.is_err());
        let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(
            fetched(vec![missing]).await.unwrap_err(),
            "http://ADDRESS/k3s_2.update cannot be fetched: the answer is 404 Not Found"
        );
    }
}
