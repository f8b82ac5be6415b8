//! `k3s os`: the system of an edge image.

mod configure;
mod good;
mod own_node;
mod reboot;
mod recover;
mod rollback;
mod source;
mod status;
mod update;

use std::process::ExitCode;

use clap::Subcommand;
use k3s_os::Error;
use nix::unistd::Uid;

use super::{
    Failure,
    failure::{CONFIGURATION, DATA_ERROR, IO_ERROR, NO_PERMISSION, UNAVAILABLE},
    globals::Globals,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Take first-boot.yaml from the ESP: this machine's name, role, network and configuration
    ///
    /// Each start of an edge machine does this before its network and its node. A file that was taken is removed from the ESP, since it holds
    /// secrets; a wrong one stays, and changes nothing. What came of it stands in status.txt beside it.
    Configure,
    /// Show what is in the two slots, which of them runs, and which one the next start is of
    Status(status::Options),
    /// Wait until a version that is started for the first time has shown that it is good
    ///
    /// k3s-os-good.service runs this while the boot loader counts the starts of a version, and the boot loader starts the other version if
    /// it fails. k3s and all its components have to be ready, the node Ready, and /etc/rancher/k3s/os-check, if there is an executable file of
    /// this name, has to end with 0; all of it for a while.
    Good(good::Options),
    /// Write a new version into the slot that does not run; the next start is of it
    ///
    /// A set is signed by whoever made the image, for machines of one architecture, and newer than what runs. A snapshot of the datastore is
    /// taken before. What breaks off in between changes nothing of what runs: repeat it.
    Update(update::Options),
    /// Have the next start be of the version of before
    ///
    /// The cluster's data stays as it is. If the version of before cannot read it this is refused, and --with-data brings back the snapshot that
    /// was taken before the update.
    Rollback(rollback::Options),
    /// See whether the version of before runs again, and what becomes of the cluster's data
    ///
    /// k3s.service and k3s-agent.service run this before k3s. Where a version that was given up has written the datastore in another form, the
    /// snapshot of before its update is brought back.
    Recover,
}

pub(super) fn run(verb: Verb, globals: Globals) -> Result<ExitCode, Failure> {
    if !Uid::effective().is_root() {
        return Err(Failure::new(NO_PERMISSION, "an edge machine's system is root's: run this as root"));
    }
    match verb {
        Verb::Configure => configure::run(),
        Verb::Status(options) => status::run(&options),
        Verb::Good(options) => good::run(options, globals),
        Verb::Update(options) => update::run(options, globals),
        Verb::Rollback(options) => rollback::run(options, globals),
        Verb::Recover => recover::run(globals),
    }
}

fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::OtherSystem | Error::Slots(_) | Error::NoWayBack | Error::NoSnapshot(_) => UNAVAILABLE,
        Error::Unreadable { .. } => DATA_ERROR,
        Error::Wrong(_) | Error::Version(_) => CONFIGURATION,
        Error::File(_) | Error::Identity(_) => IO_ERROR,
    };
    Failure::from_error(code, error)
}
