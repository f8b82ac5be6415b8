//! From many sources to one set of values.
//!
//! Lowest to highest: defaults, variables, the configuration file, its drop-ins by name, the command line. As in k3s, files act
//! as if their settings stood on the command line before what really stands there. So for a flag with one value the last source
//! wins; for a list, a drop-in replaces what earlier files hold (`key+` adds to it), the command line adds to the files, and a
//! variable counts only if neither has the flag.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    environment::Environment,
    error::{Error, Origin, Place, UnknownKey, Warning},
    file::{self, Setting},
    flags::{Flag, FlagSupport, Kind, Refusal, Role, read_command_line},
    provenance::Provenance,
    values::{Given, Values},
};

/// Reads all sources for `role`; `args` is what follows the verb.
pub(crate) fn collect(
    role: Role,
    args: &[OsString],
    environment: &Environment,
) -> Result<(Values, Vec<Warning>), Error> {
    let mut warnings = Vec::new();
    let (mut layers, path) = Layers::read(role, args, environment, &mut warnings)?;
    let provenance = Provenance::new(role, &layers.file_arguments(), args, &environment.variables);
    let mut given = BTreeMap::<_, Vec<_>>::new();
    for flag in Flag::of(role) {
        let values = layers.take(flag, environment)?;
        let Some(first) = values.first() else { continue };
        for value in &values {
            if let Some(refusal) = flag.refusal(&value.text) {
                return Err(value.not_served(refusal));
            }
        }
        let place = first.place.clone();
        match flag.support {
            FlagSupport::Renamed(name) => {
                warnings.push(Warning::Deprecated { place, instead: format!("--{name}") });
                // The old name never wins over the new one.
                given.entry(name).or_default().splice(0..0, values);
            }
            FlagSupport::Synonym(name) => {
                given.entry(name).or_default().splice(0..0, values);
            }
            FlagSupport::Deprecated(instead) => {
                warnings.push(Warning::Deprecated { place, instead: instead.to_owned() });
                given.entry(flag.name).or_default().extend(values);
            }
            FlagSupport::Served
            | FlagSupport::Accepted(_)
            | FlagSupport::Unserved(_)
            | FlagSupport::UnservedValues(..) => {
                given.entry(flag.name).or_default().extend(values);
            }
        }
    }
    if let Some(given) = given.get("config").and_then(|given| given.last())
        && given.path(environment)? != path
    {
        warnings.push(Warning::ConfigNotRead { place: given.place.clone(), read: path });
    }
    Ok((Values { role, given, provenance }, warnings))
}

/// What is asked for, refused or not: for those who look for a node and do not start one.
pub(crate) fn look_up(role: Role, args: &[OsString], environment: &Environment) -> Result<Values, Error> {
    let (mut layers, _) = Layers::read(role, args, environment, &mut Vec::new())?;
    let provenance = Provenance::new(role, &layers.file_arguments(), args, &environment.variables);
    let mut given = BTreeMap::new();
    for flag in Flag::of(role) {
        given.insert(flag.name, layers.take(flag, environment)?);
    }
    Ok(Values { role, given, provenance })
}

/// What each source says, by flag.
struct Layers {
    command_line: BTreeMap<&'static str, Vec<Given>>,
    files: BTreeMap<&'static str, Vec<Given>>,
    /// The files' flags in the order in which they first appear.
    file_order: Vec<&'static str>,
}

impl Layers {
    /// What command line and files say, and the file that they come from.
    fn read(
        role: Role,
        args: &[OsString],
        environment: &Environment,
        warnings: &mut Vec<Warning>,
    ) -> Result<(Self, PathBuf), Error> {
        let mut layers = Self { command_line: BTreeMap::new(), files: BTreeMap::new(), file_order: Vec::new() };
        for (flag, values) in read_command_line(role, args)? {
            let place = Place { flag: flag.name, origin: Origin::CommandLine };
            let given = values.into_iter().map(|value| Given::new(flag, place.clone(), value));
            layers.command_line.insert(flag.name, given.collect::<Result<_, _>>()?);
        }
        let path = layers.read_files(role, environment, warnings)?;
        Ok((layers, path))
    }

    /// Reads the configuration file, and tells which it is. As in k3s the variable wins over the flag.
    fn read_files(
        &mut self,
        role: Role,
        environment: &Environment,
        warnings: &mut Vec<Warning>,
    ) -> Result<PathBuf, Error> {
        let flag = Flag::find(role, "config").expect("it is in the table");
        let variable = variable(flag, environment)?;
        let named = variable.or_else(|| self.command_line.get("config").and_then(|given| given.last()).cloned());
        let path = match &named {
            Some(given) if given.text.starts_with("http://") || given.text.starts_with("https://") => {
                return Err(given.not_served(Refusal {
                    what: "a configuration file from the network",
                    instead: "fetch it and name the file",
                }));
            }
            Some(given) => given.path(environment)?,
            None => environment.config_file.clone(),
        };
        for setting in file::read(&path, named.as_ref().map(|given| &given.place.origin))? {
            match Flag::find(role, &setting.key) {
                Some(flag) => self.add_setting(flag, setting)?,
                // Servers and agents may share a file.
                None if Flag::find(role.other(), &setting.key).is_some() => {}
                None => warnings.push(Warning::UnknownKey(UnknownKey {
                    path: setting.path.to_path_buf(),
                    line: setting.line,
                    nearest: Flag::nearest(role, &setting.key),
                    key: setting.key,
                })),
            }
        }
        Ok(path)
    }

    fn add_setting(&mut self, flag: &'static Flag, setting: Setting) -> Result<(), Error> {
        let origin = |line| Origin::File { path: Arc::clone(&setting.path), line };
        if flag.kind != Kind::List && setting.values.len() > 1 {
            return Err(Error::Invalid {
                place: Place { flag: flag.name, origin: origin(setting.line) },
                problem: "the value is a list; this key takes one value".to_owned(),
            });
        }
        let mut given = Vec::with_capacity(setting.values.len());
        for value in setting.values {
            given.push(Given::new(flag, Place { flag: flag.name, origin: origin(value.line) }, value.text.into())?);
        }
        if !self.file_order.contains(&flag.name) {
            self.file_order.push(flag.name);
        }
        let before = self.files.entry(flag.name).or_default();
        if !setting.append {
            let same_file =
                |given: &Given| matches!(&given.place.origin, Origin::File { path, .. } if *path == setting.path);
            if before.iter().any(same_file) {
                return Err(Error::Invalid {
                    place: Place { flag: flag.name, origin: origin(setting.line) },
                    problem: format!("`{}` sets again what this file sets above; merge the two", setting.key),
                });
            }
            before.clear();
        }
        before.extend(given);
        Ok(())
    }

    /// The files' settings as the arguments that k3s would make of them.
    fn file_arguments(&self) -> Vec<String> {
        let given = self.file_order.iter().flat_map(|name| self.files.get(name).into_iter().flatten());
        given.flat_map(|given| [format!("--{}", given.place.flag), given.text.clone()]).collect()
    }

    /// All values that count for a flag, the last one the highest.
    fn take(&mut self, flag: &'static Flag, environment: &Environment) -> Result<Vec<Given>, Error> {
        let mut values = self.files.remove(flag.name).unwrap_or_default();
        values.extend(self.command_line.remove(flag.name).unwrap_or_default());
        if values.is_empty() {
            values.extend(variable(flag, environment)?);
        }
        if flag.kind != Kind::List && values.len() > 1 {
            values.drain(..values.len() - 1);
        }
        Ok(values)
    }
}

fn variable(flag: &'static Flag, environment: &Environment) -> Result<Option<Given>, Error> {
    let Some(name) = flag.variable else { return Ok(None) };
    let place = Place { flag: flag.name, origin: Origin::Variable(name) };
    environment.variable(name).map(|value: &OsStr| Given::new(flag, place, value.to_owned())).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use crate::{Warning, test_host::Host};

    fn names(host: &Host, args: &[&str]) -> Vec<String> {
        host.server(args).expect("a valid configuration").0.tls_sans
    }

    fn domain(host: &Host, args: &[&str]) -> String {
        host.server(args).expect("a valid configuration").0.network.cluster_domain
    }

    #[test]
    fn one_value_the_command_line_wins_over_drop_ins_over_the_file() {
        let host = Host::new().config("cluster-domain: main\n");
        assert_eq!(domain(&host, &[]), "main");
        let host = host.file("config.yaml.d/10.yaml", "cluster-domain: ten\n");
        let host = host.file("config.yaml.d/20.yml", "cluster-domain: twenty\n");
        let host = host.file("config.yaml.d/30.txt", "cluster-domain: ignored\n");
        assert_eq!(domain(&host, &[]), "twenty");
        assert_eq!(domain(&host, &["--cluster-domain=one", "--cluster-domain", "two"]), "two");
    }

    #[test]
    fn lists_a_drop_in_replaces_and_the_command_line_adds() {
        let host = Host::new().config("tls-san: [a, b]\n");
        assert_eq!(names(&host, &["--tls-san=c,d"]), ["a", "b", "c", "d"]);
        let host = host.file("config.yaml.d/10.yaml", "tls-san: x\n");
        assert_eq!(names(&host, &["--tls-san=c"]), ["x", "c"]);
        let host = host.file("config.yaml.d/20.yaml", "tls-san+: [y, z]\n");
        assert_eq!(names(&host, &["--tls-san=c"]), ["x", "y", "z", "c"]);
    }

    #[test]
    fn a_key_without_a_value_unsets_what_earlier_files_say() {
        let host = Host::new().config("tls-san: a\n").file("config.yaml.d/10.yaml", "tls-san:\n");
        assert_eq!(names(&host, &[]), [""; 0]);
    }

    #[test]
    fn a_variable_counts_only_where_nothing_else_speaks() {
        let host = Host::new().variable("K3S_NODE_NAME", "from-env");
        let name = |host: &Host, args: &[&str]| host.server(args).expect("a valid configuration").0.node_name;
        assert_eq!(name(&host, &[]), "from-env");
        let host = host.config("node-name: from-file\n");
        assert_eq!(name(&host, &[]), "from-file");
        assert_eq!(name(&host.variable("K3S_DEBUG", ""), &["--node-name=from-flag"]), "from-flag");
    }

    #[test]
    fn keys_may_be_letters() {
        let host = Host::new().config("d: state\nt: secret\n");
        let (config, _) = host.server(&["-v2"]).expect("a valid configuration");
        assert_eq!(config.data_dir, host.path("state"));
        assert_eq!(config.token.expect("it was given").expose(), "secret");
        assert_eq!(config.verbosity, 2);
    }

    #[test]
    fn switches_take_the_words_that_go_and_yaml_know() {
        for (yaml, on) in [("true", true), ("yes", true), ("1", true), ("T", true), ("off", false), ("False", false)] {
            let host = Host::new().config(&format!("debug: {yaml}\n"));
            assert_eq!(host.server(&[]).expect("a valid configuration").0.debug, on, "{yaml}");
        }
        let host = Host::new().config("disable-agent: true\n");
        assert!(host.server(&[]).expect("a valid configuration").0.node.is_none());
        assert!(host.server(&["--disable-agent=false"]).expect("a valid configuration").0.node.is_some());
    }

    #[test]
    fn what_is_refused_may_be_overridden_and_may_ask_for_its_default() {
        let host = Host::new().config("etcd-s3: true\n");
        assert!(host.server(&[]).is_err());
        assert!(host.server(&["--etcd-s3=false"]).is_ok());
        assert!(host.server(&["--etcd-s3=false", "--etcd-s3-retention=5"]).is_ok());
    }

    #[test]
    fn old_names_still_work_and_say_so() {
        let host = Host::new().config("kube-controller-arg: v=1\nkube-controller-manager-arg: v=2\n");
        let (config, warnings) = host.server(&["--cluster-secret=old", "--no-flannel"]).expect("a valid configuration");
        assert_eq!(config.args.kube_controller_manager.value_of("v"), Some("2"));
        assert_eq!(config.token.expect("it was given").expose(), "old");
        assert_eq!(config.network.overlay, crate::network::Overlay::None);
        let told: Vec<_> = warnings.iter().map(|warning| host.anonymous(warning)).collect();
        assert_eq!(
            told,
            [
                "--cluster-secret is deprecated; use --token.",
                "DIR/config.yaml line 1, kube-controller-arg is deprecated; use --kube-controller-manager-arg.",
                "--no-flannel is deprecated; use --flannel-backend=none.",
            ]
        );
    }

    #[test]
    fn the_variable_wins_over_the_flag_for_the_file_itself() {
        let host = Host::new().file("a.yaml", "cluster-domain: a\n").file("b.yaml", "cluster-domain: b\n");
        assert_eq!(domain(&host, &["-c", "a.yaml"]), "a");
        let host = host.variable("K3S_CONFIG_FILE", "b.yaml");
        let (config, warnings) = host.server(&["--config=a.yaml"]).expect("a valid configuration");
        assert_eq!(config.network.cluster_domain, "b");
        assert!(matches!(&warnings[..], [Warning::ConfigNotRead { .. }]), "{warnings:?}");
    }

    #[test]
    fn a_node_tells_how_it_was_started() {
        let host = Host::new().config("token: s3cret\ntls-san: [a]\nfrobnicate: 1\n").variable("K3S_TOKEN", "s3cret");
        let (config, _) = host.server(&["--tls-san=b", "-d", "state"]).expect("a valid configuration");
        let provenance = config.node.expect("a server is a node").provenance;
        let args = ["server", "--token", "********", "--tls-san", "a", "--tls-san", "b", "-d", "state"];
        assert_eq!(provenance.args, args);
        assert_eq!(provenance.variables, [("K3S_TOKEN".to_owned(), "********".to_owned())].into());
    }

    proptest! {
        /// Whoever speaks last among those who speak: variable, file, drop-in, command line.
        #[test]
        fn the_highest_source_wins(
            variable in option::of("[a-z]{1,8}"),
            file in option::of("[a-z]{1,8}"),
            drop_in in option::of("[a-z]{1,8}"),
            line in vec("[a-z]{1,8}", 0..3),
        ) {
            let mut host = Host::new();
            if let Some(name) = &variable {
                host = host.variable("K3S_NODE_NAME", name);
            }
            for (path, name) in [("config.yaml", &file), ("config.yaml.d/a.yaml", &drop_in)] {
                if let Some(name) = name {
                    host = host.file(path, format!("node-name: '{name}'\n"));
                }
            }
            let args: Vec<_> = line.iter().map(|name| format!("--node-name={name}")).collect();
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let expected = line.last().cloned().or(drop_in).or(file).or(variable).unwrap_or("pi".to_owned());
            prop_assume!(expected != "localhost");
            prop_assert_eq!(host.server(&args).expect("a valid configuration").0.node_name, expected);
        }

        /// Files in the order of their names, each replacing or adding; then the command line, which adds.
        #[test]
        fn lists_are_files_then_command_line(
            files in vec((any::<bool>(), vec("[a-z]{1,4}", 0..3)), 0..4),
            line in vec("[a-z]{1,4}", 0..3),
        ) {
            let mut host = Host::new();
            let mut expected = Vec::new();
            for (index, (append, names)) in files.iter().enumerate() {
                let plus = if *append { "+" } else { "" };
                let list: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
                host = host.file(&format!("config.yaml.d/{index}.yaml"), format!("tls-san{plus}: [{}]\n", list.join(", ")));
                if !append {
                    expected.clear();
                }
                expected.extend(names.iter().cloned());
            }
            let args: Vec<_> = line.iter().map(|name| format!("--tls-san={name}")).collect();
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            expected.extend(line.iter().cloned());
            prop_assert_eq!(names(&host, &args), expected);
        }
    }
}
