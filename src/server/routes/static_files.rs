//! `/static/*`: files of `<data>/server/static`, and below `charts/` those of the package, public. Charts that the add-ons install are
//! fetched from here.
//!
//! Everybody may ask, and not read: so an answer holds no file open. Each piece is read when the client has room for it, and there are so
//! many answers at once and no more.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    net::IpAddr,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k3s_http::{Body, BodyError, Status, empty};
use k3s_listener::network;
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::error;

/// Files that are being sent at the same time.
const TRANSFERS: usize = 128;
/// Of those, to one source.
const TRANSFERS_TO_ONE: usize = 32;
/// Files that are open at the same time, each while a piece is read.
const OPEN: usize = 8;
/// What is read at a time, bytes.
const PIECE: usize = 32 << 10;

/// Where the package's charts are served.
const CHARTS: &str = "charts/";

/// The files of a folder, and charts.
#[derive(Debug)]
pub(super) struct StaticFiles {
    root: PathBuf,
    charts: Option<PathBuf>,
    open: Arc<Semaphore>,
    transfers: Arc<Transfers>,
}

/// How many files are being sent, by source.
#[derive(Debug, Default)]
struct Transfers(Mutex<HashMap<IpAddr, usize>>);

/// One of them.
#[derive(Debug)]
struct Transfer {
    transfers: Arc<Transfers>,
    to: IpAddr,
}

/// A file as it was when it was first opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// What is left to send of a file.
struct Rest {
    path: PathBuf,
    version: Version,
    offset: u64,
    open: Arc<Semaphore>,
    _transfer: Transfer,
}

impl StaticFiles {
    /// Those below `root` and, where it has none of that name, those of `charts`.
    pub(super) fn new(root: PathBuf, charts: Option<PathBuf>) -> Self {
        Self { root, charts, open: Arc::new(Semaphore::new(OPEN)), transfers: Arc::default() }
    }

    /// The file at `path` (percent-encoded, relative), streamed to a client at `to`. Folders are not listed.
    pub(super) async fn answer(&self, method: &Method, path: &str, to: IpAddr) -> Response<Body> {
        self.find(method, path, to).await.unwrap_or_else(Into::into)
    }

    async fn find(&self, method: &Method, path: &str, to: IpAddr) -> Result<Response<Body>, Status> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed("static files can only be read"));
        }
        let missing = || Status::not_found(format!("there is no static file {path}"));
        let places = self.places(path);
        if places.is_empty() {
            return Err(missing());
        }
        let transfer = self.transfers.clone().begin(network(to))?;
        let (file, version) = match on_a_thread(&self.open, places, first_of).await {
            Ok(found) => found.ok_or_else(missing)?,
            Err(error) => {
                error!(path, %error, "Cannot read a static file.");
                return Err(Status::internal(format!(
                    "the server cannot read the static file {path}; its log says why"
                )));
            }
        };

        let body = if method == Method::HEAD {
            empty()
        } else {
            let rest = Rest { path: file, version, offset: 0, open: self.open.clone(), _transfer: transfer };
            let pieces = stream::try_unfold(rest, Rest::next);
            StreamBody::new(pieces.map_ok(Frame::data).map_err(BodyError::from)).boxed_unsync()
        };
        let mut response = Response::new(body);
        let kind = if path.ends_with(".tgz") { "application/gzip" } else { "application/octet-stream" };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response.headers_mut().insert(header::CONTENT_LENGTH, version.length.into());
        Ok(response)
    }

    /// Where the file may be, the likeliest first.
    fn places(&self, path: &str) -> Vec<PathBuf> {
        let chart = self.charts.as_deref().zip(path.strip_prefix(CHARTS));
        [below(&self.root, path), chart.and_then(|(charts, name)| below(charts, name))].into_iter().flatten().collect()
    }
}

impl Transfers {
    fn begin(self: Arc<Self>, to: IpAddr) -> Result<Transfer, Status> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let to_this = running.get(&to).copied().unwrap_or(0);
        if to_this >= TRANSFERS_TO_ONE || running.values().sum::<usize>() >= TRANSFERS {
            return Err(Status::too_many_requests("Too many requests, please try again later."));
        }
        running.insert(to, to_this + 1);
        drop(running);
        Ok(Transfer { transfers: self, to })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut running = self.transfers.0.lock().unwrap_or_else(PoisonError::into_inner);
        match running.get_mut(&self.to) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(running.remove(&self.to)),
        }
    }
}

impl Version {
    /// `None` if there is no file, or something else.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
        match std::fs::metadata(path) {
            // That it can be read, too.
            Ok(metadata) if metadata.is_file() => File::open(path).map(|_| Some(Self::from(&metadata))),
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidFilename) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl From<&Metadata> for Version {
    fn from(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), length: file.len(), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

impl Rest {
    /// The next piece; `None` at the end.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let (version, offset) = (self.version, self.offset);
        if offset == version.length {
            return Ok(None);
        }
        let read = move |path: PathBuf| {
            let file = File::open(path)?;
            if Version::from(&file.metadata()?) != version {
                return Err(io::Error::other("it was changed while it was sent"));
            }
            let left = usize::try_from(version.length - offset).unwrap_or(PIECE);
            let mut piece = vec![0; left.min(PIECE)];
            file.read_exact_at(&mut piece, offset)?;
            Ok(Bytes::from(piece))
        };
        let piece = on_a_thread(&self.open, self.path.clone(), read).await?;
        self.offset += piece.len() as u64;
        Ok(Some((piece, self)))
    }
}

/// The first of these that is a file.
fn first_of(places: Vec<PathBuf>) -> io::Result<Option<(PathBuf, Version)>> {
    for path in places {
        if let Some(version) = Version::of(&path)? {
            return Ok(Some((path, version)));
        }
    }
    Ok(None)
}

/// Does something with the file at `path` where waiting for a disk holds nobody up, when few others do.
async fn on_a_thread<P: Send + 'static, T: Send + 'static>(
    open: &Arc<Semaphore>,
    path: P,
    read: impl FnOnce(P) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let turn = open.clone().acquire_owned().await.map_err(io::Error::other)?;
    let reading = spawn_blocking(move || {
        let read = read(path);
        drop(turn);
        read
    });
    reading.await.map_err(io::Error::other)?
}

/// The path below `root` that is meant, if each of its parts is a plain name.
fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let mut file = root.to_owned();
    for part in path.split('/') {
        let name = percent_decoded(part)?;
        if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
            return None;
        }
        file.push(name);
    }
    Some(file)
}

fn percent_decoded(part: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            decoded.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn files_are_served_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("static");
        std::fs::create_dir_all(root.join("charts")).unwrap();
        std::fs::write(root.join("charts/traefik-39.0.5+up39.0.5.tgz"), "chart").unwrap();
        std::fs::write(dir.path().join("token"), "secret").unwrap();
        let files = StaticFiles::new(root, None);

        for path in ["charts/traefik-39.0.5+up39.0.5.tgz", "charts/traefik-39.0.5%2Bup39.0.5.tgz"] {
            let response = files.answer(&Method::GET, path, HERE).await;
            assert_eq!(response.headers()["content-type"], "application/gzip");
            assert_eq!(response.headers()["content-length"], "5");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "chart");
        }
        let response = files.answer(&Method::HEAD, "charts/traefik-39.0.5+up39.0.5.tgz", HERE).await;
        assert_eq!(response.headers()["content-length"], "5");
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());

        for path in [
            "",
            "charts",
            "charts/",
            "charts/none.tgz",
            "charts/traefik-39.0.5+up39.0.5.tgz/x",
            "../token",
            "%2e%2e/token",
            "charts/../../token",
            "..%2ftoken",
            "charts//traefik-39.0.5+up39.0.5.tgz",
            "/etc/passwd",
            "%2Fetc%2Fpasswd",
            "%00",
            "%",
            "%4",
            "%zz",
            "%ff",
        ] {
            assert_eq!(files.answer(&Method::GET, path, HERE).await.status(), 404, "{path}");
        }
        assert_eq!(files.answer(&Method::PUT, "charts/x", HERE).await.status(), 405);
    }

    #[tokio::test]
    async fn the_packages_charts_are_served_behind_those_of_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let [root, charts] = ["static", "package"].map(|name| dir.path().join(name));
        std::fs::create_dir_all(root.join("charts")).unwrap();
        std::fs::create_dir(&charts).unwrap();
        for (file, text) in
            [("static/charts/own.tgz", "own"), ("package/own.tgz", "x"), ("package/app.tgz", "packaged")]
        {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let files = StaticFiles::new(root, Some(charts));
        for (path, text) in [("charts/own.tgz", "own"), ("charts/app.tgz", "packaged")] {
            let answer = files.answer(&Method::GET, path, HERE).await.into_body().collect().await.unwrap();
            assert_eq!(answer.to_bytes(), text, "{path}");
        }
        for path in ["app.tgz", "charts/none.tgz", "charts/../app.tgz", "charts/", "charts/%2e%2e/package/app.tgz"] {
            assert_eq!(files.answer(&Method::GET, path, HERE).await.status(), 404, "{path}");
        }
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_hold_no_file_open_and_are_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3 * PIECE + 1).map(|byte| byte as u8).collect();
        std::fs::write(dir.path().join("chart"), &content).unwrap();
        let files = StaticFiles::new(dir.path().to_owned(), None);
        let open = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(dir.path()))).count()
        };
        let mut unread = Vec::new();
        for source in 0..TRANSFERS / TRANSFERS_TO_ONE {
            let source = IpAddr::from([192, 0, 2, source as u8]);
            for _ in 0..TRANSFERS_TO_ONE {
                let mut answer = files.answer(&Method::GET, "chart", source).await;
                answer.body_mut().frame().await.unwrap().unwrap();
                unread.push(answer);
            }
            assert_eq!(files.answer(&Method::GET, "chart", source).await.status(), 429);
        }
        assert_eq!(open(), 0);
        assert_eq!(files.answer(&Method::GET, "chart", HERE).await.status(), 429, "to nobody else either");
        let rest = unread.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(rest, content[PIECE..]);
        let again = files.answer(&Method::GET, "chart", HERE).await.into_body().collect().await.unwrap();
        assert_eq!(again.to_bytes(), content);

        std::fs::write(dir.path().join("chart"), "another").unwrap();
        assert!(unread.pop().unwrap().into_body().collect().await.is_err(), "no mixture of two files");
    }
}
