//! What components inherit of proxies.
//!
//! They go by the proxies that this process was started with, except for what lies in the cluster: as in k3s, `NO_PROXY` gets the pod and
//! Service ranges and the cluster's domains. containerd alone gets what begins with `CONTAINERD_`, without that.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    net::IpAddr,
};

use k3s_config::network::ClusterNetwork;
use k3s_supervise::program::Program;

use crate::resources::{GOGC, GOMEMLIMIT};

/// Variables that name a proxy, in each of their spellings.
const PROXIES: [[&str; 2]; 3] =
    [["HTTP_PROXY", "http_proxy"], ["HTTPS_PROXY", "https_proxy"], ["ALL_PROXY", "all_proxy"]];
/// Variables that name what is reached without one.
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];
const CONTAINERD: &str = "CONTAINERD_";
/// k3s makes a flag of it.
const LOG_LEVEL: &str = "LOG_LEVEL";

type Variables = BTreeMap<OsString, OsString>;

/// This process's own environment, and what components reach directly whatever it says.
#[derive(Debug, Clone)]
pub struct InheritedEnvironment {
    variables: Variables,
    direct: Vec<String>,
}

impl InheritedEnvironment {
    /// `own` are addresses of this machine by which components reach each other.
    pub fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        network: &ClusterNetwork,
        own: &[IpAddr],
    ) -> Self {
        let ranges = network.cluster_cidrs.iter().chain(&network.service_cidrs).map(ToString::to_string);
        let domains = [".svc".to_owned(), format!(".{}", network.cluster_domain)];
        let direct = domains.into_iter().chain(ranges).chain(own.iter().map(ToString::to_string)).collect();
        Self { variables: variables.into_iter().collect(), direct }
    }

    /// What a component's environment has instead of what it inherits; nothing where no proxy is named.
    fn of_component(&self) -> BTreeMap<OsString, OsString> {
        let mut changed = Variables::new();
        self.make_exceptions(&mut changed);
        changed
    }

    /// Puts that into the environment of `program`, and takes out of it what this process was started with for all of them: how Go collects.
    pub fn adapt(&self, program: &mut Program) {
        program.env.extend(self.of_component());
        for name in [GOGC, GOMEMLIMIT].map(OsStr::new) {
            if self.variables.contains_key(name) {
                program.env.remove(name);
            }
        }
    }

    /// The same for containerd, which pulls images and may have proxies of its own.
    pub(crate) fn of_containerd(&self) -> BTreeMap<OsString, OsString> {
        let mut changed = Variables::new();
        for (name, value) in &self.variables {
            match name.to_str().and_then(|name| name.strip_prefix(CONTAINERD)) {
                None | Some("" | LOG_LEVEL) => {}
                Some(name) => drop(changed.insert(name.into(), value.clone())),
            }
        }
        // Go reads one spelling first, whichever was meant.
        for [upper, lower] in PROXIES.into_iter().chain([EXCEPTIONS]) {
            match (changed.get(OsStr::new(upper)).cloned(), changed.get(OsStr::new(lower)).cloned()) {
                (Some(value), None) => drop(changed.insert(lower.into(), value)),
                (None, Some(value)) => drop(changed.insert(upper.into(), value)),
                _ => {}
            }
        }
        self.make_exceptions(&mut changed);
        changed
    }

    /// Adds `defaults` to `env`, but for what it has or this process was started with.
    pub(crate) fn add_unless_given(&self, env: &mut Variables, defaults: Variables) {
        for (name, value) in defaults {
            if !self.variables.contains_key(&name) {
                env.entry(name).or_insert(value);
            }
        }
    }

    /// `CONTAINERD_LOG_LEVEL`.
    pub(crate) fn containerd_log_level(&self) -> Option<&OsStr> {
        let level = self.variables.get(OsStr::new("CONTAINERD_LOG_LEVEL"))?;
        (!level.is_empty()).then_some(level)
    }

    /// The folders that components look for other programs in.
    pub(crate) fn path(&self) -> &OsStr {
        let usual = OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin");
        self.variables.get(OsStr::new("PATH")).map_or(usual, OsString::as_os_str)
    }

    fn make_exceptions(&self, changed: &mut Variables) {
        let value = |name: &str| {
            let found = changed.get(OsStr::new(name)).or_else(|| self.variables.get(OsStr::new(name)));
            found.filter(|value| !value.is_empty()).map(|value| value.to_string_lossy())
        };
        if PROXIES.as_flattened().iter().all(|name| value(name).is_none()) {
            return;
        }
        let mut exceptions = Vec::new();
        for text in EXCEPTIONS.iter().filter_map(|name| value(name)) {
            exceptions.extend(text.split(',').map(|item| item.trim().to_owned()));
        }
        exceptions.extend(self.direct.iter().cloned());
        let mut joined = Vec::<String>::new();
        for item in exceptions {
            if !item.is_empty() && !joined.contains(&item) {
                joined.push(item);
            }
        }
        for name in EXCEPTIONS {
            changed.insert(name.into(), joined.join(",").into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    fn inherited(variables: &[(&str, &str)]) -> InheritedEnvironment {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        InheritedEnvironment::new(variables, &config(&[]).network, &["192.0.2.7".parse().unwrap()])
    }

    fn value(environment: &Variables, name: &str) -> Option<String> {
        environment.get(OsStr::new(name)).map(|value| value.to_string_lossy().into_owned())
    }

    const CLUSTER: &str = ".svc,.cluster.local,10.42.0.0/16,10.43.0.0/16,192.0.2.7";

    #[test]
    fn what_lies_in_the_cluster_is_reached_without_a_proxy() {
        for (variables, expected) in [
            (vec![("HTTPS_PROXY", "http://proxy:3128")], CLUSTER.to_owned()),
            (vec![("https_proxy", "http://p"), ("NO_PROXY", "a, b"), ("no_proxy", "b,c")], format!("a,b,c,{CLUSTER}")),
        ] {
            let environment = inherited(&variables).of_component();
            for name in EXCEPTIONS {
                assert_eq!(value(&environment, name), Some(expected.clone()), "{variables:?}");
            }
            assert_eq!(environment.len(), 2, "{variables:?}");
        }
    }

    #[test]
    fn what_the_user_says_of_the_collector_counts_for_all() {
        let env = |variables: &[(&str, &str)]| {
            let mut program = Program::new("kubelet", "kubelet");
            program.env.insert(GOGC.into(), "50".into());
            inherited(variables).adapt(&mut program);
            program.env
        };
        assert_eq!(env(&[("GOMEMLIMIT", "90MiB")])[OsStr::new(GOGC)], "50");
        assert!(env(&[("GOGC", "off")]).is_empty());
    }

    #[test]
    fn without_a_proxy_nothing_is_said_of_one() {
        assert!(inherited(&[("NO_PROXY", "a"), ("HTTPS_PROXY", ""), ("PATH", "/bin")]).of_component().is_empty());
        assert!(inherited(&[]).of_containerd().is_empty());
    }

    #[test]
    fn containerds_own_variables_reach_containerd_alone_and_without_their_prefix() {
        let inherited = inherited(&[
            ("CONTAINERD_HTTP_PROXY", "http://plain:1"),
            ("CONTAINERD_https_proxy", "http://own:2"),
            ("CONTAINERD_NO_PROXY", "registry.lan"),
            ("CONTAINERD_LOG_LEVEL", "debug"),
            ("HTTPS_PROXY", "http://everybody:3"),
            ("NO_PROXY", "everybody.lan"),
        ]);
        let environment = inherited.of_containerd();
        for (name, expected) in [
            ("HTTP_PROXY", Some("http://plain:1")),
            ("HTTPS_PROXY", Some("http://own:2")),
            ("https_proxy", Some("http://own:2")),
            ("NO_PROXY", Some(&*format!("registry.lan,{CLUSTER}"))),
            ("LOG_LEVEL", None),
            ("CONTAINERD_HTTP_PROXY", None),
        ] {
            assert_eq!(value(&environment, name).as_deref(), expected, "{name}");
        }
        assert_eq!(inherited.containerd_log_level(), Some(OsStr::new("debug")));
        let others = inherited.of_component();
        assert_eq!(value(&others, "HTTP_PROXY"), None);
        assert_eq!(value(&others, "NO_PROXY"), Some(format!("everybody.lan,{CLUSTER}")));
    }
}
