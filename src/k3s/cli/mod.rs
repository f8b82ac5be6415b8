//! The command line: one file per verb.

mod administrator;
mod agent;
mod bucket_flags;
mod certificate;
mod check_config;
mod command_line;
mod completion;
mod crictl;
mod ctr;
mod datastore;
mod duration;
mod environment;
mod failure;
mod globals;
mod journal;
mod kubectl;
mod location;
mod missing_api;
mod node;
mod os;
mod output;
mod read_ahead;
mod reload;
mod running_server;
mod runtime;
mod secrets_encrypt;
mod server;
mod shim;
mod signals;
mod snapshot;
mod status;
mod stop;
mod token;
mod unused_files;
mod upstream;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use k3s_components::SHIM;
use k3s_config::Role;

pub(crate) use command_line::hide_secrets;
pub(crate) use failure::Failure;
pub(crate) use output::tell;

use globals::Globals;
use output::line;

use crate::version;

/// Lightweight Kubernetes for machines nobody can reach.
#[derive(Debug, Parser)]
#[command(name = "k3s", disable_version_flag = true, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// Print the version
    #[arg(short = 'v', long)]
    version: bool,
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

/// Verbs with flags of their own pass them on untouched: each parses them where it lives.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a server: control plane, datastore and, unless told otherwise, a node
    #[command(disable_help_flag = true)]
    Server(PassedOn),
    /// Run a node that joins a server
    #[command(disable_help_flag = true)]
    Agent(PassedOn),
    /// Run kubectl as this server's administrator
    #[command(disable_help_flag = true)]
    Kubectl(PassedOn),
    /// Run ctr against this node's containerd, in the namespace of its pods
    #[command(disable_help_flag = true)]
    Ctr(PassedOn),
    /// Run a crictl found in PATH against this node's containerd
    #[command(disable_help_flag = true)]
    Crictl(PassedOn),
    /// Show what each component does and what is being waited for
    Status(status::Options),
    /// Stop the server or agent of this machine
    Stop(stop::Options),
    /// Save, list, prune and restore snapshots of the datastore
    Snapshot(snapshot::Command),
    /// The same by the name that k3s has for it
    EtcdSnapshot(snapshot::Command),
    /// Make, list and delete bootstrap tokens, and exchange the server's token
    #[command(subcommand)]
    Token(token::Verb),
    /// Encrypt Secrets in the datastore, and exchange the keys
    #[command(subcommand)]
    SecretsEncrypt(secrets_encrypt::Verb),
    /// Show certificates, have them made anew, and replace the cluster's certificate authorities
    #[command(subcommand)]
    Certificate(certificate::Verb),
    /// Let the servers forget a node's password
    #[command(subcommand)]
    Node(node::Verb),
    /// The system of an edge image
    #[command(subcommand)]
    Os(os::Verb),
    /// Check a configuration and this machine, and change nothing
    #[command(disable_help_flag = true)]
    CheckConfig(PassedOn),
    /// Print a shell's completion script
    Completion(completion::Options),
    /// Run the datastore alone
    #[command(subcommand)]
    Datastore(datastore::Verb),
}

#[derive(Debug, clap::Args)]
struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    args: Vec<OsString>,
}

/// Runs the verb that `args` (with the program's own name first) ask for; under the names of its links it is that program.
pub(crate) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let called = args.first().map(Path::new).unwrap_or(Path::new(""));
    let rest = || args.iter().skip(1).cloned().collect();
    match called.file_name().and_then(OsStr::to_str) {
        Some("kubectl") => return kubectl::run(rest(), Globals::default()),
        Some("ctr") => return ctr::run(rest()),
        Some("crictl") => return crictl::run(rest()),
        Some(SHIM) => return shim::run(called, rest()),
        _ => {}
    }
    if args.get(1).is_some_and(|arg| arg == "--version" || arg == "-v") {
        line(version::text())?;
        return Ok(ExitCode::SUCCESS);
    }
    let Cli { globals, verb, .. } = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return Failure::from_clap(&error),
    };
    match verb {
        Verb::Server(PassedOn { args }) => server::run(globals.before(args)),
        Verb::Agent(PassedOn { args }) => agent::run(globals.before(args)),
        Verb::Kubectl(PassedOn { args }) => kubectl::run(args, globals),
        Verb::Ctr(PassedOn { args }) => ctr::run(args),
        Verb::Crictl(PassedOn { args }) => crictl::run(args),
        Verb::Status(options) => status::run(&options),
        Verb::Stop(options) => stop::run(options, globals),
        Verb::Snapshot(command) | Verb::EtcdSnapshot(command) => snapshot::run(command, globals),
        Verb::Token(verb) => token::run(verb, globals),
        Verb::SecretsEncrypt(verb) => secrets_encrypt::run(verb, globals),
        Verb::Certificate(verb) => certificate::run(verb, globals),
        Verb::Node(verb) => node::run(verb, globals),
        Verb::Os(verb) => os::run(verb, globals),
        Verb::CheckConfig(PassedOn { args }) => check_config::run(args, globals),
        Verb::Completion(options) => completion::run(&options),
        Verb::Datastore(verb) => datastore::run(verb),
    }
}

/// The whole command tree with the flags of server and agent, for completion scripts.
fn command() -> clap::Command {
    let mut command = <Cli as clap::CommandFactory>::command();
    for role in Role::ALL {
        let verb = k3s_config::command(role);
        let name = verb.get_name().to_owned();
        command = command.mut_subcommand(name, |_| verb);
    }
    command
}
