//! The end of a node's pods when its host shuts down: by priority, each within its grace period, while the network is there.
//!
//! Nobody else ends them in time. systemd runs no stop job for the scopes that runc makes (`DefaultDependencies=no`), so that pods get
//! SIGTERM only from `systemd-shutdown`, all at once and long after the network, and whoever ignores it holds up the shutdown for 90 s.
//! kubelet's own graceful shutdown takes logind and D-Bus, which small images lack, and hears of no shutdown that goes by logind. Where a
//! user has configured it, pods have ended when this begins.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use k3s_components::Paths;
use k3s_supervise::{Supervisor, notify::Notifier};
use k8s_openapi::{
    api::core::v1::{LifecycleHandler, Node, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{process::Command, time::timeout};
use tracing::{debug, info, warn};

use crate::{
    api,
    cri::{Container, PodSandbox, Runtime},
    error::chain,
};

/// The least priority of `system-cluster-critical`: kubelet's graceful shutdown ends those pods last, too.
const CRITICAL: i32 = 2_000_000_000;
/// No pod holds up a shutdown for longer, whatever its grace period.
const LONGEST: Duration = Duration::from_secs(300);
/// What a container has after its hook has used up the grace period (kubelet's `minimumGracePeriodInSeconds`).
const LEAST: Duration = Duration::from_secs(2);
/// A pod without a word about it (Kubernetes' `DefaultTerminationGracePeriodSeconds`).
const USUAL: Duration = Duration::from_secs(30);
/// How long the API is asked for what is good to know.
const API: Duration = Duration::from_secs(3);
/// How much longer than the grace period containerd may take.
const MARGIN: Duration = Duration::from_secs(30);

/// Has the next stop of the k3s at `paths` end its pods, too; false takes that back.
///
/// # Errors
/// The run directory cannot be written.
pub fn ask_to_end_pods(paths: &Paths, is_asked: bool) -> io::Result<()> {
    let mark = mark(paths);
    if is_asked {
        return fs::create_dir_all(paths.run()).and_then(|()| fs::write(mark, ""));
    }
    match fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn mark(paths: &Paths) -> PathBuf {
    paths.run().join("end-pods")
}

/// Ends every pod of `node` if somebody has asked for it, or if systemd is about to shut the host down; at any other stop of ours they go
/// on. What cannot be done is logged.
pub async fn end_pods_with_host(paths: &Paths, node: &str, supervisor: &Supervisor, notifier: &Notifier) {
    if mark(paths).exists() {
        info!("Somebody stops k3s with its pods: they are ended.");
        end_pods(paths, node, supervisor, notifier).await;
    } else if Path::new("/run/systemd/system").is_dir() && host_is_stopping("systemctl").await {
        info!("The host shuts down: pods are ended.");
        end_pods(paths, node, supervisor, notifier).await;
    } else {
        info!("Pods go on running.");
    }
}

/// kubelet ends first: it would start them again.
///
/// ```text
/// priorities ─► kubelet ends ─► node not ready: Services send nothing more ─► other pods ─► critical pods
/// ```
async fn end_pods(paths: &Paths, node: &str, supervisor: &Supervisor, notifier: &Notifier) {
    let began = Instant::now();
    let client = timeout(API, api::hasty_client(&paths.kubelet_kubeconfig())).await.ok().and_then(Result::ok);
    let priorities = priorities(client.clone(), node).await;
    // It is there unless the start was not done yet.
    let _ = supervisor.stop_program("kubelet").await;
    tell_not_ready(client, node).await;
    let asked = async {
        let runtime = Runtime::connect(&paths.containerd_socket()).await.map_err(|error| chain(&error))?;
        let (sandboxes, containers) = tokio::try_join!(runtime.pod_sandboxes(), runtime.containers())
            .map_err(|status| status.message().to_owned())?;
        Ok::<_, String>((runtime, sandboxes, containers))
    };
    let (runtime, sandboxes, containers) = match timeout(MARGIN, asked).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return warn!(error, "containerd does not tell of pods: they are left to the host."),
        Err(_) => return warn!("containerd does not answer: pods are left to the host."),
    };
    for group in groups(&sandboxes, &containers, &priorities) {
        let longest = group.iter().map(Ending::grace).max().unwrap_or_default();
        notifier.extend_timeout(longest + 2 * MARGIN);
        join_all(group.iter().map(|pod| pod.carry_out(&runtime))).await;
    }
    info!(seconds = began.elapsed().as_secs(), "The pods have ended.");
}

async fn host_is_stopping(systemctl: &str) -> bool {
    let mut ask = Command::new(systemctl);
    // A state other than "running" is an exit code other than 0.
    ask.arg("is-system-running").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match timeout(Duration::from_secs(5), ask.output()).await {
        Ok(Ok(answer)) => answer.stdout.trim_ascii() == b"stopping",
        Ok(Err(error)) => {
            warn!(%error, "systemctl cannot be run: whether the host shuts down is not known, and pods go on.");
            false
        }
        Err(_) => {
            warn!("systemctl does not answer: whether the host shuts down is not known, and pods go on.");
            false
        }
    }
}

/// The priority of each pod by its UID; none where the API does not tell in time.
async fn priorities(client: Option<Client>, node: &str) -> HashMap<String, i32> {
    let Some(client) = client else { return HashMap::new() };
    let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
    match timeout(API, Api::<Pod>::all(client).list(&here)).await {
        Ok(Ok(pods)) => pods
            .into_iter()
            .filter_map(|pod| Some((pod.metadata.uid?, pod.spec?.priority.unwrap_or_default())))
            .collect(),
        _ => {
            debug!("The API does not tell of priorities: pods of kube-system count as critical.");
            HashMap::new()
        }
    }
}

/// As kubelet tells it when it shuts down gracefully: endpoints of the node's pods are withdrawn at once.
async fn tell_not_ready(client: Option<Client>, node: &str) {
    let Some(client) = client else { return };
    let now = Timestamp::now();
    let ready = json!({
        "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "node is shutting down",
        "lastTransitionTime": now, "lastHeartbeatTime": now,
    });
    let status = Patch::Strategic(json!({"status": {"conditions": [ready]}}));
    match timeout(API, Api::<Node>::all(client).patch_status(node, &PatchParams::default(), &status)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(error = chain(&error), "The API is not told that the node shuts down."),
        Err(_) => debug!("The API is not told in time that the node shuts down."),
    }
}

/// The end of one pod.
#[derive(Debug, PartialEq)]
struct Ending {
    name: String,
    sandbox: String,
    containers: Vec<ContainerEnding>,
}

#[derive(Debug, PartialEq)]
struct ContainerEnding {
    id: String,
    name: String,
    grace: Duration,
    pre_stop: Option<LifecycleHandler>,
}

/// The pods that run, in groups of which one ends after the other: critical ones last.
fn groups(sandboxes: &[PodSandbox], containers: &[Container], priorities: &HashMap<String, i32>) -> Vec<Vec<Ending>> {
    let mut groups: BTreeMap<bool, Vec<Ending>> = BTreeMap::new();
    for sandbox in sandboxes.iter().filter(|sandbox| sandbox.state == 0) {
        let pod = sandbox.metadata.clone().unwrap_or_default();
        let is_critical =
            priorities.get(&pod.uid).map_or(pod.namespace == "kube-system", |priority| *priority >= CRITICAL);
        let running =
            containers.iter().filter(|container| container.state == 1 && container.pod_sandbox_id == sandbox.id);
        groups.entry(is_critical).or_default().push(Ending {
            name: format!("{}/{}", pod.namespace, pod.name),
            sandbox: sandbox.id.clone(),
            containers: running.map(ContainerEnding::of).collect(),
        });
    }
    groups.into_values().collect()
}

impl ContainerEnding {
    /// By what kubelet notes at each container, and goes by itself where it no longer knows the pod (`kuberuntime/labels.go`).
    fn of(container: &Container) -> Self {
        let note = |key: &str| container.annotations.get(key);
        // One that is being deleted has the grace period that the deletion asked for.
        let seconds =
            note("io.kubernetes.pod.deletionGracePeriod").or(note("io.kubernetes.pod.terminationGracePeriod"));
        let grace = seconds.and_then(|seconds| seconds.parse().ok()).map_or(USUAL, Duration::from_secs);
        let hook = note("io.kubernetes.container.preStopHandler");
        Self {
            id: container.id.clone(),
            name: container.metadata.clone().unwrap_or_default().name,
            grace: grace.min(LONGEST),
            pre_stop: hook.and_then(|hook| serde_json::from_str(hook).ok()),
        }
    }

    async fn carry_out(&self, pod: &str, runtime: &Runtime) {
        let began = Instant::now();
        if let Some(hook) = &self.pre_stop
            && timeout(self.grace, self.run_hook(pod, hook, runtime)).await.is_err()
        {
            warn!(pod, container = self.name, "The container's preStop hook takes longer than its grace period.");
        }
        let rest = self.grace.saturating_sub(began.elapsed()).max(LEAST.min(self.grace));
        let stopped = timeout(rest + MARGIN, runtime.stop_container(&self.id, rest)).await;
        match stopped {
            Ok(Ok(())) => {}
            Ok(Err(status)) => {
                warn!(pod, container = self.name, error = status.message(), "The container is not ended.");
            }
            Err(_) => warn!(pod, container = self.name, "containerd does not end the container in time."),
        }
    }

    async fn run_hook(&self, pod: &str, hook: &LifecycleHandler, runtime: &Runtime) {
        if let Some(command) = hook.exec.as_ref().and_then(|exec| exec.command.as_ref()) {
            match runtime.exec(&self.id, command, self.grace).await {
                Ok(0) => {}
                Ok(code) => warn!(pod, container = self.name, code, "The container's preStop hook failed."),
                Err(status) => {
                    warn!(pod, container = self.name, error = status.message(), "The container's preStop hook failed.");
                }
            }
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default())).await;
        } else {
            warn!(
                pod,
                container = self.name,
                "Of preStop hooks, only exec and sleep are run when the host shuts down."
            );
        }
    }
}

impl Ending {
    fn grace(&self) -> Duration {
        self.containers.iter().map(|container| container.grace).max().unwrap_or_default()
    }

    async fn carry_out(&self, runtime: &Runtime) {
        join_all(self.containers.iter().map(|container| container.carry_out(&self.name, runtime))).await;
        match timeout(MARGIN, runtime.stop_pod_sandbox(&self.sandbox)).await {
            Ok(Ok(())) => debug!(pod = self.name, "The pod has ended."),
            Ok(Err(status)) => warn!(pod = self.name, error = status.message(), "The pod is not ended."),
            Err(_) => warn!(pod = self.name, "containerd does not end the pod in time."),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::cri::{ContainerMetadata, PodSandboxMetadata};

    fn sandbox(id: &str, namespace: &str, state: i32) -> PodSandbox {
        let metadata = PodSandboxMetadata { name: id.into(), uid: format!("uid-{id}"), namespace: namespace.into() };
        PodSandbox { id: id.into(), metadata: Some(metadata), state }
    }

    fn container(sandbox: &str, notes: &[(&str, &str)]) -> Container {
        Container {
            id: format!("{sandbox}-main"),
            pod_sandbox_id: sandbox.into(),
            metadata: Some(ContainerMetadata { name: "main".into() }),
            state: 1,
            annotations: notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn names(groups: &[Vec<Ending>]) -> Vec<Vec<&str>> {
        groups.iter().map(|group| group.iter().map(|pod| pod.name.as_str()).collect()).collect()
    }

    #[test]
    fn critical_pods_end_last_and_ended_ones_are_left_alone() {
        let sandboxes = [
            sandbox("dns", "kube-system", 0),
            sandbox("web", "default", 0),
            sandbox("gone", "default", 1),
            sandbox("storage", "longhorn", 0),
        ];
        let priorities = HashMap::from([("uid-storage".to_owned(), CRITICAL), ("uid-dns".to_owned(), CRITICAL)]);
        let known = groups(&sandboxes, &[], &priorities);
        assert_eq!(names(&known), [vec!["default/web"], vec!["kube-system/dns", "longhorn/storage"]]);
        let unknown = groups(&sandboxes, &[], &HashMap::new());
        assert_eq!(names(&unknown), [vec!["default/web", "longhorn/storage"], vec!["kube-system/dns"]]);
    }

    #[test]
    fn a_container_has_its_pods_grace_period_and_its_hook() {
        let of = |notes: &[(&str, &str)]| ContainerEnding::of(&container("web", notes));
        assert_eq!(of(&[]).grace, USUAL);
        assert_eq!(of(&[("io.kubernetes.pod.terminationGracePeriod", "7")]).grace, Duration::from_secs(7));
        let deleted =
            [("io.kubernetes.pod.terminationGracePeriod", "60"), ("io.kubernetes.pod.deletionGracePeriod", "0")];
        assert_eq!(of(&deleted).grace, Duration::ZERO);
        assert_eq!(of(&[("io.kubernetes.pod.terminationGracePeriod", "86400")]).grace, LONGEST);
        let hook = of(&[("io.kubernetes.container.preStopHandler", r#"{"exec":{"command":["sync"]}}"#)]).pre_stop;
        assert_eq!(hook.unwrap().exec.unwrap().command.unwrap(), ["sync"]);
        assert_eq!(of(&[("io.kubernetes.container.preStopHandler", "{")]).pre_stop, None);
    }

    #[test]
    fn containers_that_do_not_run_are_not_ended() {
        let mut ended = container("web", &[]);
        ended.state = 2;
        let groups = groups(&[sandbox("web", "default", 0)], &[ended], &HashMap::new());
        assert_eq!(groups[0][0].containers, []);
        assert_eq!(groups[0][0].grace(), Duration::ZERO);
    }

    #[tokio::test]
    async fn systemd_tells_whether_the_host_stops() {
        let dir = tempfile::tempdir().unwrap();
        let answers = |text: &str| {
            let path = dir.path().join(text);
            fs::write(&path, format!("#!/bin/sh\n[ $1 = is-system-running ] && echo {text}\nexit 1\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        assert!(host_is_stopping(&answers("stopping")).await);
        assert!(!host_is_stopping(&answers("degraded")).await);
        assert!(!host_is_stopping("/nonexistent/systemctl").await);
    }
}
