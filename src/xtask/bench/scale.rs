//! `cargo xtask bench scale`: what nodes and pods cost a server, without any that run: `fake-nodes` is their kubelets and kube-proxies.
//!
//! The server is a control plane alone. What it takes of each stage is what its programs do in a minute of it, per node where it says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use cluster_tests::{Network, Node};

use super::{
    api::pass,
    load::{self, Load, Program},
    markdown::{Table, figure},
    usage::{Processes, Usage},
};

/// A /24 for each of 8192 nodes; the default has room for 256.
const FLAGS: &str = "--disable-agent --disable=coredns --cluster-cidr=10.64.0.0/11";
/// How long a stage is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(20);
const PROGRAMS: [&str; 4] = ["k3s", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes have pods.
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// How many pods a node has.
    #[arg(long, default_value_t = 30)]
    pods: u32,
    /// How many nodes there are at last, without pods; several numbers are as many stages.
    #[arg(long, default_value = "1000", value_delimiter = ',')]
    heartbeats: Vec<u32>,
    /// Seconds for which each stage is watched.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// What a stage took.
struct Stage {
    title: String,
    nodes: u32,
    /// By program, in a minute.
    usages: BTreeMap<String, Usage>,
    /// Milliseconds of processor time a minute by thread of our process.
    threads: BTreeMap<String, f64>,
    /// Of heartbeats.
    p99_ms: f64,
    a_second: f64,
    refused: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    load::build()?;
    let server = Node::boot(&Network::new(), "server");
    server.start_k3s(FLAGS);
    server.wait_for_status("All components are ready.");
    let authority = ["crt", "key"].map(|kind| server.path(format!("/var/lib/rancher/k3s/server/tls/client-ca.{kind}")));
    let [certificate, key] = authority.each_ref().map(|path| path.to_string_lossy());
    let signer = ["--client-ca", &certificate, "--client-ca-key", &key];
    let mut nodes =
        Load::of_api(Program::Nodes, &server.wire(), &server, (Ipv4Addr::LOCALHOST, 6443), "admin", &signer)?;
    nodes.wait_until_answered()?;
    let mut bench = Bench { server, nodes, window: args.window, stages: Vec::new(), steps: steps() };
    let measured = bench.measure(args);
    println!("{}", bench.steps);
    bench.tell();
    measured
}

struct Bench {
    server: Node,
    nodes: Load,
    window: u32,
    stages: Vec<Stage>,
    steps: Table,
}

fn steps() -> Table {
    let columns = ["seconds", "k3s, ms of CPU each", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
    Table::new("from a stage to the next", columns.map(str::to_owned))
}

impl Bench {
    fn measure(&mut self, args: &Args) -> Result<()> {
        let Args { nodes, pods, .. } = *args;
        self.stage("no nodes", 0)?;
        self.step(&format!("{nodes} nodes register"), nodes, &format!("nodes {nodes}"))?;
        self.stage(&format!("{nodes} nodes"), nodes)?;
        let all = nodes * pods;
        self.step(&format!("{all} pods start"), all, &format!("pods {all}"))?;
        self.stage(&format!("{nodes} nodes, {all} pods"), nodes)?;
        self.step(&format!("{all} pods go"), all, "clear")?;
        let mut before = nodes;
        for &nodes in &args.heartbeats {
            let more = nodes.saturating_sub(before);
            self.step(&format!("{more} more nodes register"), more, &format!("nodes {nodes}"))?;
            self.stage(&format!("{nodes} nodes"), nodes)?;
            before = nodes;
        }
        Ok(())
    }

    /// Has the nodes do something once, and takes what it costs `each` of so many.
    fn step(&mut self, title: &str, each: u32, phase: &str) -> Result<()> {
        let (before, began) = (self.processes()?, Instant::now());
        let outcome = self.nodes.run(phase)?;
        let seconds = began.elapsed().as_secs_f64();
        let after = self.processes()?;
        let usages = after.since(&before);
        let cpu = |program| usages.get(program).map_or(f64::NAN, |usage| usage.cpu / f64::from(each));
        eprintln!("{title}: {seconds:.1} s, {:.0} refused for now", outcome.refused);
        self.steps.row(title, [seconds].into_iter().chain(PROGRAMS.map(cpu)).map(figure));
        Ok(())
    }

    fn stage(&mut self, title: &str, nodes: u32) -> Result<()> {
        pass(SETTLE);
        let (before, threads) = (self.processes()?, self.threads()?);
        let outcome = self.nodes.run(&format!("rest {}", self.window))?;
        let a_minute = 60.0 / f64::from(self.window);
        let after = self.processes()?;
        let usages = after.since(&before).into_iter();
        let usages = usages.map(|(name, usage)| (name.to_owned(), usage.scaled(a_minute))).collect();
        let now = self.threads()?;
        let spent = |(name, cpu): (String, f64)| {
            let before = threads.get(&name).copied().unwrap_or_default();
            (name, (cpu - before) * a_minute)
        };
        let (p99_ms, a_second) = (outcome.p99_ms, outcome.operations / outcome.seconds);
        eprintln!("{title}: {a_second:.1} heartbeats a second, p99 {p99_ms:.1} ms");
        let threads = now.into_iter().map(spent).collect();
        self.stages.push(Stage {
            title: title.to_owned(),
            nodes,
            usages,
            threads,
            p99_ms,
            a_second,
            refused: outcome.refused,
        });
        Ok(())
    }

    fn processes(&self) -> Result<Processes> {
        Processes::below(&self.server.path("/proc"))
    }

    /// Milliseconds of processor time by the name of our process' threads.
    fn threads(&self) -> Result<BTreeMap<String, f64>> {
        let pid = self.server.succeed("pgrep -x k3s");
        let tasks = self.server.path(format!("/proc/{}/task", pid.trim()));
        let mut sums = BTreeMap::new();
        for task in fs::read_dir(&tasks).with_context(|| format!("Cannot list {}", tasks.display()))?.flatten() {
            // A thread may end meanwhile.
            let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
            let Some((head, fields)) = stat.rsplit_once(") ") else { continue };
            let name = head.split_once('(').map_or(head, |(_, name)| name);
            let ticks: f64 = fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
            *sums.entry(name.to_owned()).or_default() += ticks * 10.0;
        }
        Ok(sums)
    }

    fn tell(&self) {
        let columns = || self.stages.iter().map(|stage| stage.title.clone());
        let mut table = Table::new("heartbeats", columns());
        table.row("a second", self.stages.iter().map(|stage| figure(stage.a_second)));
        table.row("99th percentile, ms", self.stages.iter().map(|stage| figure(stage.p99_ms)));
        table.row("refused for now", self.stages.iter().map(|stage| figure(stage.refused)));
        println!("{table}");
        for (title, of) in [
            ("processor time, ms a minute", (|usage| usage.cpu) as fn(&Usage) -> f64),
            ("memory (PSS), MiB", |usage| usage.memory),
            ("written, kB a minute", |usage| usage.written),
            ("wake-ups a minute", |usage| usage.wakeups),
        ] {
            let mut table = Table::new(title, columns());
            for program in PROGRAMS {
                let of = |stage: &Stage| stage.usages.get(program).map_or(f64::NAN, of);
                table.row(program, self.stages.iter().map(|stage| figure(of(stage))));
                let Some(none) = self.stages.first().map(of) else { continue };
                let each = |stage: &Stage| (of(stage) - none) / f64::from(stage.nodes);
                table.row(&format!("{program}, more per node"), self.stages.iter().map(|stage| figure(each(stage))));
            }
            println!("{table}");
        }
        let mut table = Table::new("processor time of k3s by thread, ms a minute", columns());
        let names: BTreeSet<_> = self.stages.iter().flat_map(|stage| stage.threads.keys()).collect();
        for name in names {
            let of = |stage: &Stage| stage.threads.get(name).copied().unwrap_or(f64::NAN);
            table.row(name, self.stages.iter().map(|stage| figure(of(stage))));
        }
        println!("{table}");
    }
}
