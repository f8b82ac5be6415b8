//! `k3s os rollback`: the version of before.

use std::process::ExitCode;

use k3s_components::Paths;
use k3s_os::Machine;

use super::{
    super::{Failure, globals::Globals, location::NodeFlags, output::line, runtime},
    failure,
    reboot::Reboot,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Bring back the snapshot that was taken before the update, too; what was written since is lost
    #[arg(long)]
    with_data: bool,
    #[command(flatten)]
    reboot: Reboot,
    #[command(flatten)]
    node: NodeFlags,
}

pub(super) fn run(options: Options, globals: Globals) -> Result<ExitCode, Failure> {
    runtime::log(globals.debug);
    let machine = Machine::at("/");
    let paths = Paths::new(options.node.locate(globals)?.data_dir, Paths::RUN);
    let version = machine.roll_back(options.with_data).map_err(|error| failure(&error))?;
    line(format_args!("The next start is of {version}."))?;
    runtime::run(options.reboot.run(&machine, &paths))
}
