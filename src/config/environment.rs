//! What the process brings along, as plain values.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// Where parsing looks beside the command line; nothing in this crate asks the process itself.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The variables, as `std::env::vars_os` gives them.
    pub variables: HashMap<OsString, OsString>,
    /// The host's name: the node's name unless one is given.
    pub hostname: String,
    /// Where relative paths start.
    pub directory: PathBuf,
    /// The configuration file that is read if it is there and no other is named.
    pub config_file: PathBuf,
}

impl Environment {
    /// The file that k3s reads.
    pub const CONFIG_FILE: &str = "/etc/rancher/k3s/config.yaml";

    /// A variable that is set to something; k3s takes an empty one as not set.
    pub(crate) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The whole path of what somebody wrote: as in k3s it may begin with the home folder (`~/`, `$HOME/`). Files and service managers know
    /// no shell that would put it in.
    ///
    /// # Errors
    /// A problem with its remedy, where a home or another variable is asked for that nobody puts in.
    pub(crate) fn path(&self, text: &str) -> Result<PathBuf, String> {
        let after_home = ["~", "$HOME", "${HOME}"].iter().find_map(|home| text.strip_prefix(home));
        match after_home.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            Some(rest) => {
                let home = self.variable("HOME");
                let home =
                    home.ok_or_else(|| format!("`{text}` needs HOME, which is not set; write the whole path"))?;
                Ok(self.directory.join(home).join(rest.trim_start_matches('/')))
            }
            None if text.starts_with(['~', '$']) => {
                Err(format!("nothing is put in for the beginning of `{text}`; write the whole path"))
            }
            None => Ok(self.directory.join(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::test_host::Host;

    #[test]
    fn paths_may_begin_with_the_home_folder() {
        let host = Host::new().variable("HOME", "/home/pi");
        let data_dir = |host: &Host, text: &str| Ok(host.server(&["--data-dir", text])?.0.data_dir);
        for (text, expected) in [
            ("~", "/home/pi".into()),
            ("~/k3s", "/home/pi/k3s".into()),
            ("$HOME/k3s", "/home/pi/k3s".into()),
            ("${HOME}/k3s", "/home/pi/k3s".into()),
            ("/srv/~", "/srv/~".into()),
            ("k3s", host.path("k3s")),
            ("./~", host.path("./~")),
        ] {
            assert_eq!(data_dir(&host, text).map_err(|error: crate::Error| error.to_string()), Ok(expected), "{text}");
        }
        for text in ["~pi/k3s", "$DATA/k3s", "$HOMES"] {
            let error = data_dir(&host, text).expect_err(text).to_string();
            assert!(
                error.starts_with("--data-dir: nothing is put in") && error.ends_with("write the whole path"),
                "{error}"
            );
        }
        let error = data_dir(&Host::new(), "~/k3s").expect_err("there is no home").to_string();
        assert!(error.contains("needs HOME"), "{error}");
    }

    #[test]
    fn every_path_is_put_together_in_the_same_way() {
        let host =
            Host::new().file("home/token", "secret").file("home/registries.yaml", "").file("home/resolv.conf", "");
        let home = host.path("home");
        let host = host.variable("HOME", home.to_str().expect("it is text")).config(
            "token-file: ~/token\nprivate-registry: $HOME/registries.yaml\nresolv-conf: ~/resolv.conf\nsnapshot-dir: ~/s\n\
             write-kubeconfig: ~/k3s.yaml\n",
        );
        let (config, _) = host.server(&[]).expect("a valid configuration");
        let node = config.node.expect("a server is a node");
        assert_eq!(config.token.expect("it was given").expose(), "secret");
        assert_eq!(
            [node.registries, node.resolv_conf.expect("it was given"), config.snapshots.folder, config.kubeconfig.path],
            ["registries.yaml", "resolv.conf", "s", "k3s.yaml"].map(|name| home.join(name))
        );
    }
}
