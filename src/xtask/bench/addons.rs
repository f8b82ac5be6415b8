//! `cargo xtask bench addons`: what manifests cost the process of the server, while they are applied and when nothing happens; and what a
//! namespace costs that goes with all that is in it.

use std::time::{Duration, Instant};

use anyhow::Result;
use cluster_tests::{Network, Node, PATIENCE};

use super::api::pass;
use super::markdown::{Table, figure};
use super::usage::Processes;

const MANIFESTS: &str = "/var/lib/rancher/k3s/server/manifests";
/// How long the server is left alone before it counts as idle.
const SETTLE: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many manifests there are, each of one object.
    #[arg(long, default_value_t = 500)]
    manifests: u32,
    /// How many objects the namespace has.
    #[arg(long, default_value_t = 1000)]
    objects: u32,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    let Args { manifests, objects, .. } = args;
    let server = Node::boot(&Network::new(), "server");
    server.start_k3s("--disable-agent --disable=coredns");
    server.wait_until_succeeds("k3s kubectl get addons -n kube-system", PATIENCE);
    let columns = ["seconds", "processor time, ms", "wake-ups", "memory (PSS), MiB"];
    let mut table = Table::new("the process `k3s`", columns.map(str::to_owned));
    let mut measure = |title: &str, work: &dyn Fn()| -> Result<()> {
        let (before, begun) = (Processes::below(&server.path("/proc"))?, Instant::now());
        work();
        let seconds = begun.elapsed().as_secs_f64();
        let usage = Processes::below(&server.path("/proc"))?.of("k3s", &before)?;
        table.row(title, [seconds, usage.cpu, usage.wakeups, usage.memory].map(figure));
        Ok(())
    };
    pass(SETTLE);
    measure("idle, with the packaged manifests", &|| pass(MINUTE))?;
    let write = format!(
        "cd {MANIFESTS} && for i in $(seq {manifests}); do printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata: {{name: c%s}}\\ndata: {{a: b}}\\n' $i > m$i.yaml; done"
    );
    let applied = format!("test $(k3s kubectl get configmaps -o name | grep -c /c) = {manifests}");
    measure(&format!("{manifests} manifests are written and applied"), &|| {
        server.succeed(&write);
        server.wait_until_succeeds(&applied, PATIENCE);
    })?;
    let change = write.replace("a: b", "a: c");
    measure("all of them are changed, and one comes behind them: until that is there", &|| {
        server.succeed(&change);
        // The last by its name, once they are on their way.
        pass(Duration::from_secs(1));
        server.succeed(&format!("sed s/c1}}/late}}/ {MANIFESTS}/m1.yaml > {MANIFESTS}/zz.yaml"));
        server.wait_until_succeeds("k3s kubectl get configmap late", PATIENCE);
    })?;
    measure("until the rest is", &|| {
        let changed = "k3s kubectl get configmaps -o jsonpath='{.items[*].data.a}' | tr ' ' '\\n'";
        server.wait_until_succeeds(&format!("test $({changed} | grep -c '^c$') -gt {manifests}"), PATIENCE);
    })?;
    pass(SETTLE);
    measure("idle, with these", &|| pass(MINUTE))?;
    let list = format!(
        "k3s kubectl create namespace many && for i in $(seq {objects}); do printf -- '---\\napiVersion: v1\\nkind: ConfigMap\\nmetadata: {{name: o%s}}\\n' $i; done > /tmp/many.yaml"
    );
    server.succeed(&list);
    measure(&format!("{objects} objects are created by kubectl"), &|| {
        server.succeed("k3s kubectl create -n many -f /tmp/many.yaml > /dev/null");
    })?;
    measure("their namespace is deleted", &|| {
        server.succeed("k3s kubectl delete namespace many");
    })?;
    pass(SETTLE);
    measure("idle, after it", &|| pass(MINUTE))?;
    println!("{table}");
    Ok(())
}
