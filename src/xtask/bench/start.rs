//! `cargo xtask bench start`: a single node from nothing to a running pod, then idle, then from its data again.
//!
//! Both sides take turns in one run, each time on a fresh node of the test harness. The script has its certificates and its images
//! ready; `k3s` makes and imports its own, and runs CoreDNS besides.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use cluster_tests::{Job, Node};
use serde_json::{Value, json};

use super::api::{Api, pass};
use super::contender::{Contender, Script, stop};
use super::figures::{Figures, Quantity};
use super::store::Store;
use super::usage::{Processes, Usage};
use crate::process::stdout;

/// How long a node is left alone before it counts as idle.
const SETTLE: Duration = Duration::from_secs(20);
/// How long an idle node is watched.
const WINDOW: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each side is measured; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Leave the idle node out.
    #[arg(long)]
    starts_only: bool,
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
    super::build(args.no_build)?;
    let watched = if args.starts_only { Watched::StartsAlone } else { Watched::Idle };
    print!("{}", measure(args.rounds, &args.k3s_flags, &args.script_env, watched)?);
    Ok(())
}

/// What is measured of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    StartsAlone,
    /// The node between its starts, too.
    Idle,
}

/// Both sides in turns, `rounds` times: `k3s server` with these flags, the script with these variables.
pub(super) fn measure(rounds: u32, flags: &str, script_env: &[String], watched: Watched) -> Result<Figures> {
    let script = Script::prepare(script_env.to_vec())?;
    let contenders = [Contender::K3s { flags: flags.to_owned() }, Contender::Script(&script, Store::Etcd)];
    let mut figures = Figures::default();
    for round in 1..=rounds {
        for contender in &contenders {
            eprintln!("Round {round} of {rounds}, {:?}:", contender.side());
            Trial::run(contender, watched, &mut figures)?;
        }
    }
    Ok(figures)
}

/// What of a usage a quantity is.
type Part = fn(&Usage) -> f64;

/// One round of one side.
struct Trial<'a> {
    contender: &'a Contender<'a>,
    node: Node,
    figures: &'a mut Figures,
}

impl<'a> Trial<'a> {
    fn run(contender: &'a Contender<'a>, watched: Watched, figures: &'a mut Figures) -> Result<()> {
        let node = contender.boot()?;
        let mut trial = Self { contender, node, figures };
        let job = trial.start("first", Quantity::EmptyStart, Quantity::EmptyStartCpu)?;
        if watched == Watched::Idle {
            trial.idle()?;
        }
        stop(&trial.node, &job);
        let job = trial.start("second", Quantity::Restart, Quantity::RestartCpu)?;
        stop(&trial.node, &job);
        Ok(())
    }

    /// Starts the side and takes the seconds until its API is ready, its node is, and the `pod` runs that it makes, and what that took.
    fn start(&mut self, pod: &str, seconds: Quantity, cpu: Quantity) -> Result<Job> {
        let api = Api::of(&self.node, self.contender.port());
        let before = self.processes()?;
        let date = String::from_utf8(stdout(Command::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]))?)?;
        let started = Instant::now();
        let job = self.contender.start(&self.node);
        let moments = follow(&api, date.trim(), pod).inspect_err(|_| {
            eprintln!("{}", self.node.succeed(&format!("tail -n 40 {}", job.output.display())));
        })?;
        let after = self.processes()?;
        for (name, moment) in moments {
            let figure = (moment - started).as_secs_f64();
            eprintln!("  {pod} start: {name} after {figure:.2} s");
            self.figures.add(self.contender.side(), seconds, name, figure);
        }
        self.add(&before, &after, &[(cpu, |usage| usage.cpu)]);
        Ok(job)
    }

    /// Takes what each program holds, and what it does in a window of time.
    fn idle(&mut self) -> Result<()> {
        pass(SETTLE);
        let before = self.processes()?;
        pass(WINDOW);
        let after = self.processes()?;
        self.add(
            &before,
            &after,
            &[
                (Quantity::Memory, |usage| usage.memory),
                (Quantity::Anonymous, |usage| usage.anonymous),
                (Quantity::Cpu, |usage| usage.cpu),
                (Quantity::Written, |usage| usage.written),
            ],
        );
        Ok(())
    }

    fn processes(&self) -> Result<Processes> {
        Processes::below(&self.node.path("/proc"))
    }

    fn add(&mut self, before: &Processes, after: &Processes, quantities: &[(Quantity, Part)]) {
        for (row, usage) in after.since(before) {
            for (quantity, of) in quantities {
                self.figures.add(self.contender.side(), *quantity, row, of(&usage));
            }
        }
    }
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
        "spec": {"containers": [{"name": "pause", "image": k3s_images::PAUSE}]},
    });
    let pods = "/api/v1/namespaces/default/pods";
    // Refused until the namespace has its service account.
    api.poll(pods, 201, &["--header", "Content-Type: application/json", "--data", &pod.to_string()])?;
    api.watch(pods, |pod| pod["metadata"]["name"] == name && pod["status"]["phase"] == "Running")
}

#[cfg(test)]
mod tests {
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
}
