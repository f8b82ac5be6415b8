//! `cargo xtask bench attacks`: what strangers and misbehaving clients of port 6443 do to everybody else.
//!
//! The attacker is another host. An administrator asks for objects before and during each attack, and watches; our process' memory is
//! read before, at its highest, and a minute later. `--direct` does the same to kube-apiserver, for comparison.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use cluster_tests::{Network, Node};

use super::api::pass;
use super::contender::{Contender, stop};
use super::load::{self, Load, Outcome, Program};
use super::markdown::{Table, figure};
use super::usage::Processes;
use super::way::Way;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The attacks to try; all if none.
    attacks: Vec<String>,
    /// Attack kube-apiserver instead of port 6443, past what stands in front of it. It listens on loopback, so the
    /// attacker is on the server.
    #[arg(long)]
    direct: bool,
    /// Measure target/dist as it is instead of building it first.
    #[arg(long)]
    no_build: bool,
}

/// An attack: its title in the table, and as the client spells it.
struct Attack {
    title: &'static str,
    kind: &'static str,
    count: usize,
}

/// A machine may allow a process no more than 20 000 open files.
const ATTACKS: [Attack; 6] = [
    Attack { title: "19 500 silent connections", kind: "silent", count: 19_500 },
    Attack { title: "19 500 silent connections with TLS", kind: "handshakes", count: 19_500 },
    Attack { title: "20 000 streams that are not read", kind: "stalled", count: 20_000 },
    Attack { title: "32 strangers at full speed", kind: "anonymous", count: 32 },
    Attack { title: "32 guessers of tokens at full speed", kind: "tokens", count: 32 },
    Attack { title: "32 clients with a certificate at full speed", kind: "certificate", count: 32 },
];

/// Who meets where.
struct Scene<'a> {
    server: &'a Node,
    /// The host that the attacker is on.
    stranger: &'a Node,
    way: Way,
}

/// How long an attack goes on before the administrator asks.
const BEGUN: Duration = Duration::from_secs(10);
/// How long after an attack its memory has to be back.
const RECOVERED: Duration = Duration::from_secs(60);
/// What the administrator asks: single objects, one after the other.
const PROBE: &str = "get --operations 1000";
/// Every event has to reach every watch; one that ends is an error.
const WATCHES: &str = "watch --watchers 10 --operations 50";

/// What an attack did.
struct Measured {
    before: Outcome,
    during: Outcome,
    /// Whether the watches saw everything.
    watches: bool,
    /// MiB of the process that is attacked: before, at the most, later.
    memory: [f64; 3],
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::build(args.no_build)?;
    load::build()?;
    let network = Network::new();
    let (server, stranger) = (Node::boot(&network, "server"), Node::boot(&network, "stranger"));
    let contender = Contender::K3s { flags: "--disable=coredns".into() };
    let job = contender.start(&server);
    server.wait_until_ready();
    let scene = if args.direct {
        Scene { server: &server, stranger: &server, way: Way::Direct }
    } else {
        Scene { server: &server, stranger: &stranger, way: Way::Front }
    };
    let measured = measure(&scene, &args.attacks);
    stop(&server, &job);
    print!("{}", measured?);
    Ok(())
}

fn measure(scene: &Scene<'_>, chosen: &[String]) -> Result<Table> {
    let mut administrator = scene.client(Program::Api, scene.server, "admin", &[])?;
    administrator.wait_until_answered()?;
    administrator.run("create --clients 8 --operations 1000")?;
    let columns = [
        "an administrator's p50 / p99 in ms, before",
        "during",
        "p99, during : before",
        "10 watches",
        "MiB before, at most, after a minute",
    ];
    let mut table = Table::new("attack", columns.map(str::to_owned));
    for attack in ATTACKS.iter().filter(|attack| chosen.is_empty() || chosen.iter().any(|name| name == attack.kind)) {
        let Measured { before, during, watches, memory } = attack.measure(scene, &mut administrator)?;
        let latencies = |outcome: Outcome| format!("{} / {}", figure(outcome.p50_ms), figure(outcome.p99_ms));
        table.row(
            attack.title,
            [
                latencies(before),
                latencies(during),
                figure(during.p99_ms / before.p99_ms),
                if watches { "whole" } else { "broken" }.to_owned(),
                memory.map(figure).join(", "),
            ],
        );
    }
    Ok(table)
}

impl Attack {
    fn measure(&self, scene: &Scene<'_>, administrator: &mut Load) -> Result<Measured> {
        let (at_rest, before) = (scene.memory()?, administrator.run(PROBE)?);
        let more = ["--kind", self.kind, "--count", &self.count.to_string()];
        let mut attacker = scene.client(Program::Attack, scene.stranger, "controller", &more)?;
        attacker.wait_until_answered()?;
        let mut most = at_rest;
        for _ in 0..BEGUN.as_secs() {
            pass(Duration::from_secs(1));
            most = most.max(scene.memory()?);
        }
        let during = administrator.run(PROBE)?;
        let mut watcher = scene.client(Program::Api, scene.server, "admin", &[])?;
        let watched = watcher.wait_until_answered().and_then(|()| watcher.run(WATCHES));
        most = most.max(scene.memory()?);
        let met = attacker.end()?;
        pass(RECOVERED);
        let memory = [at_rest, most, scene.memory()?];
        eprintln!(
            "{}: p99 {} ms before, {} during; {} MiB; the attacker met {met}",
            self.title,
            figure(before.p99_ms),
            figure(during.p99_ms),
            memory.map(figure).join(", "),
        );
        if let Err(error) = &watched {
            eprintln!("{}: the watches broke: {error:#}", self.title);
        }
        Ok(Measured { before, during, watches: watched.is_ok(), memory })
    }
}

impl Scene<'_> {
    /// A client that is on `host` and may show one of the server's certificates.
    fn client(&self, program: Program, host: &Node, certificate: &str, more: &[&str]) -> Result<Load> {
        let address = match self.way {
            Way::Direct => Ipv4Addr::LOCALHOST,
            Way::Front => self.server.address(),
        };
        Load::of_api(program, &host.wire(), self.server, (address, self.way.port()), certificate, more)
    }

    /// MiB of the process that is attacked.
    fn memory(&self) -> Result<f64> {
        let processes = Processes::below(&self.server.path("/proc"))?;
        Ok(processes.of(self.way.program(), &Processes::default())?.memory)
    }
}
