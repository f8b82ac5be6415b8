//! What kube-controller-manager and kube-scheduler have in common: they work through kube-apiserver and serve only loopback.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use k3s_config::{ControlPlaneConfig, args::ComponentArgs};
use k3s_supervise::program::{Probe, Program, Stop};

use crate::{
    Paths, capabilities,
    launch::{Flags, Launch},
    libexec::Components,
    resources::Collector,
};

const COLLECTOR: Collector = Collector { standard: None, small: 25 };

/// One of the two.
pub(crate) struct ControlLoop {
    /// Its program, and its folder below `tls`.
    pub(crate) name: &'static str,
    /// Its file in `cred`.
    pub(crate) kubeconfig: &'static str,
    /// Where it serves its health.
    pub(crate) port: u16,
}

impl ControlLoop {
    /// The flags that both take.
    pub(crate) fn flags(&self, config: ControlPlaneConfig<'_>, paths: &Paths) -> Flags {
        let kubeconfig = paths.cred(self.kubeconfig);
        let mut flags = Flags::default();
        flags
            .path("kubeconfig", kubeconfig.clone())
            .path("authorization-kubeconfig", kubeconfig.clone())
            .path("authentication-kubeconfig", kubeconfig)
            // A server alone has nobody to elect against, and a lease renewed every two seconds is wear.
            .set("leader-elect", config.datastore.is_shared())
            .set("bind-address", "127.0.0.1")
            .set("secure-port", self.port)
            .path("tls-cert-file", paths.tls(&format!("{0}/{0}.crt", self.name)))
            .path("tls-private-key-file", paths.tls(&format!("{0}/{0}.key", self.name)))
            .set("profiling", false)
            .verbosity(config.verbosity);
        flags
    }

    /// The program with its `flags` and the user's arguments.
    pub(crate) fn launch(
        &self,
        flags: Flags,
        user: &ComponentArgs,
        config: ControlPlaneConfig<'_>,
        paths: &Paths,
        found: &Components,
    ) -> Launch {
        Launch {
            files: Vec::new(),
            program: Program {
                args: flags.merged(user),
                env: COLLECTOR.env(config.profile),
                after: vec!["kube-apiserver".into()],
                readiness: Probe::Https {
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
                    path: "/healthz".into(),
                    ca: paths.tls("server-ca.crt"),
                    identity: None,
                },
                stop: Stop { timeout: Duration::from_secs(10), ..Stop::default() },
                oom_score_adj: Some(-400),
                capabilities: capabilities::of_control_plane(),
                ..Program::new(self.name, found.path(self.name))
            },
        }
    }
}
