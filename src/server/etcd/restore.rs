//! A member's data, made of a file that etcd's client has saved.

use std::{fs, path::Path, time::Duration};

use k3s_components::{Components, EtcdMember};
use k3s_config::datastore::ETCDUTL;
use k3s_files::failed;
use k3s_supervise::{
    Supervisor,
    program::Program,
    status::{ExitKind, LastExit},
};
use tokio_util::sync::CancellationToken;

use super::{error::EtcdError, folder::EtcdFolder};

/// How far revisions leap: as in restores of our own store.
pub(super) const LEAP: u64 = 1_000_000_000;
/// Where the data is until it is in place, and the file that it is made of meanwhile.
pub(super) const RESTORING: &str = "etcd-restoring";
pub(super) const SNAPSHOT: &str = "etcd-restoring.db";

/// More than any snapshot takes to unpack.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Makes the data of `member` in `folder`, which is not there yet; revisions go on `leap` above those of `file`.
///
/// # Errors
/// Why not, in etcdutl's words.
pub(super) async fn restore(
    file: &Path,
    folder: &EtcdFolder,
    member: &EtcdMember,
    leap: u64,
    supervisor: &Supervisor,
    components: &Components,
) -> Result<(), String> {
    let url = member.peer_url();
    let args = vec![
        "snapshot".into(),
        "restore".into(),
        file.into(),
        format!("--data-dir={}", folder.path().display()).into(),
        format!("--name={}", member.name).into(),
        format!("--initial-cluster={}={url}", member.name).into(),
        format!("--initial-advertise-peer-urls={url}").into(),
        // Whoever watched the lost store must not go on from a revision that now means something else.
        format!("--bump-revision={leap}").into(),
        "--mark-compacted".into(),
    ];
    let program = Program { args, ..Program::new(ETCDUTL, components.path(ETCDUTL)) };
    let LastExit { how, last_words, .. } = supervisor.run_once(program, PATIENCE, &CancellationToken::new()).await;
    match how {
        ExitKind::Code(0) => Ok(()),
        _ => Err(last_words.unwrap_or_else(|| "etcdutl failed and said nothing".to_owned())),
    }
}

/// Removes what an attempt has left.
pub(super) fn clear(dir: &Path, file: &Path) -> Result<(), EtcdError> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(failed("remove", dir))?;
    }
    k3s_files::remove(file)?;
    Ok(())
}
