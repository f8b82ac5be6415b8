//! Which addresses pods of this node were given, from the moment they were.
//!
//! containerd's CNI library keeps the result of each attachment as a file while a pod is attached, and puts it there before any container
//! of the pod starts. kubelet tells the API later. Whatever CNI configuration is in use is followed alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use ipnet::IpNet;
use serde::Deserialize;
use tracing::debug;

/// Where the library keeps results, unless told otherwise, which containerd does not.
const RESULTS: &str = "/var/lib/cni/results";

/// What was given to one pod, by all of its attachments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses; empty once it is attached no more.
    pub addresses: BTreeSet<IpAddr>,
}

/// Follows the folder of results.
pub struct Attachments {
    folder: PathBuf,
    events: EventStream<[u8; 4096]>,
    files: BTreeMap<OsString, Attached>,
}

impl Attachments {
    /// Begins to follow, and tells of all pods that are attached.
    ///
    /// # Errors
    /// The folder cannot be made, read or followed.
    pub fn follow() -> io::Result<(Self, Vec<Attached>)> {
        Self::follow_folder(RESULTS.as_ref())
    }

    fn follow_folder(folder: &Path) -> io::Result<(Self, Vec<Attached>)> {
        fs::create_dir_all(folder)?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        inotify.watches().add(folder, mask | WatchMask::DELETE_SELF | WatchMask::ONLYDIR)?;
        let events = inotify.into_event_stream([0; 4096])?;
        let mut attachments = Self { folder: folder.to_owned(), events, files: BTreeMap::new() };
        let all = attachments.read_all()?;
        Ok((attachments, all))
    }

    /// Waits for a pod that is attached, or no longer, and tells what it has now. Cancel-safe.
    ///
    /// # Errors
    /// The folder went, or cannot be followed any more.
    pub async fn next(&mut self) -> io::Result<Vec<Attached>> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return self.read_all();
            }
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::IGNORED) {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} was removed", self.folder.display())));
            }
            let Some(name) = event.name else { continue };
            let gone = event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
            let changed = match gone {
                true => self.files.remove(&name).into_iter().collect(),
                false => self.read(name),
            };
            if !changed.is_empty() {
                return Ok(self.totals(changed));
            }
        }
    }

    fn read_all(&mut self) -> io::Result<Vec<Attached>> {
        let mut changed: Vec<_> = std::mem::take(&mut self.files).into_values().collect();
        for entry in fs::read_dir(&self.folder)? {
            changed.extend(self.read(entry?.file_name()));
        }
        Ok(self.totals(changed))
    }

    /// The pod that a file is about, and the one that it was about before.
    fn read(&mut self, name: OsString) -> Vec<Attached> {
        let path = self.folder.join(&name);
        let read = k3s_files::read_existing(&path).map_err(|error| error.to_string());
        let parsed = read.and_then(|text| Attached::parse(&text).map_err(|error| error.to_string()));
        let now = match parsed {
            Ok(now) => now,
            Err(error) => {
                // One that is being written is told of again.
                debug!(path = %path.display(), error, "What a pod was given is not understood.");
                None
            }
        };
        let before = match &now {
            Some(now) => self.files.insert(name, now.clone()),
            None => self.files.remove(&name),
        };
        before.into_iter().chain(now).collect()
    }

    /// What the pods that these are about have by all of their files.
    fn totals(&self, of: Vec<Attached>) -> Vec<Attached> {
        let pods: BTreeSet<_> = of.into_iter().map(|attached| (attached.namespace, attached.name)).collect();
        let total = |(namespace, name): (String, String)| {
            let files = self.files.values().filter(|file| file.namespace == namespace && file.name == name);
            let addresses = files.flat_map(|file| file.addresses.iter().copied()).collect();
            Attached { namespace, name, addresses }
        };
        pods.into_iter().map(total).collect()
    }
}

/// libcni's `cachedInfo`, as far as it concerns us.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: CniResult,
}

#[derive(Default, Deserialize)]
struct CniResult {
    #[serde(default)]
    ips: Vec<CniAddress>,
}

#[derive(Deserialize)]
struct CniAddress {
    address: IpNet,
}

impl Attached {
    /// `None` for what is no pod's, or has no address, as the loopback interface.
    fn parse(text: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let cached: Cached = serde_json::from_slice(text)?;
        let arg = |name: &str| {
            cached.cni_args.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.clone())
        };
        let addresses = cached.result.ips.iter().map(|ip| ip.address.addr());
        let addresses: BTreeSet<_> = addresses.filter(|address| !address.is_loopback()).collect();
        let names = arg("K8S_POD_NAMESPACE").zip(arg("K8S_POD_NAME")).filter(|_| !addresses.is_empty());
        Ok(names.map(|(namespace, name)| Self { namespace, name, addresses }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pod: &str, addresses: &[&str]) -> String {
        let ips: Vec<_> = addresses.iter().map(|address| serde_json::json!({"address": address})).collect();
        let args =
            [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", pod], ["K8S_POD_UID", "u"]];
        let cached = serde_json::json!({
            "kind": "cniCacheV1", "containerId": "c", "config": "e30=", "ifName": "eth0", "networkName": "cbr0",
            "netns": "/var/run/netns/cni-1", "cniArgs": args, "result": {"cniVersion": "1.0.0", "ips": ips},
        });
        cached.to_string()
    }

    fn attached(pod: &str, addresses: &[&str]) -> Attached {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Attached { namespace: "default".into(), name: pod.into(), addresses }
    }

    #[test]
    fn loopback_and_what_is_no_pods_do_not_count() {
        let parse = |text: &str| Attached::parse(text.as_bytes()).unwrap();
        assert_eq!(parse(&file("a", &["10.42.0.5/24", "fd42::5/64"])), Some(attached("a", &["10.42.0.5", "fd42::5"])));
        assert_eq!(parse(&file("a", &["127.0.0.1/8", "::1/128"])), None);
        assert_eq!(parse(r#"{"kind": "cniCacheV1", "result": {"ips": [{"address": "10.42.0.5/24"}]}}"#), None);
        assert!(Attached::parse(b"{").is_err());
    }

    #[tokio::test]
    async fn a_pod_is_told_of_as_it_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("results");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("cbr0-1-eth0"), file("a", &["10.42.0.5/24"])).unwrap();
        let (mut attachments, all) = Attachments::follow_folder(&folder).unwrap();
        assert_eq!(all, [attached("a", &["10.42.0.5"])]);
        // A new sandbox of the same pod, before the old one is gone.
        fs::write(folder.join("cbr0-2-eth0"), file("a", &["10.42.0.6/24"])).unwrap();
        assert_eq!(attachments.next().await.unwrap(), [attached("a", &["10.42.0.5", "10.42.0.6"])]);
        fs::write(folder.join("cni-loopback-3-lo"), file("a", &["127.0.0.1/8"])).unwrap();
        fs::remove_file(folder.join("cbr0-1-eth0")).unwrap();
        assert_eq!(attachments.next().await.unwrap(), [attached("a", &["10.42.0.6"])]);
        fs::remove_file(folder.join("cbr0-2-eth0")).unwrap();
        assert_eq!(attachments.next().await.unwrap(), [attached("a", &[])]);
        fs::remove_dir_all(&folder).unwrap();
        assert!(attachments.next().await.is_err());
    }
}
