//! `cargo xtask bench memory`: what each program of an idle node holds, and what each lever of a resource profile makes of that.
//!
//! Every lever is pulled alone, on a node of its own. Nodes that run at once share the programs' pages, so that only what no file backs
//! (anonymous memory) can be compared between them; `--at-once 1` has the whole truth (PSS).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use cluster_tests::{Network, Node};

use super::{
    api::pass,
    figures::median,
    markdown::{Table, figure},
    usage::{Processes, Usage},
};

/// A setting, alone.
struct Lever {
    name: &'static str,
    /// Variables of `k3s`, which its programs inherit.
    env: &'static str,
    flags: &'static str,
}

/// A lever without variables.
const fn flags(name: &'static str, flags: &'static str) -> Lever {
    Lever { name, env: "", flags }
}

const fn env(name: &'static str, env: &'static str) -> Lever {
    Lever { name, env, flags: STANDARD }
}

const STANDARD: &str = "--resource-profile=standard";

const LEVERS: [Lever; 14] = [
    flags("standard", STANDARD),
    flags("small", "--resource-profile=small"),
    env("GOGC=100", "GOGC=100"),
    env("GOGC=50", "GOGC=50"),
    env("GOGC=25", "GOGC=25"),
    flags("no watch cache", "--resource-profile=standard --kube-apiserver-arg=watch-cache=false"),
    flags(
        "no snapshots of lists",
        "--resource-profile=standard --kube-apiserver-arg=feature-gates=UnauthenticatedHTTP2DOSMitigation=false,\
UnknownVersionInteroperabilityProxy=false,APIServerIdentity=false,ListFromCacheSnapshot=false",
    ),
    flags(
        "fewer workers",
        "--resource-profile=standard --kube-controller-manager-arg=concurrent-gc-syncs=2 \
--kube-controller-manager-arg=concurrent-namespace-syncs=2 --kube-controller-manager-arg=concurrent-deployment-syncs=1 \
--kube-controller-manager-arg=concurrent-replicaset-syncs=1 --kube-controller-manager-arg=concurrent-endpoint-syncs=1 \
--kube-controller-manager-arg=concurrent-service-endpoint-syncs=1 --kube-controller-manager-arg=concurrent-resource-quota-syncs=1 \
--kube-controller-manager-arg=concurrent-job-syncs=1 --kube-controller-manager-arg=concurrent-statefulset-syncs=1 \
--kube-controller-manager-arg=concurrent-serviceaccount-token-syncs=1",
    ),
    flags("slow housekeeping", "--resource-profile=standard --kubelet-arg=housekeeping-interval=60s"),
    flags("slow node status", "--resource-profile=standard --kubelet-arg=node-status-update-frequency=60s"),
    flags("slow node monitor", "--resource-profile=standard --kube-controller-manager-arg=node-monitor-period=60s"),
    flags(
        "no attachment of volumes",
        "--resource-profile=standard --kube-controller-manager-arg=controllers=*,tokencleaner,-service,-route,-cloud-node-lifecycle,\
-persistentvolume-attach-detach-controller",
    ),
    flags(
        "slow proxy",
        "--resource-profile=standard --kube-proxy-arg=nftables-sync-period=5m --kube-proxy-arg=config-sync-period=2h",
    ),
    flags("no fairness", "--resource-profile=standard --kube-apiserver-arg=enable-priority-and-fairness=false"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The levers to pull, by their names; all if none is given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How many nodes run at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// How many pods there are beside CoreDNS.
    #[arg(long, default_value_t = 0)]
    pods: u32,
    /// Seconds that a node is left alone before it counts as idle.
    #[arg(long, default_value_t = 60)]
    settle: u64,
    /// How often memory is looked at, each half a minute; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// Between two looks.
const WINDOW: Duration = Duration::from_secs(30);

/// What a node's programs held and did, each sum's samples.
type Samples = BTreeMap<String, Vec<Usage>>;

pub(crate) fn run(args: &Args) -> Result<()> {
    for name in &args.only {
        let names = LEVERS.map(|lever| lever.name).join(", ");
        ensure!(LEVERS.iter().any(|lever| lever.name == name), "No lever is called {name}: there are {names}");
    }
    super::build(args.no_build)?;
    let is_wanted = |lever: &&Lever| args.only.is_empty() || args.only.iter().any(|name| name == lever.name);
    let levers: Vec<_> = LEVERS.iter().filter(is_wanted).collect();
    let mut results = Vec::new();
    for together in levers.chunks(usize::try_from(args.at_once)?) {
        results.extend(measure(together, args)?);
    }
    for (title, of) in [
        ("PSS, MiB", (|usage| usage.memory) as fn(&Usage) -> f64),
        ("anonymous, MiB", |usage| usage.anonymous),
        ("processor time a minute, ms", |usage| usage.cpu),
        ("written a minute, kB", |usage| usage.written),
        ("wake-ups a minute", |usage| usage.wakeups),
    ] {
        let mut table = Table::new(title, levers.iter().map(|lever| lever.name.to_owned()));
        let Some(first) = results.first() else { continue };
        for row in first.keys() {
            let median = |samples: &Samples| median(samples.get(row)?.iter().map(of));
            table.row(row, results.iter().map(|samples| median(samples).map_or_else(|| "–".to_owned(), figure)));
        }
        println!("{table}");
    }
    Ok(())
}

/// What nodes with these levers take, all at once.
fn measure(levers: &[&Lever], args: &Args) -> Result<Vec<Samples>> {
    let nodes: Vec<_> = levers
        .iter()
        .map(|Lever { name, env, flags }| {
            eprintln!("{name}:");
            let node = Node::boot(&Network::new(), "server");
            node.start_k3s_with(env, flags);
            node
        })
        .collect();
    for node in &nodes {
        node.wait_until_ready();
        node.wait_for_deployment("kube-system", "coredns");
        if args.pods > 0 {
            let (image, pods) = (k3s_images::PAUSE, args.pods);
            node.kubectl(&format!("create deployment idle --image={image} --replicas={pods}"));
            node.wait_for_deployment("default", "idle");
        }
    }
    pass(Duration::from_secs(args.settle));
    let mut samples = vec![Samples::new(); nodes.len()];
    let processes = || nodes.iter().map(|node| Processes::below(&node.path("/proc"))).collect::<Result<Vec<_>>>();
    let mut before = processes()?;
    for _ in 0..args.samples {
        pass(WINDOW);
        let after = processes()?;
        for ((samples, before), after) in samples.iter_mut().zip(&before).zip(&after) {
            for (name, usage) in after.since(before) {
                samples.entry(name.to_owned()).or_default().push(usage.scaled(60.0 / WINDOW.as_secs_f64()));
            }
        }
        before = after;
    }
    Ok(samples)
}
