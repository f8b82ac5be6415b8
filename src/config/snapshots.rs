//! Snapshots of the datastore: where they go, when they are taken, how many stay.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use croner::{Cron, parser::CronParser};
use jiff::Zoned;

use crate::{
    datastore::Datastore,
    environment::Environment,
    error::Error,
    s3::S3Config,
    values::{Values, duration},
};

/// When snapshots of an embedded etcd are taken unless something else is said: k3s' own default.
const OF_ETCD: &str = "0 */12 * * *";
/// Objects are compared with files no more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// What a server does about snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Where they go (`--snapshot-dir`), `<data-dir>/server/db/snapshots` by default.
    pub folder: PathBuf,
    /// What the names of scheduled ones begin with (`--snapshot-name`).
    pub name: String,
    /// Whether they are compressed (`--snapshot-compress`).
    pub compress: bool,
    /// How many scheduled ones stay (`--snapshot-retention`); zero keeps all.
    pub retention: usize,
    /// When they are taken (`--snapshot-schedule-cron`). Never by default: a disk fills only for those who asked. Of an embedded etcd, which
    /// has no second copy in one place, twice a day as in k3s.
    pub schedule: Option<Schedule>,
    /// The bucket that they go to, too (`--etcd-s3`).
    pub s3: Option<S3Config>,
    /// How often the objects that tell of them are compared with the files (`--etcd-snapshot-reconcile-interval`), beside whenever
    /// something changes.
    pub reconcile_interval: Duration,
}

/// What a server is asked to do instead of running (`--cluster-reset`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterReset {
    /// The snapshot to go on from (`--cluster-reset-restore-path`). Without one an embedded etcd goes on from its data, as the only member.
    pub snapshot: Option<RestoreFrom>,
}

/// Where a snapshot is that is to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreFrom {
    /// In this file.
    File(PathBuf),
    /// In the bucket of `--etcd-s3`, under this name.
    Bucket(String),
}

/// The times that a cron pattern names.
#[derive(Clone, PartialEq, Eq)]
pub struct Schedule(Cron);

impl SnapshotConfig {
    /// The folder that is used unless another is named; it is made when it is needed.
    pub fn default_folder(data_dir: &Path) -> PathBuf {
        data_dir.join("server/db/snapshots")
    }

    pub(crate) fn from_values(
        values: &Values,
        data_dir: &Path,
        datastore: &Datastore,
        environment: &Environment,
    ) -> Result<Self, Error> {
        let folder = values.given("snapshot-dir").map(|given| given.path(environment)).transpose()?;
        let schedule = match values.given("snapshot-schedule-cron") {
            Some(given) => Some(given.parse(Schedule::parse)?),
            None if matches!(datastore, Datastore::EmbeddedEtcd(_)) => Schedule::parse(OF_ETCD).ok(),
            None => None,
        };
        Ok(Self {
            folder: folder.unwrap_or_else(|| Self::default_folder(data_dir)),
            name: values.text("snapshot-name").parse(name)?,
            compress: values.is_on("snapshot-compress"),
            retention: values.text("snapshot-retention").parse(|text| {
                text.parse().map_err(|_| format!("`{text}` is not a count; write a number such as 5, or 0 to keep all"))
            })?,
            schedule: schedule.filter(|_| !values.is_on("etcd-disable-snapshots")),
            s3: S3Config::from_values(values, environment)?,
            reconcile_interval: values.text("etcd-snapshot-reconcile-interval").parse(reconcile_interval)?,
        })
    }
}

impl ClusterReset {
    pub(crate) fn from_values(
        values: &Values,
        datastore: &Datastore,
        environment: &Environment,
    ) -> Result<Option<Self>, Error> {
        let reset = values.given("cluster-reset").filter(|given| given.text == "true");
        match (reset, values.given("cluster-reset-restore-path")) {
            (Some(_), Some(path)) if values.is_on("etcd-s3") && !path.text.contains('/') => {
                Ok(Some(Self { snapshot: Some(RestoreFrom::Bucket(path.parse(name)?)) }))
            }
            (Some(_), Some(path)) => Ok(Some(Self { snapshot: Some(RestoreFrom::File(path.path(environment)?)) })),
            (Some(_), None) if matches!(datastore, Datastore::EmbeddedEtcd(_)) => Ok(Some(Self { snapshot: None })),
            (Some(reset), None) => Err(reset.invalid(
                "a server on SQLite has no other members; leave it out, or give --cluster-reset-restore-path too to restore a snapshot",
            )),
            (None, Some(path)) => Err(path.invalid("a snapshot is only restored with --cluster-reset; give that too")),
            (None, None) => Ok(None),
        }
    }
}

impl Schedule {
    /// Five fields, or six with the seconds first, or a name such as `@daily`.
    fn parse(text: &str) -> Result<Self, String> {
        let parsed = CronParser::new().parse(text);
        parsed
            .map(Self)
            .map_err(|error| format!("`{text}` is not a cron pattern ({error}); write one such as 0 */12 * * *"))
    }

    /// The first time after `now`, in its time zone; `None` if there will be none.
    pub fn next(&self, now: &Zoned) -> Option<Zoned> {
        self.0.find_next_occurrence(now, false).ok()
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({})", self.0.as_str())
    }
}

/// Each time a folder and a bucket are listed.
fn reconcile_interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("`{text}` is too often; write a time of at least 1s, such as 10m"));
    }
    Ok(interval)
}

fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (text.chars().all(plain) && !text.starts_with('.'))
        .then(|| text.to_owned())
        .ok_or_else(|| format!("`{text}` is not a name for files; use letters, digits, dots, dashes and underscores"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{server::ServerConfig, test_host::Host};

    fn server(args: &[&str]) -> ServerConfig {
        Host::new().server(args).expect("a valid configuration").0
    }

    #[test]
    fn nothing_is_taken_unless_it_is_asked_for() {
        let config = server(&[]).snapshots;
        assert!(config.schedule.is_none() && !config.compress);
        assert_eq!((config.name.as_str(), config.retention), ("snapshot", 5));
        assert_eq!(config.folder, Path::new("/var/lib/rancher/k3s/server/db/snapshots"));
        assert_eq!(config.reconcile_interval, Duration::from_secs(600));
    }

    #[test]
    fn etcds_are_taken_twice_a_day_as_in_k3s() {
        let schedule = |args: &[&str]| server(args).snapshots.schedule.map(|schedule| format!("{schedule:?}"));
        assert_eq!(schedule(&["--cluster-init"]).as_deref(), Some("Schedule(0 */12 * * *)"));
        let other = ["--cluster-init", "--etcd-snapshot-schedule-cron=0 3 * * *"];
        assert_eq!(schedule(&other).as_deref(), Some("Schedule(0 3 * * *)"));
        assert_eq!(schedule(&["--cluster-init", "--etcd-disable-snapshots"]), None);
    }

    #[test]
    fn k3s_names_for_etcd_are_heard_too() {
        let args =
            ["--etcd-snapshot-schedule-cron=0 */6 * * *", "--etcd-snapshot-retention=9", "--etcd-snapshot-dir=/backup"];
        let config = server(&args).snapshots;
        assert_eq!((config.retention, config.folder.as_path()), (9, Path::new("/backup")));
        let next =
            config.schedule.expect("a schedule").next(&"2026-01-02T03:04:05+01:00[+01:00]".parse().expect("a time"));
        assert_eq!(next.expect("a time").to_string(), "2026-01-02T06:00:00+01:00[+01:00]");
        assert!(server(&[args[0], "--etcd-disable-snapshots"]).snapshots.schedule.is_none());
    }

    #[test]
    fn a_restore_needs_both_flags() {
        let (reset, path) = ("--cluster-reset", "--cluster-reset-restore-path=/backup/a");
        assert_eq!(
            server(&[reset, path]).cluster_reset,
            Some(ClusterReset { snapshot: Some(RestoreFrom::File("/backup/a".into())) })
        );
        let s3 = ["--etcd-s3", "--etcd-s3-bucket=b", "--etcd-s3-access-key=a", "--etcd-s3-secret-key=s"];
        let of_bucket = server(&[&s3[..], &[reset, "--cluster-reset-restore-path=name"]].concat()).cluster_reset;
        assert_eq!(of_bucket, Some(ClusterReset { snapshot: Some(RestoreFrom::Bucket("name".to_owned())) }));
        assert_eq!(server(&[reset, "--cluster-init"]).cluster_reset, Some(ClusterReset { snapshot: None }));
        for alone in [reset, path] {
            assert!(Host::new().server(&[alone]).is_err(), "{alone}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            "--snapshot-schedule-cron=hourly",
            "--snapshot-retention=-1",
            "--snapshot-name=a/b",
            "--etcd-snapshot-reconcile-interval=0s",
            "--etcd-snapshot-reconcile-interval=often",
        ] {
            let error = Host::new().server(&[wrong]).expect_err(wrong).to_string();
            assert!(error.starts_with(wrong.split('=').next().unwrap_or_default()), "{error}");
        }
    }
}
