//! containerd 2: its configuration (version 3, or with the user's template the one before) and its environment.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use k3s_config::{
    agent::{NodeConfig, Snapshotter},
    resources::Profile,
};
use k3s_supervise::program::{Descendants, Probe, Program};

use crate::{
    CgroupDriver, InheritedEnvironment, Node, Paths,
    launch::{File, Launch},
    libexec::{Components, SHARED_SHIM, SHIM},
    registries::CERTS_D,
    resources::Collector,
    template::{self, TemplateError},
    user_config::{self, UserConfigError},
};

/// Shims inherit it.
const COLLECTOR: Collector = Collector { standard: None, small: 50 };

/// Which of containerd's formats a user's template is for, as the name of its file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateGeneration {
    /// containerd 2's own.
    V3,
    /// That of containerd 1, which containerd 2 reads too.
    V2,
}

/// A user's template for containerd's configuration. It replaces ours and may include it with `{{ template "base" . }}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTemplate {
    /// What `base` stands for in it.
    pub generation: TemplateGeneration,
    /// Its content.
    pub text: String,
}

impl TemplateGeneration {
    /// In the order in which k3s looks for them: only the first that is there counts.
    pub const ALL: [Self; 2] = [Self::V3, Self::V2];

    /// What the template is called in `<data>/agent/etc/containerd`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::V3 => "config-v3.toml.tmpl",
            Self::V2 => "config.toml.tmpl",
        }
    }
}

impl UserTemplate {
    /// The one that counts in `<data>/agent/etc/containerd`, and its file.
    ///
    /// # Errors
    /// A template that is there and cannot be read.
    pub fn find(folder: &Path) -> Result<Option<(PathBuf, Self)>, UserConfigError> {
        for generation in TemplateGeneration::ALL {
            let path = folder.join(generation.file_name());
            if let Some(text) = user_config::read(&path)? {
                return Ok(Some((path, Self { generation, text })));
            }
        }
        Ok(None)
    }

    /// Looks whether all of it is served, without a node to render it for.
    ///
    /// # Errors
    /// What is not, with its line.
    pub fn check(&self, node: &NodeConfig, paths: &Paths) -> Result<(), TemplateError> {
        template::render(&self.text, "", &fields(node, CgroupDriver::Cgroupfs, paths)).map(drop)
    }
}

/// containerd for `node`, with `pause_image` as the sandbox of pods. The components' folder is put before the `PATH` of `inherited`.
///
/// # Errors
/// A template with more of Go's than is served.
pub fn containerd(
    node: &Node,
    paths: &Paths,
    found: &Components,
    pause_image: &str,
    user_template: Option<&UserTemplate>,
    inherited: &InheritedEnvironment,
) -> Result<Launch, TemplateError> {
    let etc = paths.agent_etc("containerd");
    let base = |generation| base_config(generation, node, paths, found, pause_image);
    let content = match user_template {
        Some(UserTemplate { generation, text }) => {
            template::render(text, &base(*generation), &fields(&node.config, node.cgroup_driver, paths))?
        }
        None => base(TemplateGeneration::V3),
    };
    let root = paths.agent().join("containerd");
    let mut path = OsString::new();
    // The shim that containerd finds first.
    if node.profile == Profile::Small {
        path.push(found.folder_of(SHARED_SHIM));
        path.push(":");
    }
    path.push(found.folder_of(SHIM));
    path.push(":");
    path.push(inherited.path());
    let mut env = inherited.of_containerd();
    env.insert("PATH".into(), path);
    inherited.add_unless_given(&mut env, COLLECTOR.env(node.profile));
    let mut args = vec![OsString::from("-c"), etc.join("config.toml").into_os_string()];
    args.extend(
        inherited.containerd_log_level().into_iter().flat_map(|level| ["--log-level".into(), level.to_owned()]),
    );
    Ok(Launch {
        files: vec![File { path: etc.join("config.toml"), content }],
        program: Program {
            args,
            env,
            readiness: Probe::UnixSocket { path: paths.containerd_socket() },
            oom_score_adj: Some(-999),
            descendants: Descendants::Outlive,
            log_file: Some(root.join("containerd.log")),
            ..Program::new("containerd", found.path("containerd"))
        },
    })
}

fn base_config(
    generation: TemplateGeneration,
    node: &Node,
    paths: &Paths,
    found: &Components,
    pause_image: &str,
) -> String {
    let string = |path: &Path| quoted(&path.display().to_string());
    let (version, imports) = match generation {
        TemplateGeneration::V3 => (3, "containerd/config-v3.toml.d/*.toml"),
        TemplateGeneration::V2 => (2, "containerd/config.toml.d/*.toml"),
    };
    let values = Values {
        snapshotter: quoted(snapshotter(node.config.snapshotter)),
        nonroot_devices: node.config.nonroot_devices,
        restrict_oom: !node.may_lower_oom_score,
        pause: quoted(pause_image),
        certs: string(&paths.agent_etc(CERTS_D)),
        cni_bin: string(&found.folder_of("cni/bridge")),
        cni_conf: string(&paths.agent_etc("cni/net.d")),
        default_runtime: quoted(node.config.default_runtime.as_deref().unwrap_or("runc")),
        runc: string(&found.path("runc")),
        systemd_cgroup: node.cgroup_driver == CgroupDriver::Systemd,
        shim_cgroup: node.shim_cgroup.as_deref().map(|cgroup| format!("\n  ShimCgroup = {}", quoted(cgroup))),
    };
    let cri = match generation {
        TemplateGeneration::V3 => values.v3(),
        TemplateGeneration::V2 => values.v2(),
    };
    format!(
        "\
# Written by k3s at each start. To change it, put a template beside it: config-v3.toml.tmpl, with {{{{ template \"base\" . }}}} for this text.
version = {version}
root = {root}
state = {state}
imports = [{imports}]

[grpc]
  address = {address}

[plugins.'io.containerd.internal.v1.opt']
  path = {opt}

{cri}",
        root = string(&paths.agent().join("containerd")),
        state = string(&paths.run().join("containerd")),
        imports = string(&paths.agent_etc(imports)),
        address = string(&paths.containerd_socket()),
        opt = string(&paths.agent().join("containerd")),
    )
}

/// What the CRI plugins are told, in either format; strings are TOML's.
struct Values {
    snapshotter: String,
    nonroot_devices: bool,
    restrict_oom: bool,
    pause: String,
    certs: String,
    cni_bin: String,
    cni_conf: String,
    default_runtime: String,
    runc: String,
    systemd_cgroup: bool,
    /// A whole line, where there is one.
    shim_cgroup: Option<String>,
}

impl Values {
    fn v3(&self) -> String {
        let Self { snapshotter, nonroot_devices, restrict_oom, pause, certs, .. } = self;
        let Self { cni_bin, cni_conf, default_runtime, runc, systemd_cgroup, .. } = self;
        let shim_cgroup = self.shim_cgroup.as_deref().unwrap_or_default();
        format!(
            "\
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
"
        )
    }

    fn v2(&self) -> String {
        let Self { snapshotter, nonroot_devices, restrict_oom, pause, certs, .. } = self;
        let Self { cni_bin, cni_conf, default_runtime, runc, systemd_cgroup, .. } = self;
        let shim_cgroup = self.shim_cgroup.as_deref().unwrap_or_default();
        format!(
            "\
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = '127.0.0.1'
  stream_server_port = '10010'
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  device_ownership_from_security_context = {nonroot_devices}
  restrict_oom_score_adj = {restrict_oom}
  sandbox_image = {pause}

[plugins.'io.containerd.grpc.v1.cri'.containerd]
  snapshotter = {snapshotter}
  disable_snapshot_annotations = true
  default_runtime_name = {default_runtime}

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
  BinaryName = {runc}
  SystemdCgroup = {systemd_cgroup}{shim_cgroup}

[plugins.'io.containerd.grpc.v1.cri'.cni]
  bin_dir = {cni_bin}
  conf_dir = {cni_conf}

[plugins.'io.containerd.grpc.v1.cri'.registry]
  config_path = {certs}
"
        )
    }
}

/// The fields that k3s documents for templates, as far as they mean something here.
fn fields(node: &NodeConfig, cgroup_driver: CgroupDriver, paths: &Paths) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (".NodeConfig.Containerd.Root", paths.agent().join("containerd").display().to_string()),
        (".NodeConfig.Containerd.State", paths.run().join("containerd").display().to_string()),
        (".NodeConfig.Containerd.Address", paths.containerd_socket().display().to_string()),
        (".NodeConfig.Containerd.Opt", paths.agent().join("containerd").display().to_string()),
        (".NodeConfig.AgentConfig.NodeName", node.name.clone()),
        (".NodeConfig.AgentConfig.CNIConfDir", paths.agent_etc("cni/net.d").display().to_string()),
        (".NodeConfig.AgentConfig.Snapshotter", snapshotter(node.snapshotter).to_owned()),
        (".SystemdCgroup", (cgroup_driver == CgroupDriver::Systemd).to_string()),
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
        rendered_for(TemplateGeneration::V3, node, template)
    }

    fn rendered_for(
        generation: TemplateGeneration,
        node: &Node,
        template: Option<&str>,
    ) -> Result<String, TemplateError> {
        let inherited = InheritedEnvironment::new([], &node.network, &[]);
        let template = template.map(|text| UserTemplate { generation, text: text.into() });
        let launch = containerd(node, &paths(), &found(), "pause:1", template.as_ref(), &inherited)?;
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
    fn a_small_nodes_pods_share_a_shim() {
        let path = |profile| {
            let node = Node { profile, ..node(&[]) };
            let inherited = InheritedEnvironment::new([("PATH".into(), "/bin".into())], &node.network, &[]);
            let launch = containerd(&node, &paths(), &found(), "pause:1", None, &inherited).unwrap();
            launch.program.env[&OsString::from("PATH")].clone()
        };
        assert_eq!(path(Profile::Small), "shared-shim::/bin");
        assert_eq!(path(Profile::Standard), ":/bin");
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

    #[test]
    fn a_template_is_for_the_format_that_its_name_tells() {
        let node = node(&["--snapshotter=native", "--default-runtime=crun"]);
        let older = rendered_for(TemplateGeneration::V2, &node, Some("{{ template \"base\" . }}")).unwrap();
        for line in [
            "version = 2",
            "imports = ['/data/agent/etc/containerd/config.toml.d/*.toml']",
            "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]",
            "  sandbox_image = 'pause:1'",
            "  snapshotter = 'native'",
            "  default_runtime_name = 'crun'",
            "  conf_dir = '/data/agent/etc/cni/net.d'",
        ] {
            assert!(older.lines().any(|found| found == line), "{line}: {older}");
        }
        assert!(!older.contains("cri.v1"), "{older}");
        let folder = tempfile::tempdir().unwrap();
        let found =
            || UserTemplate::find(folder.path()).unwrap().map(|(_, template)| (template.generation, template.text));
        assert_eq!(found(), None);
        std::fs::write(folder.path().join("config.toml.tmpl"), "older").unwrap();
        assert_eq!(found(), Some((TemplateGeneration::V2, "older".into())));
        std::fs::write(folder.path().join("config-v3.toml.tmpl"), "newer").unwrap();
        assert_eq!(found(), Some((TemplateGeneration::V3, "newer".into())));
    }
}
