//! `cargo xtask bench start`: a single node from nothing to a running pod, then idle, then from its data again.
//!
//! Both sides take turns in one run, each time on a fresh node of the test harness. The script has its certificates and its images
//! ready; `k3s` makes and imports its own, and runs CoreDNS besides.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster_tests::{Job, Node};
use serde_json::{Value, json};

use super::api::{Api, pass};
use super::contender::{Contender, Script, stop};
use super::figures::{Figures, Quantity, Side};
use super::usage::{Processes, processes};
use crate::process::{stdout, succeed};
use crate::{dist, workspace};

/// How long a node is left alone before it counts as idle.
const SETTLE: Duration = Duration::from_secs(20);
/// How long an idle node is watched.
const WINDOW: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each side is measured; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
    /// More flags for `k3s server`, in one word.
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    k3s_flags: String,
    /// A variable for the script's components, e.g. GOGC=50.
    #[arg(long, value_name = "NAME=VALUE")]
    script_env: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        dist::run(&dist::Args {})?;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    succeed(cargo.current_dir(workspace::root()).args(["build", "--quiet", "--package", "cluster-tests", "--bins"]))?;
    let contenders = [
        Contender::K3s { flags: args.k3s_flags.clone() },
        Contender::Script(Script::prepare(args.script_env.clone())?),
    ];
    let mut figures = Figures::default();
    for round in 1..=args.rounds {
        for contender in &contenders {
            eprintln!("Round {round} of {}, {:?}:", args.rounds, contender.side());
            measure(contender, &mut figures)?;
        }
    }
    print!("{figures}");
    Ok(())
}

fn measure(contender: &Contender, figures: &mut Figures) -> Result<()> {
    let side = contender.side();
    let node = contender.boot()?;
    let job = time_start(contender, &node, Quantity::EmptyStart, figures)?;
    pass(SETTLE);
    idle(side, &node.path("/proc"), figures)?;
    stop(&node, &job);
    let job = time_start(contender, &node, Quantity::Restart, figures)?;
    stop(&node, &job);
    Ok(())
}

/// Starts the side and takes the seconds until its API is ready, its node is, and a pod runs that was made after the start.
fn time_start(contender: &Contender, node: &Node, quantity: Quantity, figures: &mut Figures) -> Result<Job> {
    let api = Api::of(node, contender.port());
    let date = String::from_utf8(stdout(Command::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]))?)?;
    let started = Instant::now();
    let job = contender.start(node);
    let moments = follow(&api, date.trim(), &format!("{quantity:?}").to_lowercase())
        .inspect_err(|_| eprintln!("{}", node.succeed(&format!("tail -n 40 {}", job.output.display()))))?;
    for (name, moment) in moments {
        let seconds = (moment - started).as_secs_f64();
        eprintln!("  {quantity:?}: {name} after {seconds:.2} s");
        figures.add(contender.side(), quantity, name, seconds);
    }
    Ok(job)
}

/// When each thing was there that users wait for. Heartbeats of `date` or before are of an earlier start.
fn follow(api: &Api<'_>, date: &str, pod_name: &str) -> Result<[(&'static str, Instant); 3]> {
    api.wait_until_reachable()?;
    let readyz = api.poll("/readyz", 200, &[])?;
    let (node_ready, pod_running) = thread::scope(|scope| {
        let node_ready = scope.spawn(|| api.watch("/api/v1/nodes", |node| is_ready_since(node, date)));
        let pod_running = pod(api, pod_name);
        (node_ready.join(), pod_running)
    });
    let node_ready = node_ready.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok([("/readyz answers 200", readyz), ("node Ready", node_ready), ("pod Running", pod_running?)])
}

/// Whether the node says that it is Ready with a heartbeat of a later second than `date`.
fn is_ready_since(node: &Value, date: &str) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| {
        condition["type"] == "Ready"
            && condition["status"] == "True"
            && condition["lastHeartbeatTime"].as_str().is_some_and(|heartbeat| heartbeat > date)
    })
}

/// Makes a pod as soon as the API lets it, and waits until it runs.
fn pod(api: &Api<'_>, name: &str) -> Result<Instant> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "pause", "image": "docker.io/k3s-rs/pause:0.1.0"}]},
    });
    let pods = "/api/v1/namespaces/default/pods";
    // Refused until the namespace has its service account.
    api.poll(pods, 201, &["--header", "Content-Type: application/json", "--data", &pod.to_string()])?;
    api.watch(pods, |pod| pod["metadata"]["name"] == name && pod["status"]["phase"] == "Running")
}

/// Takes what each program holds, and what it does in a window of time.
fn idle(side: Side, proc: &Path, figures: &mut Figures) -> Result<()> {
    let before = processes(proc)?;
    pass(WINDOW);
    let after = processes(proc)?;
    let ended: Vec<_> = before.iter().filter(|(pid, _)| !after.contains_key(pid)).map(|(_, one)| &one.name).collect();
    ensure!(ended.is_empty(), "An idle node has lost processes: {ended:?}");
    for (quantity, name, figure) in tell(&before, &after) {
        figures.add(side, quantity, &name, figure);
    }
    Ok(())
}

fn tell(before: &Processes, after: &Processes) -> Vec<(Quantity, String, f64)> {
    let mut sums = std::collections::BTreeMap::new();
    for (pid, now) in after {
        let then = before.get(pid).cloned().unwrap_or_default();
        let pod = ["pods", "containerd-shim-runc-v2"].contains(&now.name.as_str());
        let rows = [Some(now.name.as_str()), (!pod).then_some("= without pods and shims"), Some("= everything")];
        for row in rows.into_iter().flatten() {
            for (quantity, figure) in [
                (Quantity::Memory, now.memory),
                (Quantity::Anonymous, now.anonymous),
                (Quantity::Cpu, now.cpu - then.cpu),
                (Quantity::Written, now.written - then.written),
            ] {
                *sums.entry((quantity, row.to_owned())).or_default() += figure;
            }
        }
    }
    sums.into_iter().map(|((quantity, row), figure)| (quantity, row, figure)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::usage::Process;
    use super::*;

    #[test]
    fn a_heartbeat_from_before_the_start_does_not_count() {
        let node = |status: &str| {
            json!({"status": {"conditions": [
                {"type": "DiskPressure", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:09Z"},
                {"type": "Ready", "status": status, "lastHeartbeatTime": "2026-01-01T00:00:05Z"},
            ]}})
        };
        assert!(is_ready_since(&node("True"), "2026-01-01T00:00:04Z"));
        assert!(!is_ready_since(&node("True"), "2026-01-01T00:00:05Z"));
        assert!(!is_ready_since(&node("False"), "2026-01-01T00:00:04Z"));
        assert!(!is_ready_since(&json!({}), "2026-01-01T00:00:04Z"));
    }

    #[test]
    fn programs_are_summed_up_and_pods_are_told_apart() {
        let one = |name: &str, cpu| Process { name: name.into(), memory: 2.0, cpu, ..Process::default() };
        let before = Processes::from([(2, one("k3s", 5.0)), (3, one("pods", 1.0))]);
        let after = Processes::from([(2, one("k3s", 9.0)), (3, one("pods", 2.0)), (4, one("pods", 3.0))]);
        let told = tell(&before, &after);
        let figure = |quantity, name: &str| {
            told.iter().find(|(of, row, _)| (*of, row.as_str()) == (quantity, name)).map(|(_, _, figure)| *figure)
        };
        assert_eq!(figure(Quantity::Memory, "pods"), Some(4.0));
        assert_eq!(figure(Quantity::Memory, "= without pods and shims"), Some(2.0));
        assert_eq!(figure(Quantity::Cpu, "k3s"), Some(4.0));
        assert_eq!(figure(Quantity::Cpu, "= everything"), Some(8.0));
    }
}
