//! containerd 2: its configuration (version 3, with the user's template) and its environment.

use std::{collections::BTreeMap, ffi::OsString, path::Path, time::Duration};

use k3s_config::agent::Snapshotter;
use k3s_supervise::capability::Capabilities;
use k3s_supervise::program::{Descendants, Probe, Program, Resources, Stop};

use crate::{
    CgroupDriver, InheritedEnvironment, Node, Paths,
    launch::{File, Launch},
    libexec::Components,
    template::{self, TemplateError},
};

/// containerd for `node`, with `pause_image` as the sandbox of pods. `user_template` is the content of
/// `<data>/agent/etc/containerd/config-v3.toml.tmpl`, where the user has one; it replaces our configuration and may include it
/// with `{{ template "base" . }}`. The components' folder is put before the `PATH` of `inherited`.
pub fn containerd(
    node: &Node,
    paths: &Paths,
    found: &Components,
    pause_image: &str,
    user_template: Option<&str>,
    inherited: &InheritedEnvironment,
) -> Result<Launch, TemplateError> {
    let etc = paths.agent_etc("containerd");
    let base = base_config(node, paths, found, pause_image);
    let content = match user_template {
        Some(template) => template::render(template, &base, &fields(node, paths))?,
        None => base,
    };
    let root = paths.agent().join("containerd");
    let mut path = found.folder_of("containerd-shim-runc-v2").into_os_string();
    path.push(":");
    path.push(inherited.path());
    let mut env = inherited.of_containerd();
    env.insert("PATH".into(), path);
    let mut args = vec![OsString::from("-c"), etc.join("config.toml").into_os_string()];
    args.extend(
        inherited.containerd_log_level().into_iter().flat_map(|level| ["--log-level".into(), level.to_owned()]),
    );
    Ok(Launch {
        files: vec![File { path: etc.join("config.toml"), content }],
        program: Program {
            name: "containerd".into(),
            executable: found.path("containerd"),
            arg0: "containerd".into(),
            args,
            env,
            working_dir: None,
            after: Vec::new(),
            readiness: Probe::UnixSocket { path: paths.containerd_socket() },
            liveness: None,
            stop: Stop { timeout: Duration::from_secs(15), ..Stop::default() },
            resources: Resources::default(),
            oom_score_adj: Some(-999),
            capabilities: Capabilities::Inherited,
            descendants: Descendants::Outlive,
            log_file: Some(root.join("containerd.log")),
        },
    })
}

fn base_config(node: &Node, paths: &Paths, found: &Components, pause_image: &str) -> String {
    let string = |path: &Path| quoted(&path.display().to_string());
    let snapshotter = quoted(snapshotter(node.config.snapshotter));
    let systemd_cgroup = node.cgroup_driver == CgroupDriver::Systemd;
    let shim_cgroup =
        node.shim_cgroup.as_deref().map(|cgroup| format!("\n  ShimCgroup = {}", quoted(cgroup))).unwrap_or_default();
    let default_runtime = quoted(node.config.default_runtime.as_deref().unwrap_or("runc"));
    format!(
        "\
# Written by k3s at each start. To change it, put a template beside it: config-v3.toml.tmpl, with {{{{ template \"base\" . }}}} for this text.
version = 3
root = {root}
state = {state}
imports = [{imports}]

[grpc]
  address = {address}

[plugins.'io.containerd.internal.v1.opt']
  path = {opt}

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = '127.0.0.1'
  stream_server_port = '10010'

[plugins.'io.containerd.cri.v1.runtime']
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  device_ownership_from_security_context = {nonroot_devices}
  restrict_oom_score_adj = {restrict_oom}

[plugins.'io.containerd.cri.v1.images']
  snapshotter = {snapshotter}
  disable_snapshot_annotations = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = {pause}

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = {certs}

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [{cni_bin}]
  conf_dir = {cni_conf}

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = {default_runtime}

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = {runc}
  SystemdCgroup = {systemd_cgroup}{shim_cgroup}
",
        root = string(&paths.agent().join("containerd")),
        state = string(&paths.run().join("containerd")),
        imports = string(&paths.agent_etc("containerd/config-v3.toml.d/*.toml")),
        address = string(&paths.containerd_socket()),
        opt = string(&paths.agent().join("containerd")),
        nonroot_devices = node.config.nonroot_devices,
        restrict_oom = !node.may_lower_oom_score,
        pause = quoted(pause_image),
        certs = string(&paths.agent_etc("containerd/certs.d")),
        cni_bin = string(&found.folder_of("cni/bridge")),
        cni_conf = string(&paths.agent_etc("cni/net.d")),
        runc = string(&found.path("runc")),
    )
}

/// The fields that k3s documents for templates, as far as they mean something here.
fn fields(node: &Node, paths: &Paths) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (".NodeConfig.Containerd.Root", paths.agent().join("containerd").display().to_string()),
        (".NodeConfig.Containerd.State", paths.run().join("containerd").display().to_string()),
        (".NodeConfig.Containerd.Address", paths.containerd_socket().display().to_string()),
        (".NodeConfig.Containerd.Opt", paths.agent().join("containerd").display().to_string()),
        (".NodeConfig.AgentConfig.NodeName", node.config.name.clone()),
        (".NodeConfig.AgentConfig.CNIConfDir", paths.agent_etc("cni/net.d").display().to_string()),
        (".NodeConfig.AgentConfig.Snapshotter", snapshotter(node.config.snapshotter).to_owned()),
        (".SystemdCgroup", (node.cgroup_driver == CgroupDriver::Systemd).to_string()),
    ])
}

fn snapshotter(snapshotter: Snapshotter) -> &'static str {
    match snapshotter {
        Snapshotter::Overlayfs => "overlayfs",
        Snapshotter::Native => "native",
        Snapshotter::Btrfs => "btrfs",
        Snapshotter::Zfs => "zfs",
    }
}

/// A TOML string: literal where possible, as a path with a quote in it is rare but legal.
fn quoted(text: &str) -> String {
    if text.contains(['\'', '\n', '\r']) { format!("{text:?}") } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, node, paths};

    fn rendered(node: &Node, template: Option<&str>) -> Result<String, TemplateError> {
        let inherited = InheritedEnvironment::new([], &node.network, &[]);
        let launch = containerd(node, &paths(), &found(), "pause:1", template, &inherited)?;
        Ok(launch.files[0].content.clone())
    }

    #[test]
    fn runc_leaves_oom_scores_alone_where_it_may_not_lower_them() {
        let mut node = node(&[]);
        assert!(rendered(&node, None).unwrap().contains("restrict_oom_score_adj = true"));
        node.may_lower_oom_score = true;
        assert!(rendered(&node, None).unwrap().contains("restrict_oom_score_adj = false"));
    }

    #[test]
    fn shims_go_where_the_node_has_a_place_for_them() {
        let mut node = node(&[]);
        assert!(!rendered(&node, None).unwrap().contains("ShimCgroup"));
        node.shim_cgroup = Some("/k3s-shims".into());
        assert!(rendered(&node, None).unwrap().contains("\n  ShimCgroup = '/k3s-shims'\n"));
    }

    #[test]
    fn the_users_template_extends_ours_or_replaces_it() {
        let node = node(&["--snapshotter=native"]);
        let extended = rendered(&node, Some("{{ template \"base\" . }}\n[debug]\n")).unwrap();
        assert!(extended.contains("snapshotter = 'native'") && extended.ends_with("[debug]\n"));
        assert_eq!(rendered(&node, Some("version = 3\n")).unwrap(), "version = 3\n");
        assert!(rendered(&node, Some("{{ range .X }}")).is_err());
    }
}
