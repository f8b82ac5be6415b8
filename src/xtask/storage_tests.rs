//! `cargo xtask storage-tests`: Kubernetes' own tests of its storage layer, run against a datastore.
//!
//! They are `k8s.io/apiserver/pkg/storage/etcd3` and `…/cacher`, compiled by the component `storage-tests` from the
//! upstream module in which one file is ours: the one that starts a datastore for a test.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::component::Component;
use crate::counts::Counts;
use crate::{dist, go_test};

/// Tells the tests what to start. It is described where it is read: `nix/components/storage-tests/test_server.go`.
const DATASTORE: &str = "STORAGE_TESTS_DATASTORE";
const BINARIES: [&str; 2] = ["etcd3.test", "cacher.test"];
const EVERY: &str = "^Test";
/// A test of the watch cache above a store that is a mock: no datastore takes part. It panics, and the other tests of
/// its binary end with it, where the cache is ready for the moment between a list that succeeds and a watch that fails
/// (v0.36.3: within 20 000 runs of it alone).
const WITHOUT_DATASTORE: &str = "TestWatchNotHangingOnStartupFailure";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to test.
    #[arg(long, value_enum, default_value_t = Datastore::K3s)]
    against: Datastore,
    /// The database behind kine, in which {name} is another name for each test:
    /// 'postgres://USER:PASSWORD@127.0.0.1:5432/{name}?sslmode=disable', 'mysql://USER:PASSWORD@tcp(127.0.0.1:3306)/{name}'.
    /// The user has to be one that creates databases; many connections come at once.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Only the tests whose names match this regular expression.
    #[arg(default_value = EVERY)]
    tests: String,
}

/// A datastore that speaks etcd's API.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Datastore {
    /// The `k3s` of target/dist, with SQLite.
    K3s,
    /// etcd itself, which does not wait for its disk.
    Etcd,
    /// The original of our table, with SQLite. As in its own tests it compacts all that it is asked to.
    Kine,
}

/// Runs both suites and fails if a test does.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = args.against.command()?;
    if let Some(endpoint) = &args.endpoint {
        ensure!(matches!(args.against, Datastore::Kine), "--endpoint is kine's: add --against kine");
        command = with_endpoint(endpoint, command);
    }
    let counts = against(&command, &args.tests)?;
    println!("{counts}");
    ensure!(counts.failed == 0, "{} of Kubernetes' storage tests failed", counts.failed);
    Ok(())
}

/// Runs every test against `datastore`.
pub(crate) fn run_all(datastore: Datastore) -> Result<Counts> {
    against(&datastore.command()?, EVERY)
}

fn against(command: &[String], tests: &str) -> Result<Counts> {
    let folder = Component::named("storage-tests")?.build()?.folder;
    let command = serde_json::to_string(command)?;
    // Side by side: each mostly waits for its own clocks.
    let runs = thread::scope(|scope| {
        let runs = BINARIES.map(|binary| scope.spawn(|| suite(&folder, binary, tests, &command)));
        runs.map(|run| run.join().expect("a suite's thread does not panic"))
    });
    let mut counts = Counts::default();
    for run in runs {
        counts += run?;
    }
    Ok(counts)
}

fn suite(folder: &Path, binary: &str, tests: &str, command: &str) -> Result<Counts> {
    let started = Instant::now();
    let counts = go_test::run_binary(&folder.join(binary), tests, WITHOUT_DATASTORE, |go| go.env(DATASTORE, command))
        .with_context(|| format!("Cannot run {binary}"))?;
    println!("{binary:<13} {counts} in {:.0} s", started.elapsed().as_secs_f32());
    Ok(counts)
}

impl Datastore {
    /// Its program and arguments.
    fn command(self) -> Result<Vec<String>> {
        let (program, arguments): (_, &[&str]) = match self {
            Self::K3s => (
                dist::folder().join("bin/k3s"),
                &["datastore", "serve", "--endpoint", "sqlite://{dir}/state.db", "--listen", "unix://{socket}"],
            ),
            Self::Etcd => (
                component("etcd")?,
                &[
                    "--data-dir={dir}/data",
                    "--unsafe-no-fsync",
                    "--listen-client-urls=unix://{socket}",
                    "--advertise-client-urls=http://127.0.0.1:0",
                    "--listen-peer-urls=http://127.0.0.1:0",
                    "--initial-advertise-peer-urls=http://127.0.0.1:0",
                    "--initial-cluster=default=http://127.0.0.1:0",
                ],
            ),
            Self::Kine => (
                component("kine")?,
                &["--listen-address=unix://{socket}", "--metrics-bind-address=0", "--compact-min-retain=0"],
            ),
        };
        ensure!(program.exists(), "There is no {}: build it with `cargo xtask dist`", program.display());
        let program = program.to_str().with_context(|| format!("{} is not UTF-8", program.display()))?;
        Ok([program].iter().chain(arguments).map(|&word| word.to_owned()).collect())
    }
}

/// kine's command for a database that is named after the test's folder.
fn with_endpoint(endpoint: &str, command: Vec<String>) -> Vec<String> {
    let endpoint = endpoint.replace("{name}", "'\"${1##*/}\"'");
    let script = format!("export KINE_ENDPOINT='{endpoint}'; shift; exec \"$@\"");
    ["sh", "-c", &script, "sh", "{dir}"].map(str::to_owned).into_iter().chain(command).collect()
}

/// The program of a component of the same name.
fn component(name: &str) -> Result<PathBuf> {
    let built = Component::named(name)?.build().with_context(|| format!("Cannot build the component {name}"))?;
    Ok(built.folder.join(name))
}
