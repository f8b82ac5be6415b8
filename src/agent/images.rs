//! Images that need no registry: those that come with the package, and those the user put beside them.

use std::path::PathBuf;

use k3s_components::Paths;
use k3s_oci::Importer;
use k3s_supervise::{Gate, Supervisor};
use tracing::{info, warn};

use crate::error::chain;

/// The sandbox of pods, packed with us.
pub(crate) const PAUSE: &str = "docker.io/k3s-rs/pause:0.1.0";

/// Imports what containerd does not have yet, then lets kubelet start. An archive that cannot be imported is told in the status and
/// stops nothing: its image may be in containerd already, or be pulled.
pub(crate) async fn import(folders: &[PathBuf], paths: &Paths, supervisor: &Supervisor, gate: &Gate) {
    gate.waiting("containerd");
    if supervisor.ready("containerd").await.is_err() {
        return;
    }
    gate.waiting("importing images");
    let mut failures = Vec::new();
    let mut sources = Vec::new();
    for folder in folders {
        match k3s_oci::sources(folder) {
            Ok(found) => sources.extend(found),
            Err(error) => failures.push(error),
        }
    }
    if !sources.is_empty() {
        match Importer::connect(&paths.containerd_socket()).await {
            Ok(importer) => {
                let report = importer.import(&sources).await;
                info!(imported = report.imported.len(), present = report.present.len(), "Images are in place.");
                for name in &report.wanted {
                    info!(image = name.as_str(), "A listed image is not here; it is pulled when a pod needs it.");
                }
                failures.extend(report.failed);
            }
            Err(error) => failures.push(error),
        }
    }
    for error in &failures {
        warn!("{}", chain(error));
    }
    if let Some(first) = failures.first() {
        supervisor
            .warn("images", format!("{} of the image archives cannot be used: {}.", failures.len(), chain(first)));
    }
    gate.open();
}
