//! `k3s snapshot`: save, list, prune and restore; k3s' `etcd-snapshot` by its own name too.
//!
//! Where the data and the snapshots lie is read as `k3s server` reads it: configuration file, variables, flags.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use k3s_components::Need;
use k3s_config::{datastore::Datastore, embedded_etcd::EmbeddedEtcd, server::ServerConfig, snapshots::RestoreFrom};
use k3s_datastore::snapshot::{Label, Listed};
use k3s_server::{
    SnapshotBucket,
    snapshots::{self, Object},
};

use super::{
    Failure,
    bucket_flags::BucketFlags,
    environment::{environment, refused},
    failure::UNAVAILABLE,
    globals::Globals,
    location::NodeFlags,
    output::{self, Format, line, print_json, show},
    runtime,
    upstream::libexec,
};
use crate::version;

/// What snapshots that a user takes are called.
const ON_DEMAND: &str = "on-demand";

/// Without a verb it saves, as in k3s.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Command {
    #[command(flatten)]
    save: Save,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Args)]
struct Save {
    #[command(flatten)]
    server: ServerFlags,
    /// What its name begins with; the node's name and the time follow
    #[arg(long, default_value = ON_DEMAND)]
    name: String,
    /// Compress it
    #[arg(long, alias = "etcd-snapshot-compress")]
    snapshot_compress: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take a snapshot, of a running server or of a stopped one
    Save(Save),
    /// List the snapshots
    #[command(visible_alias = "list", alias = "l")]
    Ls {
        #[command(flatten)]
        server: ServerFlags,
        /// text or json
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Delete snapshots by their names
    Delete {
        #[command(flatten)]
        server: ServerFlags,
        /// As `ls` shows them
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Delete the oldest snapshots of one name
    Prune {
        #[command(flatten)]
        server: ServerFlags,
        /// What their names begin with
        #[arg(long, default_value = ON_DEMAND)]
        name: String,
        /// How many stay; what the server is configured to keep if not given
        #[arg(long, alias = "etcd-snapshot-retention", value_name = "COUNT")]
        snapshot_retention: Option<u32>,
    },
    /// Put a snapshot in the place of a stopped server's datastore
    Restore {
        #[command(flatten)]
        server: ServerFlags,
        /// A name as `ls` shows it, or a file's path
        #[arg(value_name = "NAME|FILE")]
        snapshot: String,
    },
}

/// Flags of `k3s server` that say where things are.
#[derive(Debug, Args)]
struct ServerFlags {
    #[command(flatten)]
    node: NodeFlags,
    /// Where snapshots are
    #[arg(long, visible_alias = "dir", alias = "etcd-snapshot-dir", value_name = "DIR")]
    snapshot_dir: Option<OsString>,
    /// Name of the node
    #[arg(long, value_name = "NAME")]
    node_name: Option<OsString>,
    /// The server's token; needed where the server itself does not know it
    #[arg(short, long, value_name = "TOKEN")]
    token: Option<OsString>,
    /// File that holds it
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<OsString>,
    #[command(flatten)]
    bucket: BucketFlags,
}

pub(super) fn run(command: Command, globals: Globals) -> Result<ExitCode, Failure> {
    match command.verb.unwrap_or(Verb::Save(command.save)) {
        Verb::Save(Save { server, name, snapshot_compress }) => {
            let compress = snapshot_compress.then(|| "--snapshot-compress".into());
            save(&server.read(globals, compress)?, &name)
        }
        Verb::Ls { server, output } => list(&server.read(globals, None)?, output),
        Verb::Delete { server, names } => {
            let config = server.read(globals, None)?;
            runtime::run(async { snapshots::delete(&config, &names).await.map_err(failed) })?;
            deleted(&names)
        }
        Verb::Prune { server, name, snapshot_retention } => {
            let keep = snapshot_retention.map(|count| format!("--snapshot-retention={count}").into());
            let config = server.read(globals, keep)?;
            let pruned = runtime::run(async { snapshots::prune(&config, &name).await.map_err(failed) })?;
            if pruned.is_empty() {
                let folder = config.snapshots.folder.display();
                line(format_args!("There are no more snapshots {name}-… in {folder} than are to stay."))?;
            }
            deleted(&pruned)
        }
        Verb::Restore { server, snapshot } => {
            let config = server.read(globals, None)?;
            reset(&config, Some(&restore_from(&config, snapshot)))
        }
    }
}

fn save(config: &ServerConfig, name: &str) -> Result<ExitCode, Failure> {
    let snapshot = runtime::run(async { snapshots::save(config, name, version::KUBERNETES).await.map_err(failed) })?;
    let (path, revision, bytes) = (snapshot.path.display(), snapshot.label.revision, snapshot.bytes);
    line(format_args!("Saved {path} (revision {revision}, {bytes} bytes)."))?;
    if let Some(location) = runtime::run(async { snapshots::upload(config, &snapshot).await.map_err(failed) })? {
        line(format_args!("Saved {location}."))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn deleted(names: &[String]) -> Result<ExitCode, Failure> {
    names.iter().try_for_each(|name| line(format_args!("Deleted {name}.")))?;
    Ok(ExitCode::SUCCESS)
}

/// What a user means by a name or a path: a file that is there, or else what the bucket has under this name.
fn restore_from(config: &ServerConfig, name_or_path: String) -> RestoreFrom {
    let file = snapshots::folder(config).find(&name_or_path);
    match config.snapshots.s3 {
        Some(_) if !name_or_path.contains('/') && !file.exists() => RestoreFrom::Bucket(name_or_path),
        _ => RestoreFrom::File(file),
    }
}

/// Makes this server go on alone, from a snapshot or from its own member of etcd, and says how.
pub(super) fn reset(config: &ServerConfig, snapshot: Option<&RestoreFrom>) -> Result<ExitCode, Failure> {
    let file = match snapshot {
        None => None,
        Some(RestoreFrom::File(file)) => Some(file.clone()),
        Some(RestoreFrom::Bucket(name)) => Some(fetch(config, name)?),
    };
    match (&config.datastore, file) {
        (Datastore::EmbeddedEtcd(etcd), file) => reset_etcd(config, etcd, file.as_deref()),
        (_, Some(file)) => restore(config, &file),
        (_, None) => Err(failed(k3s_server::Error::KeptElsewhere)),
    }
}

fn fetch(config: &ServerConfig, name: &str) -> Result<PathBuf, Failure> {
    let file = runtime::run(async { snapshots::fetch(config, name).await.map_err(failed) })?;
    line(format_args!("Fetched {name} from S3 to {}.", file.display()))?;
    Ok(file)
}

fn reset_etcd(config: &ServerConfig, etcd: &EmbeddedEtcd, snapshot: Option<&Path>) -> Result<ExitCode, Failure> {
    let package = libexec()?
        .package(&[Need::Store(config.datastore.programs())], version::KUBERNETES)
        .map_err(|error| Failure::from_error(UNAVAILABLE, &error))?;
    let reset = runtime::run(async { k3s_server::reset(config.clone(), &package, snapshot).await.map_err(failed) })?;
    match snapshot {
        Some(file) => line(format_args!("Restored {}; {} is the only member of etcd.", file.display(), reset.member))?,
        None => line(format_args!("{} is the only member of etcd, with the data that it had.", reset.member))?,
    }
    if let Some(kept) = reset.kept {
        line(format_args!("The data of before is kept as {}.", kept.display()))?;
    }
    line("Start k3s server again, without --cluster-reset.")?;
    let dir = etcd.dir.display();
    line(format_args!(
        "On each other server with etcd: stop it, move {dir} away, and start it with --server=https://THIS-SERVER:6443. Servers with \
         --disable-etcd go on by themselves."
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Restores `file`, and says how to go on.
fn restore(config: &ServerConfig, file: &Path) -> Result<ExitCode, Failure> {
    let restored = runtime::run(async { snapshots::restore(config, file, version::KUBERNETES).await.map_err(failed) })?;
    line(format_args!("Restored {}; the cluster goes on from revision {}.", file.display(), restored.revision))?;
    if let Some(kept) = restored.kept {
        line(format_args!("The datastore of before is kept as {}.", kept.display()))?;
    }
    line("Start k3s server again, without --cluster-reset.")?;
    Ok(ExitCode::SUCCESS)
}

fn list(config: &ServerConfig, format: Format) -> Result<ExitCode, Failure> {
    let mut rows: Vec<_> =
        snapshots::folder(config).list().map_err(|error| failed(error.into()))?.into_iter().map(Row::from).collect();
    // What is on the disk is shown whatever the bucket says.
    let in_bucket = runtime::run(async { of_bucket(config).await.map_err(failed) });
    let (more, failure) = match in_bucket {
        Ok(more) => (more, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    rows.extend(more);
    match format {
        Format::Text => show(table(&rows))?,
        Format::Json => print_json("the list", &rows.iter().map(Row::json).collect::<Vec<_>>())?,
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

async fn of_bucket(config: &ServerConfig) -> Result<Vec<Row>, k3s_server::Error> {
    let Some(bucket) = SnapshotBucket::of(config).await? else { return Ok(Vec::new()) };
    let row = |object: Object| Row {
        location: bucket.location(&object.name),
        name: object.name,
        bytes: object.bytes,
        created: object.modified,
        label: RowLabel::InBucket,
    };
    Ok(bucket.list().await?.into_iter().map(row).collect())
}

/// The columns of `k3s etcd-snapshot ls`, and what a restore needs to know.
fn table(rows: &[Row]) -> String {
    let header = ["Name", "Location", "Size", "Created", "Revision", "Token"].map(str::to_owned);
    output::table(std::iter::once(header).chain(rows.iter().map(Row::columns)))
}

/// One snapshot of a list.
struct Row {
    name: String,
    location: String,
    bytes: u64,
    created: Option<Timestamp>,
    label: RowLabel,
}

/// What a snapshot says of itself.
enum RowLabel {
    Read(Label),
    /// It would have to be fetched for it.
    InBucket,
    /// Nothing: it is none.
    None,
}

impl Row {
    fn columns(&self) -> [String; 6] {
        let unknown = || "-".to_owned();
        let (revision, token) = match &self.label {
            RowLabel::Read(label) => (label.revision.to_string(), label.token_hash.clone()),
            RowLabel::InBucket => (unknown(), unknown()),
            RowLabel::None => (unknown(), "not a snapshot".to_owned()),
        };
        let created = self.created.map_or_else(unknown, |created| created.to_string());
        [self.name.clone(), self.location.clone(), self.bytes.to_string(), created, revision, token]
    }

    fn json(&self) -> serde_json::Value {
        let label = if let RowLabel::Read(label) = &self.label { Some(label) } else { None };
        serde_json::json!({
            "name": self.name,
            "location": self.location,
            "size": self.bytes,
            "createdAt": self.created.map(|created| created.to_string()),
            "status": if matches!(self.label, RowLabel::None) { "failed" } else { "successful" },
            "label": label,
        })
    }
}

impl From<Listed> for Row {
    fn from(listed: Listed) -> Self {
        Self {
            location: location(&listed.path),
            name: listed.name,
            bytes: listed.bytes,
            created: listed.label.as_ref().map(|label| created(label.created)),
            label: listed.label.map_or(RowLabel::None, RowLabel::Read),
        }
    }
}

fn location(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn created(unix: u64) -> Timestamp {
    let time = i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok());
    time.unwrap_or(Timestamp::UNIX_EPOCH)
}

fn failed(error: k3s_server::Error) -> Failure {
    Failure::from_error(error.exit_code(), &error)
}

impl ServerFlags {
    /// The server's configuration, with these flags and `extra` on its command line.
    fn read(self, globals: Globals, extra: Option<OsString>) -> Result<ServerConfig, Failure> {
        runtime::log(globals.debug);
        let flags = [
            ("--snapshot-dir", self.snapshot_dir),
            ("--node-name", self.node_name),
            ("--token", self.token),
            ("--token-file", self.token_file),
        ];
        let mut args = self.node.into_args(globals);
        args.extend(extra);
        args.extend(self.bucket.into_args());
        for (flag, value) in flags {
            if let Some(value) = value {
                args.extend([OsString::from(flag), value]);
            }
        }
        let (config, _) = k3s_config::parse_server(args, &environment()?).map_err(|error| refused(&error))?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use k3s_datastore::snapshot::SnapshotStore;

    use super::*;

    #[test]
    fn the_list_lines_up_and_names_what_is_no_snapshot() {
        let label = Label {
            node: "edge-7".into(),
            created: 1_795_000_000,
            revision: 42,
            database_bytes: 4096,
            compressed: false,
            store: SnapshotStore::Sqlite,
            format: 1,
            version: "v1.36.3+k3s1".into(),
            token_hash: "1ec1c26b50d5".into(),
            metadata: std::collections::BTreeMap::new(),
        };
        let listed =
            |name: &str, label| Listed { name: name.into(), path: Path::new("/s").join(name), bytes: 4500, label };
        let in_bucket = Row {
            name: "daily".into(),
            location: "s3://b/daily".into(),
            bytes: 9,
            created: None,
            label: RowLabel::InBucket,
        };
        let rows = [listed("on-demand-edge-7-1795000000", Some(label)).into(), listed("notes", None).into(), in_bucket];
        let table = table(&rows);
        assert_eq!(
            table,
            "Name                        Location                              Size Created              Revision Token\n\
             on-demand-edge-7-1795000000 file:///s/on-demand-edge-7-1795000000 4500 2026-11-18T11:06:40Z 42       1ec1c26b50d5\n\
             notes                       file:///s/notes                       4500 -                    -        not a snapshot\n\
             daily                       s3://b/daily                          9    -                    -        -\n"
        );
    }
}
