//! `cargo xtask e2e`: Kubernetes' own end-to-end tests, of the version that we ship, on a cluster of `target/dist`.
//!
//! ```text
//! tests/e2e (a pinned Go module) ─► e2e.test, agnhost ─► agnhost's image ─► a server and an agent ─► the tests, on the server
//! ```
//!
//! Not a part of `cargo xtask test`: the tests take minutes to build and hours to run.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Network, Node, PATIENCE};
use k3s_oci::{Config, Image, Node as Entry};

use crate::{
    component::Component,
    counts::Counts,
    dist, image,
    process::{cargo, succeed},
    workspace,
};

/// Where its image is looked for, instead of at the project's registry.
const REGISTRY: &str = "docker.io/k3s-rs";
/// What the tests of this version want.
const AGNHOST: &str = "agnhost:2.63.0";
/// Files on the server.
const BINARY: &str = "/var/lib/e2e/e2e.test";
const REGISTRIES: &str = "/var/lib/e2e/registries.yaml";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the tests whose names match this regular expression, such as `Feature:NetworkPolicy`.
    #[arg(long)]
    focus: String,
    /// And of these not the ones whose names match this.
    #[arg(long, default_value = "")]
    skip: String,
    /// More flags for `k3s server`, in one word.
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    server_flags: String,
    /// Test target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// Runs the tests and fails if one does.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        dist::run(&dist::Args::default())?;
    }
    let built = Component::load(&workspace::root().join("tests"), "e2e")?.build()?;
    succeed(cargo().args(["build", "--quiet", "--package", "cluster-tests", "--bins"]))?;
    let folder = workspace::target().join("e2e");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let agnhost = folder.join("agnhost.tar");
    pack(&built.folder.join("agnhost"), &agnhost)?;

    let network = Network::new();
    let [server, agent] = ["server", "agent"].map(|name| Node::boot(&network, name));
    for node in [&server, &agent] {
        node.succeed("mkdir -p /var/lib/rancher/k3s/agent/images /var/lib/e2e");
        copy(&agnhost, &node.path("/var/lib/rancher/k3s/agent/images/agnhost.tar"))?;
    }
    server.start_k3s(&args.server_flags);
    agent.start_k3s_agent(&server, "");
    for node in [&server, &agent] {
        server.wait_until_node_ready(node.name());
    }
    server.wait_for_deployment("kube-system", "coredns");
    copy(&built.folder.join("e2e.test"), &server.path(BINARY))?;
    let registries = ["promoterE2eRegistry", "gcRegistry"].map(|name| format!("{name}: {REGISTRY}\n")).concat();
    server.write(REGISTRIES, &registries);

    let log = test(&server, args);
    fs::write(folder.join("log"), &log).with_context(|| format!("Cannot write {}", folder.display()))?;
    log.lines().filter(|line| is_failure(line)).for_each(|line| println!("{}", line.trim()));
    let counts =
        summary(&log).with_context(|| format!("The tests did not end: see {}", folder.join("log").display()))?;
    println!("{counts}");
    ensure!(counts.failed == 0, "{} of Kubernetes' tests failed: see {}", counts.failed, folder.join("log").display());
    ensure!(counts.passed > 0, "No test matches {:?}", args.focus);
    Ok(())
}

/// The program in an image of its own, at the place where the tests look for it.
fn pack(program: &Path, archive: &Path) -> Result<()> {
    let mut config = Config::default();
    config
        .set_entrypoint(Some(vec!["/agnhost".to_owned()]))
        .set_cmd(Some(vec!["pause".to_owned()]))
        .set_env(Some(vec!["PATH=/".to_owned()]));
    let files = BTreeMap::from([
        ("/agnhost".into(), Entry::Copy(program.to_owned(), 0o755)),
        ("/tmp".into(), Entry::Folder(0o1777)),
        ("/uploads".into(), Entry::Folder(0o777)),
    ]);
    let image = Image { name: format!("{REGISTRY}/{AGNHOST}").parse()?, platform: image::platform()?, config, files };
    let mut file =
        BufWriter::new(File::create(archive).with_context(|| format!("Cannot write {}", archive.display()))?);
    image.pack(&mut file)?;
    Ok(file.flush()?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("Cannot copy {} to {}", from.display(), to.display()))
}

/// Runs the tests on the server, and returns what they said.
fn test(server: &Node, args: &Args) -> String {
    let mut flags = format!("--ginkgo.focus={} --ginkgo.no-color --ginkgo.v", quoted(&args.focus));
    if !args.skip.is_empty() {
        flags += &format!(" --ginkgo.skip={}", quoted(&args.skip));
    }
    let job = server.background(&format!(
        "exec env KUBE_TEST_REPO_LIST={REGISTRIES} {BINARY} --kubeconfig=/etc/rancher/k3s/k3s.yaml --provider=skeleton \
         --kubectl-path=/opt/k3s/bin/kubectl --num-nodes=2 {flags}"
    ));
    let output = job.output.display().to_string();
    // One command may not take as long as all of the tests.
    let ended = format!("timeout 100 tail --pid={} -f /dev/null", job.pid);
    while server.execute(&ended).code != 0 {
        let done = server.execute(&format!("grep -c '^• ' {output}"));
        println!("{} tests are over.", done.stdout.trim());
    }
    server.wait_until_succeeds(&format!("cat {output}"), PATIENCE)
}

/// One word of a shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn is_failure(line: &str) -> bool {
    line.trim_start().starts_with("[FAIL]")
}

/// What Ginkgo's last lines count.
fn summary(log: &str) -> Option<Counts> {
    let line = log.lines().rev().find(|line| line.contains(" Passed | "))?;
    let (_, numbers) = line.split_once("-- ").unwrap_or(("", line));
    let of = |kind: &str| {
        let mut parts = numbers.split(" | ");
        parts.find_map(|part| part.trim().strip_suffix(kind)?.trim().parse().ok())
    };
    Some(Counts { passed: of("Passed")?, failed: of("Failed")?, skipped: of("Skipped")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ginkgos_summary_is_counted() {
        let log = "Ran 46 of 7431 Specs in 10.1 seconds\nFAIL! -- 45 Passed | 1 Failed | 0 Pending | 7385 Skipped\n--- FAIL: TestE2E\n";
        assert_eq!(summary(log), Some(Counts { passed: 45, failed: 1, skipped: 7385 }));
        assert_eq!(summary("panic: no cluster"), None);
    }
}
