//! Which files the data stands for, and reading and writing them.

use std::{
    fs::{self, File as DiskFile},
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::Timestamp;
use k3s_files::{self as files, FileError, PRIVATE, failed};
use k3s_supervisor_api::{BootstrapData, File};

/// k3s' name of each file, and where it lies below `<data>/server`.
const FILES: [(&str, &str); 15] = [
    ("ClientCA", "tls/client-ca.crt"),
    ("ClientCAKey", "tls/client-ca.key"),
    ("ETCDPeerCA", "tls/etcd/peer-ca.crt"),
    ("ETCDPeerCAKey", "tls/etcd/peer-ca.key"),
    ("ETCDServerCA", "tls/etcd/server-ca.crt"),
    ("ETCDServerCAKey", "tls/etcd/server-ca.key"),
    (ENCRYPTION[0], ENCRYPTION_FILES[0]),
    (ENCRYPTION[1], ENCRYPTION_FILES[1]),
    ("IPSECKey", "cred/ipsec.psk"),
    (ACCOUNTS, "cred/passwd"),
    ("RequestHeaderCA", "tls/request-header-ca.crt"),
    ("RequestHeaderCAKey", "tls/request-header-ca.key"),
    ("ServerCA", "tls/server-ca.crt"),
    ("ServerCAKey", "tls/server-ca.key"),
    ("ServiceKey", "tls/service.key"),
];

/// k3s' name of `cred/passwd`.
const ACCOUNTS: &str = "PasswdFile";

/// The configuration of encryption and its state, below `<data>/server`.
pub(crate) const ENCRYPTION_FILES: [&str; 2] = ["cred/encryption-config.json", "cred/encryption-state.json"];
/// k3s' names of these.
const ENCRYPTION: [&str; 2] = ["EncryptionConfig", "EncryptionHash"];

/// The folders without which a server counts as new.
const FOLDERS: [&str; 3] = ["cred", "tls", "tls/etcd"];

/// The place of a file in `server`, if its name is known.
pub(super) fn path_of(server: &Path, name: &str) -> Option<PathBuf> {
    place_of(name).map(|place| server.join(place))
}

/// The same below `<data>/server`.
pub(super) fn place_of(name: &str) -> Option<&'static str> {
    FILES.into_iter().find(|(known, _)| *known == name).map(|(_, place)| place)
}

/// Whether nothing of a server is there yet.
pub(super) fn is_new(server: &Path) -> bool {
    let is_empty = |folder| fs::read_dir(server.join(folder)).map_or(true, |mut entries| entries.next().is_none());
    FOLDERS.iter().any(is_empty)
}

/// All of these files that are there.
pub(crate) fn from_disk(server: &Path) -> Result<BootstrapData, FileError> {
    let mut data = BootstrapData::default();
    for (name, path) in FILES {
        if let Some(file) = read(&server.join(path))? {
            data.files.insert(name.to_owned(), file);
        }
    }
    Ok(data)
}

/// The accounts in the place of those in `data`.
pub(crate) fn set_accounts(data: &mut BootstrapData, on_disk: &BootstrapData, accounts: Vec<u8>) {
    supersede(data, on_disk, ACCOUNTS, accounts);
}

/// The configuration of encryption, and its state.
pub(crate) fn encryption(data: &BootstrapData) -> (Option<&[u8]>, Option<&[u8]>) {
    let [config, state] = ENCRYPTION.map(|name| data.files.get(name).map(|file| file.content.as_slice()));
    (config, state)
}

/// Both in the place of those in `data`.
pub(crate) fn set_encryption(data: &mut BootstrapData, on_disk: &BootstrapData, config: Vec<u8>, state: Vec<u8>) {
    for (name, content) in ENCRYPTION.into_iter().zip([config, state]) {
        supersede(data, on_disk, name, content);
    }
}

/// Brings both in `server` (`<data>/server`) to what `data` has.
pub(crate) fn write_encryption(server: &Path, data: &BootstrapData) -> Result<(), FileError> {
    for name in ENCRYPTION {
        let (Some(path), Some(file)) = (path_of(server, name), data.files.get(name)) else { continue };
        if read(&path)?.is_none_or(|on_disk| on_disk.content != file.content) {
            write(&path, file)?;
        }
    }
    Ok(())
}

/// Other contents in the place of a file's. Not older than what they replace in `data` and on the disk, whatever the clock says: it is them
/// that count at the next start.
pub(super) fn supersede(data: &mut BootstrapData, on_disk: &BootstrapData, name: &str, content: Vec<u8>) {
    let before = [&*data, on_disk].into_iter().filter_map(|data| data.files.get(name)).map(|file| file.modified);
    let modified = before.fold(Timestamp::now(), Timestamp::max);
    data.files.insert(name.to_owned(), File { modified, content });
}

/// Whether a stored file is missing on the disk, or another one there.
pub(crate) fn differs(stored: &BootstrapData, server: &Path) -> Result<bool, FileError> {
    let on_disk = from_disk(server)?;
    let differs = |(name, file): (&String, &File)| {
        path_of(server, name).is_some() && on_disk.files.get(name).is_none_or(|on_disk| on_disk.content != file.content)
    };
    Ok(stored.files.iter().any(differs))
}

/// Moves the folder of certificates out of the way, as k3s' cluster reset keeps it; returns where it is. What it held and a
/// server still needs is made anew.
pub(crate) fn set_aside(server: &Path) -> Result<Option<PathBuf>, FileError> {
    let tls = server.join("tls");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let kept = server.join(format!("tls-{}", now.as_secs()));
    match fs::rename(&tls, &kept) {
        Ok(()) => Ok(Some(kept)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("move", &tls)(error)),
    }
}

/// One file, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<File>, FileError> {
    let Some(content) = files::read(path)? else { return Ok(None) };
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(failed("read", path))?;
    // Times that jiff does not know lie before the year -9999 and after 9999.
    let modified = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(Some(File { modified, content }))
}

/// Writes a file as it was stored, its time included: it is compared with the stored one at the next start.
pub(super) fn write(path: &Path, file: &File) -> Result<(), FileError> {
    if let Some(folder) = path.parent() {
        files::create_directory(folder, 0o700)?;
    }
    files::write(path, &file.content, PRIVATE)?;
    let dated = DiskFile::open(path).and_then(|disk| disk.set_modified(SystemTime::from(file.modified)));
    dated.map_err(failed("set the time of", path))
}
