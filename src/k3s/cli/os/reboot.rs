//! A restart into another version: what `update` and `rollback` do with `--reboot`.

use std::{process::ExitCode, time::Duration};

use k3s_components::Paths;
use k3s_os::Machine;
use tokio::process::Command;

use super::{
    super::{
        Failure, duration,
        failure::{IO_ERROR, OS_ERROR, TEMPORARY},
        output::line,
    },
    own_node::OwnNode,
};

#[derive(Debug, clap::Args)]
pub(super) struct Reboot {
    /// Drain the node, and restart the machine
    #[arg(long)]
    reboot: bool,
    /// How long pods may take to leave; the machine is not restarted while some are there
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse, requires = "reboot")]
    drain_timeout: Duration,
}

impl Reboot {
    pub(super) async fn run(self, machine: &Machine, paths: &Paths) -> Result<ExitCode, Failure> {
        if !self.reboot {
            line("Restart the machine when it suits.")?;
            return Ok(ExitCode::SUCCESS);
        }
        let stays = |why: String| {
            Failure::new(
                TEMPORARY,
                format!("the machine was not restarted: {why}; restart it when it suits, by `systemctl reboot`"),
            )
        };
        let node = OwnNode::connect(paths).await.map_err(stays)?;
        if let Some(node) = &node {
            // One that was cordoned before stays so.
            let ours = !node.is_cordoned().await.map_err(stays)?;
            if ours {
                machine.set_cordoned(true).map_err(|error| Failure::from_error(IO_ERROR, &error))?;
                node.cordon(true).await.map_err(stays)?;
            }
            if let Err(why) = node.drain(self.drain_timeout).await {
                if ours && node.cordon(false).await.is_ok() {
                    machine.set_cordoned(false).map_err(|error| Failure::from_error(IO_ERROR, &error))?;
                }
                return Err(stays(why));
            }
        }
        let drained = if node.is_some() { "The node is drained, and the" } else { "The" };
        line(format_args!("{drained} machine restarts."))?;
        let status = Command::new("systemctl").args(["reboot", "--no-block"]).status().await;
        match status {
            Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
            Ok(status) => Err(Failure::new(OS_ERROR, format!("`systemctl reboot` failed ({status})"))),
            Err(error) => Err(Failure::new(OS_ERROR, format!("systemctl cannot be run: {error}"))),
        }
    }
}
