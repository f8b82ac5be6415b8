//! `cargo xtask up`: a single-node cluster on this machine, built from this tree, with a demo pod.
//!
//! ```text
//! look (is the machine free?) ─► build ─► remember the machine ─► start k3s ─► all ready ─► node Ready ─► demo answers
//! ```
//!
//! Each step that was done already is only looked at, so `up` may be called again: after a Ctrl-C, or after `k3s` was killed.

mod server;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use serde::Deserialize;

use crate::{
    dist, down, images,
    process::stdout,
    system_packages,
    traces::{self, Before},
    workspace,
};

pub(crate) use server::Server;

/// What the node and its components listen on.
const PORTS: [u16; 9] = [6443, 6444, 10010, 10248, 10249, 10250, 10256, 10257, 10259];
/// How long the components may take to be ready; some seconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// How much of the log is shown when they are not.
const TAIL: usize = 40;

/// What is deployed to show that pods run.
const DEMO: &str = include_str!("up/demo.yaml");

#[derive(clap::Args)]
pub(crate) struct Args {}

/// Where `up` keeps the cluster, and what `down` needs to know.
pub(crate) struct Home(PathBuf);

impl Home {
    pub(crate) fn new() -> Self {
        Self(workspace::target().join("up"))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// What `up` found on the machine; there from before the first start until everything is taken away.
    pub(crate) fn before(&self) -> PathBuf {
        self.0.join("before.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("k3s.log")
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig.yaml")
    }

    fn pid(&self) -> PathBuf {
        self.0.join("k3s.pid")
    }
}

/// Brings the cluster up, as far as it is not; a first start that fails is taken back.
pub(crate) fn run(_: &Args) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "A node runs as root: use `sudo --preserve-env=HOME,PATH cargo xtask up`, or become root first"
    );
    let clock = Clock(Instant::now());
    let home = Home::new();
    if let Some(server) = Server::running(&home)? {
        clock.say(&format!("It is up already: k3s has pid {}.", server.pid()));
        return bring_to_work(&home, server, &clock).inspect_err(|_| tell_the_end_of(&home.log()));
    }
    let before = match Before::load(&home.before())? {
        Some(before) => before,
        None => free_machine(&home)?,
    };
    system_packages::ensure()?;
    clock.say("The system packages are there.");
    dist::run(&dist::Args::default())?;
    clock.say("Everything is built.");

    let is_first = !home.before().exists();
    fs::create_dir_all(home.folder()).with_context(|| format!("Cannot create {}", home.folder().display()))?;
    before.save(&home.before())?;
    let started = start(&home, &clock).and_then(|server| bring_to_work(&home, server, &clock));
    let Err(error) = started else { return Ok(()) };
    tell_the_end_of(&home.log());
    if is_first {
        down::stop_and_remove(&home, &before)?;
        bail!("{error:#}. What was started is taken away again; the whole log is in {}", home.log().display());
    }
    bail!("{error:#}. `cargo xtask down` takes away what is there; the whole log is in {}", home.log().display())
}

/// The machine as it is, if no node is or was on it.
fn free_machine(home: &Home) -> Result<Before> {
    let before = Before::now(home.folder())?;
    if let Some(trace) = traces::find(&before)?.first() {
        bail!(
            "This machine has, or had, a k3s or kubelet that `cargo xtask up` did not start: there is {trace}. \
             Take that away first, or use another machine"
        );
    }
    for port in PORTS {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| {
            format!("The node needs port {port}: stop what listens there (`ss -ltnp sport = :{port}` names it)")
        })?;
    }
    Ok(before)
}

fn start(home: &Home, clock: &Clock) -> Result<Server> {
    let archives = home.data().join("agent/images");
    fs::create_dir_all(&archives).with_context(|| format!("Cannot create {}", archives.display()))?;
    fs::copy(images::test_folder().join("demo.tar"), archives.join("demo.tar"))
        .context("Cannot copy the demo image")?;
    let server = Server::start(home)?;
    clock.say(&format!("k3s is started; its log is {}.", home.log().display()));
    Ok(server)
}

/// Waits until the cluster is of use, and tells how to use it.
fn bring_to_work(home: &Home, mut server: Server, clock: &Clock) -> Result<()> {
    wait_for_components(&mut server, clock)?;
    let kubectl = |arguments: &[&str]| {
        let mut command = Command::new(dist::folder().join("bin/kubectl"));
        command.arg("--kubeconfig").arg(home.kubeconfig()).args(arguments);
        command
    };
    stdout(&mut kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"]))?;
    clock.say("The node is Ready.");

    let manifest = home.folder().join("demo.yaml");
    fs::write(&manifest, DEMO).with_context(|| format!("Cannot write {}", manifest.display()))?;
    stdout(kubectl(&["apply", "--filename"]).arg(&manifest))?;
    stdout(&mut kubectl(&["rollout", "status", "deployment/demo", "--timeout=180s"]))?;
    clock.say("The demo pod runs.");
    let ip = stdout(&mut kubectl(&["get", "service", "demo", "--output=jsonpath={.spec.clusterIP}"]))?;
    let url = format!("http://{}/", String::from_utf8_lossy(&ip));
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--noproxy", "*", "--connect-timeout", "2", "--max-time", "10"]);
    // The Service's rules come a moment after its pod.
    curl.args(["--retry", "30", "--retry-delay", "1", "--retry-all-errors", &url]);
    let page = stdout(&mut curl).context("The demo pod runs, but its Service does not answer")?;
    clock.say(&format!("The demo's Service answers at {url}: {}", String::from_utf8_lossy(&page).trim()));

    println!(
        "Ready after {:.0} s. Use it:\n  export KUBECONFIG={} PATH={}:$PATH\n  kubectl get pods -A\nTake it down: cargo xtask down",
        clock.0.elapsed().as_secs_f32(),
        home.kubeconfig().display(),
        dist::folder().join("bin").display()
    );
    Ok(())
}

/// What of `k3s status` is of use here.
#[derive(Deserialize)]
struct Status {
    health: String,
    headline: String,
}

/// Shows what is waited for, as it changes.
fn wait_for_components(server: &mut Server, clock: &Clock) -> Result<()> {
    let began = Instant::now();
    let mut shown = String::new();
    loop {
        server.ensure_running()?;
        if let Some(Status { health, headline }) = status() {
            let headline = without_details(&headline);
            if headline != shown {
                clock.say(&headline);
                shown = headline;
            }
            if health == "ready" {
                return Ok(());
            }
        }
        ensure!(began.elapsed() < PATIENCE, "The components are not ready after {} s", PATIENCE.as_secs());
        traces::pause();
    }
}

/// Without what is in parentheses: a probe's last answer changes with every look.
fn without_details(headline: &str) -> String {
    let mut depth = 0_u32;
    let outside = headline.chars().filter(|character| match character {
        '(' => {
            depth += 1;
            false
        }
        ')' => {
            depth = depth.saturating_sub(1);
            false
        }
        _ => depth == 0,
    });
    outside.collect::<String>().replace(" ,", ",").replace(" .", ".")
}

/// `None` as long as `k3s` does not answer.
fn status() -> Option<Status> {
    let output = Command::new(dist::folder().join("bin/k3s")).args(["status", "--output", "json"]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

fn tell_the_end_of(log: &Path) {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    eprintln!("The end of {}:", log.display());
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        eprintln!("  {line}");
    }
}

/// Puts the time before what is told.
struct Clock(Instant);

impl Clock {
    fn say(&self, sentence: &str) {
        println!("{:>4.0} s  {sentence}", self.0.elapsed().as_secs_f32());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_told_by_its_names() {
        let headline =
            "Starting: waiting for images (containerd), kube-apiserver (GET /readyz: refused (os error 111)).";
        assert_eq!(without_details(headline), "Starting: waiting for images, kube-apiserver.");
        assert_eq!(without_details("All components are ready."), "All components are ready.");
    }
}
