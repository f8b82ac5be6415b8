//! Developer tasks: `cargo xtask <verb>`. One file a verb.

mod bench;
mod charts;
mod component;
mod components;
mod counts;
mod debian;
mod digest;
mod dist;
mod down;
mod e2e;
mod edge_image;
mod elf;
mod folder;
mod fuzz;
mod go_test;
mod image;
mod images;
mod ingress;
mod nix;
mod packages;
mod process;
mod reproducible;
mod storage_tests;
mod system_packages;
mod test;
mod traces;
mod up;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, run and check the project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build everything and start a cluster of one node, with a demo pod, on this machine.
    Up(up::Args),
    /// Stop what `up` started, and leave nothing of it behind.
    Down(down::Args),
    /// Build the upstream programs (Kubernetes, containerd, runc, CNI plugins, CoreDNS), and those that only tests use, into the cache.
    Components(components::Args),
    /// Pack the container images: those of the sandbox and the add-ons for every node, demo for tests.
    Images(images::Args),
    /// Run everything that CI runs.
    Test(test::Args),
    /// Look for inputs that break what takes bytes from others; see `tests/fuzz`.
    Fuzz(fuzz::Args),
    /// Run Kubernetes' own storage tests against the datastore of `target/dist`, or against etcd or kine.
    StorageTests(storage_tests::Args),
    /// Run Kubernetes' own end-to-end tests on two nodes, from `target/dist`.
    E2e(e2e::Args),
    /// Run the scenario of Traefik, from a `target/dist` that has it.
    Ingress(ingress::Args),
    /// Run tests on virtual machines: real systemd, journald and cgroup v2, from `target/dist`.
    VmTest(vm_test::Args),
    /// Assemble `target/dist`: k3s, its components and images as packages hold them.
    Dist(dist::Args),
    /// Pack `target/dist` as a container image and as system extensions, with bills of materials and a table of sizes.
    Packages(packages::Args),
    /// Make the disk of an edge machine from `target/dist` and Debian's packages.
    EdgeImage(edge_image::Args),
    /// Evaluate the flake and the NixOS module, and write what is made of them.
    Nix(nix::Args),
    /// Measure: `start`, `datastore`, `growth`, `idle`, `crash`, `reproducible`.
    Bench(bench::Args),
    /// Build components twice, in different folders and from an empty cache, and compare the bytes.
    Reproducible(reproducible::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Up(args) => up::run(&args),
        Verb::Down(args) => down::run(&args),
        Verb::Components(args) => components::run(&args),
        Verb::Images(args) => images::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::StorageTests(args) => storage_tests::run(&args),
        Verb::E2e(args) => e2e::run(&args),
        Verb::Ingress(args) => ingress::run(&args),
        Verb::VmTest(args) => vm_test::run(&args),
        Verb::Dist(args) => dist::run(&args),
        Verb::Packages(args) => packages::run(&args),
        Verb::EdgeImage(args) => edge_image::run(&args),
        Verb::Nix(args) => nix::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Reproducible(args) => reproducible::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}.");
            ExitCode::FAILURE
        }
    }
}
