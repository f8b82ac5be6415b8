//! When the datastore and the disk differ: who is right.

use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use k3s_files::is_torn;
use k3s_supervisor_api::{BootstrapData, File};
use tracing::{info, warn};

use super::{BootstrapError, files};

/// A file is changed by hand if it is newer than what was stored by this or more: clocks and file systems round.
const SKEW: SignedDuration = SignedDuration::from_secs(3);

/// Who is right about a file that was changed on the disk since it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precedence {
    /// Nobody: the start is refused until somebody has decided.
    Undecided,
    /// The datastore, since it was restored.
    Datastore,
}

/// How a file on the disk relates to the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileState {
    Same,
    Missing,
    /// Emptied by a power cut: it tells nothing, whatever its time.
    Torn,
    Older,
    Newer,
}

impl FileState {
    fn of(stored: &File, on_disk: Option<&File>) -> Self {
        match on_disk {
            None => Self::Missing,
            Some(on_disk) if on_disk.content == stored.content => Self::Same,
            Some(on_disk) if is_torn(&on_disk.content) => Self::Torn,
            Some(on_disk) if on_disk.modified.duration_since(stored.modified) >= SKEW => Self::Newer,
            Some(_) => Self::Older,
        }
    }
}

/// Brings the files of `server` (`<data>/server`) to what is stored, by k3s' rules: a server without files gets them all;
/// else, if any file differs, all are written again, but a file that was changed since is not overwritten without a word.
/// Returns whether files were written.
pub(crate) fn reconcile(stored: &BootstrapData, server: &Path, precedence: Precedence) -> Result<bool, BootstrapError> {
    let files: Vec<(PathBuf, &File)> =
        stored.files.iter().filter_map(|(name, file)| Some((files::path_of(server, name)?, file))).collect();
    let is_new = files::is_new(server);
    let mut differing = false;
    let (mut newer, mut replaced) = (Vec::new(), Vec::new());
    for (path, file) in &files {
        let state = FileState::of(file, files::read(path)?.as_ref());
        differing |= state != FileState::Same;
        match state {
            FileState::Same => {}
            FileState::Newer if !is_new && precedence == Precedence::Undecided => newer.push(path.clone()),
            FileState::Missing if is_new => {}
            FileState::Missing | FileState::Torn | FileState::Older | FileState::Newer => {
                replaced.push(path.display().to_string());
            }
        }
    }
    if !newer.is_empty() {
        return Err(BootstrapError::NewerOnDisk { paths: newer });
    }
    if !replaced.is_empty() {
        warn!(
            files = replaced.join(", "),
            "Files are missing, empty or other than in the datastore, and are replaced."
        );
    }
    if differing {
        for (path, file) in &files {
            files::write(path, file)?;
        }
        info!(path = %server.display(), "The cluster's authorities are written as the datastore has them.");
    }
    Ok(differing)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        time::{Duration, SystemTime},
    };

    use jiff::Timestamp;
    use tempfile::TempDir;

    use super::*;

    const STORED: &str = "2026-01-02T03:04:05Z";

    fn stored() -> BootstrapData {
        let names = ["ServerCA", "ETCDServerCA", "PasswdFile", "Tomorrow"];
        let file = |name: &str| File { modified: STORED.parse().unwrap(), content: name.into() };
        BootstrapData { files: names.map(|name| (name.to_owned(), file(name))).into() }
    }

    /// A server that has all that is stored.
    fn server() -> TempDir {
        let server = tempfile::tempdir().unwrap();
        assert!(reconcile(&stored(), server.path(), Precedence::Undecided).unwrap());
        server
    }

    fn change(server: &TempDir, path: &str, seconds_after: i64) {
        let path = server.path().join(path);
        fs::write(&path, "mine").unwrap();
        let time = SystemTime::from(STORED.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds_after));
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }

    fn read(server: &TempDir, path: &str) -> String {
        fs::read_to_string(server.path().join(path)).unwrap()
    }

    #[test]
    fn a_new_server_gets_the_files_and_an_equal_one_keeps_them() {
        let server = server();
        let path = server.path().join("tls/etcd/server-ca.crt");
        assert_eq!(read(&server, "tls/etcd/server-ca.crt"), "ETCDServerCA");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(modified, SystemTime::from(STORED.parse::<Timestamp>().unwrap()));
        fs::File::open(&path).unwrap().set_modified(modified + Duration::from_secs(99)).unwrap();
        assert!(!reconcile(&stored(), server.path(), Precedence::Undecided).unwrap());
    }

    #[test]
    fn a_missing_or_older_file_is_written() {
        let server = server();
        fs::remove_file(server.path().join("cred/passwd")).unwrap();
        fs::write(server.path().join("cred/other"), "").unwrap();
        change(&server, "tls/server-ca.crt", 2);
        assert!(reconcile(&stored(), server.path(), Precedence::Undecided).unwrap());
        assert_eq!(
            (read(&server, "cred/passwd"), read(&server, "tls/server-ca.crt")),
            ("PasswdFile".into(), "ServerCA".into())
        );
    }

    #[test]
    fn a_file_that_a_power_cut_emptied_is_not_newer() {
        for torn in [&[][..], &[0; 512]] {
            let server = server();
            for path in ["tls/server-ca.crt", "tls/etcd/server-ca.crt", "cred/passwd"] {
                fs::write(server.path().join(path), torn).unwrap();
            }
            assert!(reconcile(&stored(), server.path(), Precedence::Undecided).unwrap());
            let read = ["tls/server-ca.crt", "tls/etcd/server-ca.crt", "cred/passwd"].map(|path| read(&server, path));
            assert_eq!(read, ["ServerCA", "ETCDServerCA", "PasswdFile"]);
        }
    }

    #[test]
    fn a_newer_file_is_refused_by_name_and_nothing_is_written() {
        let server = server();
        change(&server, "tls/server-ca.crt", 3);
        change(&server, "cred/passwd", -60);
        let refused = reconcile(&stored(), server.path(), Precedence::Undecided).unwrap_err().to_string();
        assert!(refused.contains("tls/server-ca.crt newer than datastore") && !refused.contains("passwd"), "{refused}");
        assert_eq!((read(&server, "cred/passwd"), read(&server, "tls/server-ca.crt")), ("mine".into(), "mine".into()));
        assert!(reconcile(&stored(), server.path(), Precedence::Datastore).unwrap());
        assert_eq!(read(&server, "tls/server-ca.crt"), "ServerCA");
    }
}
