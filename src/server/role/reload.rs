//! What a reload changes of a server that runs: the arguments of its programs, and the labels and taints of its own node.

use std::pin::pin;

use k3s_agent::{NodeRole, ServerAuthority};
use k3s_components::Launch;
use k3s_config::{
    agent::{Taint, TaintEffect},
    reload::{Changes, Reloaded},
    server::ServerConfig,
};
use k3s_controllers::{ClusterView, TaintChange};
use k3s_daemon::Reloads;
use k8s_openapi::api::core::v1 as api;
use tokio::select;
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::Error;

impl Server {
    /// Runs the node, where there is one, and takes over what each reload asks for, until `shutdown`.
    pub(super) async fn run_node(
        &self,
        view: &ClusterView,
        mut reloads: Reloads<ServerConfig>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let mut config = self.config.clone();
        let mut node = Box::pin(self.prepare_node(&config, view)).await?;
        if let Some(node) = &node {
            node.start(&self.supervisor)?;
        }
        // What the API has been told last.
        let mut told = taints(&config);
        loop {
            let successor = {
                let mut life = pin!(self.live_as(node.as_ref(), shutdown));
                loop {
                    select! {
                        ended = &mut life => return ended,
                        () = self.set_taints(&told, &config, view) => told = taints(&config),
                        () = reloads.asked() => {
                            let mut successor = None;
                            let apply = async |asked| {
                                let (reloaded, node) = self.reload(&config, asked, node.as_ref(), view).await?;
                                (config, successor) = (reloaded.config, node);
                                Ok::<Changes, Error>(reloaded.changes)
                            };
                            Box::pin(reloads.reload(apply)).await;
                            if successor.is_some() {
                                break successor;
                            }
                        }
                    }
                }
            };
            node = successor;
        }
    }

    /// The node's life, where there is one.
    async fn live_as(&self, node: Option<&NodeRole>, shutdown: &CancellationToken) -> Result<(), Error> {
        match node {
            Some(node) => node.run(&self.supervisor, shutdown.clone()).await.map_err(Error::from),
            None => {
                shutdown.cancelled().await;
                Ok(())
            }
        }
    }

    /// Goes on by what is `asked` for, as far as that can change under pods that run; what is wrong is found before any program is
    /// touched. The node comes back where it is another one from now on.
    async fn reload(
        &self,
        running: &ServerConfig,
        mut asked: ServerConfig,
        node: Option<&NodeRole>,
        view: &ClusterView,
    ) -> Result<(Reloaded<ServerConfig>, Option<NodeRole>), Error> {
        if let (Some(asked), Some(running)) = (&mut asked.node, &running.node) {
            asked.settle_name(running);
        }
        let reloaded = running.reloaded(asked);
        let successor = Box::pin(self.prepare_node(&reloaded.config, view)).await?;
        let (before, now) = (self.control_plane(running), self.control_plane(&reloaded.config));
        let different: Vec<_> = now.into_iter().filter(|launch| !before.contains(launch)).collect();
        different.iter().try_for_each(Launch::install_files)?;
        for launch in different {
            // It was started with the others.
            let _ = self.supervisor.replace(launch.program).await;
        }
        let successor = match (successor, node) {
            (Some(mut successor), Some(node)) if !successor.is_same(node) => {
                successor.take_over(node, ServerAuthority::Same, &self.supervisor).await?;
                Some(successor)
            }
            _ => None,
        };
        Ok((reloaded, successor))
    }

    /// Brings the node's taints to what the configuration says where the API was told something else; never ends where it was not.
    async fn set_taints(&self, told: &[api::Taint], config: &ServerConfig, view: &ClusterView) {
        let change = TaintChange::between(told, &taints(config));
        if change.is_empty() || self.supervisor.ready("kube-apiserver").await.is_err() {
            std::future::pending::<()>().await;
        }
        change.apply(view.client().clone(), &self.host.name).await;
    }
}

/// The node's taints as the API has them.
fn taints(config: &ServerConfig) -> Vec<api::Taint> {
    let taint = |Taint { key, value, effect }: &Taint| api::Taint {
        key: key.clone(),
        value: Some(value.clone()).filter(|value| !value.is_empty()),
        effect: match effect {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        }
        .to_owned(),
        time_added: None,
    };
    config.node.iter().flat_map(|node| &node.taints).map(taint).collect()
}
