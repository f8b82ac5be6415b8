//! What a profile means for the programs: how Go collects. The figures behind each number are in `docs/resources.md`.

use std::{collections::BTreeMap, ffi::OsString};

use k3s_config::resources::Profile;

/// How far a heap grows beyond what is in use before Go collects: a percentage.
pub(crate) const GOGC: &str = "GOGC";
/// The size that Go holds a whole program to by collecting more often; it fails nothing (runtime documentation, "Environment Variables").
pub(crate) const GOMEMLIMIT: &str = "GOMEMLIMIT";

/// What Go's collector is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Collector {
    /// On a standard node; `None` for Go's own 100.
    pub(crate) standard: Option<u32>,
    /// On a small one.
    pub(crate) small: u32,
}

impl Collector {
    /// A program's environment.
    pub(crate) fn env(self, profile: Profile) -> BTreeMap<OsString, OsString> {
        let percent = match profile {
            Profile::Small => Some(self.small),
            Profile::Standard => self.standard,
        };
        percent.map(|percent| (GOGC.into(), percent.to_string().into())).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use k3s_supervise::program::Program;

    use super::*;
    use crate::{
        InheritedEnvironment, UserConfigs, containerd, kube_apiserver, kube_controller_manager, kube_proxy,
        kube_scheduler, kubelet,
        testing::{config, found, node, paths},
    };

    #[test]
    fn a_small_node_collects_more_often() {
        let percents = |profile| {
            let (config, node) = (config(&[]), crate::Node { profile, ..node(&[]) });
            let plane = config.control_plane("10.0.0.2".parse().unwrap(), profile);
            let (paths, found, user) = (paths(), found(), UserConfigs::default());
            let inherited = InheritedEnvironment::new([], &node.network, &[]);
            let percent = |program: Program| {
                program.env.get(&OsString::from(GOGC)).map(|percent| percent.to_string_lossy().into_owned())
            };
            [
                kube_apiserver(plane, &paths, &found),
                kube_controller_manager(plane, &paths, &found),
                kube_scheduler(plane, &paths, &found),
                kubelet(&node, &paths, &found, &user),
                kube_proxy(&node, &paths, &found, &user),
                containerd(&node, &paths, &found, "pause:1", None, &inherited).unwrap(),
            ]
            .map(|launch| percent(launch.program).unwrap_or_else(|| "100".to_owned()))
        };
        assert_eq!(percents(Profile::Small), ["25", "25", "25", "50", "50", "50"]);
        assert_eq!(percents(Profile::Standard), ["50", "100", "100", "100", "100", "100"]);
    }
}
