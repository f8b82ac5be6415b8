//! kube-scheduler.

use k3s_config::ControlPlaneConfig;

use crate::{Paths, control_loop::ControlLoop, launch::Launch, libexec::Components};

const SCHEDULER: ControlLoop = ControlLoop { name: "kube-scheduler", kubeconfig: "scheduler.kubeconfig", port: 10259 };

/// kube-scheduler for `config`.
pub fn kube_scheduler(config: ControlPlaneConfig<'_>, paths: &Paths, found: &Components) -> Launch {
    let flags = SCHEDULER.flags(config, paths);
    SCHEDULER.launch(flags, &config.args.kube_scheduler, config, paths, found)
}
