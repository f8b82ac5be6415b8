//! Every flag of `k3s server` and `k3s agent`, in one table: the command line, the configuration file's keys, the variables, the
//! help and the list of what is not served yet are all read from it.
//!
//! Names, letters, variables and defaults are those of k3s.

mod catalogue;
mod table;

use std::{ffi::OsString, fmt};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue, ErrorKind},
    value_parser,
};

use crate::error::Error;

pub use catalogue::{CatalogueEntry, catalogue};
use table::SECTIONS;
pub(crate) use table::SELINUX;

/// The two ways to run a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `k3s server`
    Server,
    /// `k3s agent`
    Agent,
}

/// The command line of a role, for help and completion scripts; [`parse_server`](crate::parse_server) and
/// [`parse_agent`](crate::parse_agent) read it.
pub fn command(role: Role) -> Command {
    let mut command = Command::new(role.verb())
        .about(role.about())
        .no_binary_name(true)
        .override_usage(format!("k3s {} [FLAGS]", role.verb()))
        .term_width(0)
        .arg(Arg::new(VERSION).long(VERSION).action(ArgAction::SetTrue).help("Print the version"));
    for section in SECTIONS {
        let flags = section.flags.iter().filter(|flag| flag.roles.include(role));
        command = command.next_help_heading(section.heading).args(flags.map(Flag::arg));
    }
    command
}

/// Whether values of the flag of this name, or of this letter, are secrets: they are shown nowhere.
pub fn is_secret(name: &str) -> bool {
    let flags = SECTIONS.iter().flat_map(|section| section.flags);
    let called = |flag: &Flag| flag.name == name || flag.short.is_some_and(|short| name.chars().eq([short]));
    flags.into_iter().any(|flag| flag.secret && called(flag))
}

impl Role {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Server, Self::Agent];

    /// The word after `k3s`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Server => Self::Agent,
            Self::Agent => Self::Server,
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Server => "Run a server: control plane, datastore and, unless told otherwise, a node",
            Self::Agent => "Run a node that joins a server",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb())
    }
}

/// One flag, as all sources know it.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) variable: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) secret: bool,
    pub(crate) support: FlagSupport,
    roles: Roles,
    /// What a value is, in the help.
    placeholder: &'static str,
    help: &'static str,
    hidden: bool,
}

/// How many values a flag holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// True or false; alone it means true.
    Switch,
    /// The last value given counts.
    Text,
    /// All values given count.
    List,
}

/// What becomes of a flag that is given.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FlagSupport {
    /// It is heeded.
    Served,
    /// It changes nothing, for this reason.
    Accepted(&'static str),
    /// Its values go to the flag of this name.
    Renamed(&'static str),
    /// Another name of the flag of this name.
    Synonym(&'static str),
    /// It is heeded; the text says what to use today.
    Deprecated(&'static str),
    /// It is refused, unless it asks for its own default.
    Unserved(Refusal),
    /// Only these values are refused.
    UnservedValues(&'static [&'static str], Refusal),
}

/// Why something that k3s has is refused here: `<what> is not served by this version; <instead>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What the flag stands for, as the start of a sentence.
    pub what: &'static str,
    /// What to do, as its end.
    pub instead: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roles {
    Server,
    Agent,
    Both,
}

/// Flags that the help shows together.
struct Section {
    heading: &'static str,
    flags: &'static [Flag],
}

impl Flag {
    /// The flag of `role` called `name`; a single letter is a short form.
    pub(crate) fn find(role: Role, name: &str) -> Option<&'static Self> {
        let mut letters = name.chars();
        let letter = letters.next().filter(|_| letters.next().is_none());
        Self::of(role).find(|flag| flag.name == name || (letter.is_some() && flag.short == letter))
    }

    /// The flags of `role`, in the table's order.
    pub(crate) fn of(role: Role) -> impl Iterator<Item = &'static Self> {
        SECTIONS.iter().flat_map(|section| section.flags).filter(move |flag| flag.roles.include(role))
    }

    /// What the server's flag of this name is where nobody gives it.
    pub(crate) fn default_of(name: &str) -> Option<&'static str> {
        Self::find(Role::Server, name).and_then(|flag| flag.default)
    }

    /// The name of `role`'s flags nearest to what somebody wrote, if it is near enough to be meant.
    pub(crate) fn nearest(role: Role, written: &str) -> Option<&'static str> {
        nearest(written, Self::of(role).map(|flag| flag.name))
    }

    /// Why `value` is refused, if it is.
    pub(crate) fn refusal(&self, value: &str) -> Option<Refusal> {
        let default = self.default.or((self.kind == Kind::Switch).then_some("false"));
        match self.support {
            FlagSupport::Unserved(refusal) if default != Some(value) => Some(refusal),
            FlagSupport::UnservedValues(values, refusal) if values.contains(&value) => Some(refusal),
            _ => None,
        }
    }

    fn arg(&self) -> Arg {
        let mut help = self.help.to_owned();
        for (what, text) in [("env", self.variable), ("default", self.default)] {
            if let Some(text) = text {
                help += &format!(" [{what}: {text}]");
            }
        }
        let k3s = SECTIONS.iter().flat_map(|section| section.flags);
        for synonym in k3s.filter(|flag| matches!(flag.support, FlagSupport::Synonym(name) if name == self.name)) {
            help += &format!(" [k3s: --{}]", synonym.name);
        }
        if let FlagSupport::Accepted(why) = self.support {
            help += &format!(" (changes nothing: {why})");
        }
        let hide = self.hidden || matches!(self.support, FlagSupport::Unserved(_));
        let arg = Arg::new(self.name).long(self.name).help(help).hide(hide).action(ArgAction::Append);
        let arg = arg.value_parser(value_parser!(OsString)).value_name(self.placeholder);
        let arg = match self.kind {
            Kind::Switch => {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true)
            }
            Kind::Text => arg.num_args(1),
            // The values of `--kubelet-arg` and its like may start with dashes.
            Kind::List => arg.num_args(1).allow_hyphen_values(self.name.ends_with("-arg")),
        };
        match self.short {
            Some(letter) => arg.short(letter),
            None => arg,
        }
    }

    const fn new(kind: Kind, name: &'static str, placeholder: &'static str, help: &'static str) -> Self {
        Self {
            name,
            short: None,
            variable: None,
            kind,
            default: None,
            secret: false,
            support: FlagSupport::Served,
            roles: Roles::Both,
            placeholder,
            help,
            hidden: false,
        }
    }

    const fn short(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    const fn env(self, variable: &'static str) -> Self {
        Self { variable: Some(variable), ..self }
    }

    const fn default(self, text: &'static str) -> Self {
        Self { default: Some(text), ..self }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn server(self) -> Self {
        Self { roles: Roles::Server, ..self }
    }

    const fn agent(self) -> Self {
        Self { roles: Roles::Agent, ..self }
    }

    const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    const fn accepted(self, why: &'static str) -> Self {
        Self { support: FlagSupport::Accepted(why), ..self }
    }

    const fn renamed(self, name: &'static str) -> Self {
        Self { support: FlagSupport::Renamed(name), hidden: true, ..self }
    }

    const fn synonym(self, name: &'static str) -> Self {
        Self { support: FlagSupport::Synonym(name), hidden: true, ..self }
    }

    const fn deprecated(self, instead: &'static str) -> Self {
        Self { support: FlagSupport::Deprecated(instead), hidden: true, ..self }
    }

    const fn unserved(self, refusal: Refusal) -> Self {
        Self { support: FlagSupport::Unserved(refusal), ..self }
    }

    const fn unserved_values(self, values: &'static [&'static str], refusal: Refusal) -> Self {
        Self { support: FlagSupport::UnservedValues(values, refusal), ..self }
    }
}

impl Roles {
    fn include(self, role: Role) -> bool {
        match self {
            Self::Both => true,
            Self::Server => role == Role::Server,
            Self::Agent => role == Role::Agent,
        }
    }
}

/// What the command line holds: each flag with its values, in the table's order.
pub(crate) fn read_command_line(role: Role, args: &[OsString]) -> Result<Vec<(&'static Flag, Vec<OsString>)>, Error> {
    let args = with_two_dashes(role, args);
    let mut matches = command(role).try_get_matches_from(&args).map_err(|error| explain(role, &args, &error))?;
    if matches.get_flag(VERSION) {
        return Err(Error::Version);
    }
    Ok(Flag::of(role).filter_map(|flag| Some((flag, matches.remove_many(flag.name)?.collect()))).collect())
}

/// `-data-dir` as `--data-dir`: Go programs take both, and clap would read it as `-d ata-dir`.
fn with_two_dashes(role: Role, args: &[OsString]) -> Vec<OsString> {
    let mut value_follows = false;
    let rewrite = |arg: &OsString| {
        let Some(text) = arg.to_str().filter(|text| text.starts_with('-') && !std::mem::take(&mut value_follows))
        else {
            value_follows = false;
            return arg.clone();
        };
        let bare = text.trim_start_matches('-');
        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value)));
        let Some(flag) = Flag::find(role, name) else { return arg.clone() };
        value_follows = flag.kind != Kind::Switch && value.is_none();
        if name.len() > 1 && !text.starts_with("--") { format!("-{text}").into() } else { arg.clone() }
    };
    args.iter().map(rewrite).collect()
}

/// The name nearest to what somebody wrote, if it is near enough to be meant.
pub(crate) fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    names
        .map(|name| (strsim::damerau_levenshtein(&written, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}

/// One sentence for what clap found.
fn explain(role: Role, args: &[OsString], error: &clap::Error) -> Error {
    if error.kind() == ErrorKind::DisplayHelp {
        return Error::Help(error.render().to_string());
    }
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    // Whatever follows the name may be a secret.
    let name = argument.split(['=', ' ']).next().unwrap_or_default();
    if error.kind() != ErrorKind::UnknownArgument {
        return Error::MissingValue { flag: name.to_owned() };
    }
    if name.starts_with('-') {
        let bare = name.trim_start_matches('-');
        return match Flag::find(role.other(), bare) {
            Some(flag) => Error::FlagOfOtherRole { flag: flag.name, role },
            None => Error::UnknownFlag { flag: name.to_owned(), role, nearest: Flag::nearest(role, bare) },
        };
    }
    let secrets = args.iter().any(|arg| {
        let text = arg.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default().trim_start_matches('-');
        Flag::find(role, name).is_some_and(|flag| flag.secret)
    });
    Error::StrayArgument { role, argument: (!secrets).then(|| argument.to_owned()) }
}

const VERSION: &str = "version";

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs};

    use super::*;
    use crate::addons::Addon;

    #[test]
    fn the_table_is_sound() {
        for role in [Role::Server, Role::Agent] {
            command(role).debug_assert();
            let mut names = HashSet::new();
            for flag in Flag::of(role) {
                assert!(names.insert(flag.name), "--{} is there twice", flag.name);
                assert!(
                    flag.variable.is_none_or(|name| name.starts_with("K3S_") || name.starts_with("AWS_")),
                    "--{}",
                    flag.name
                );
                if let FlagSupport::Renamed(name) | FlagSupport::Synonym(name) = flag.support {
                    let new = Flag::find(role, name).expect("the new name exists");
                    assert_eq!((new.kind, new.secret), (flag.kind, flag.secret), "--{}", flag.name);
                }
            }
        }
    }

    #[test]
    fn help_has_a_line_for_each_flag_that_is_served_and_none_for_others() {
        let help = command(Role::Server).render_help().to_string();
        assert!(
            help.lines().any(|line| line.contains("-t, --token <TOKEN>") && line.contains("[env: K3S_TOKEN]")),
            "{help}"
        );
        assert!(!help.contains("--vpn-auth") && !help.contains("--cluster-secret"), "{help}");
        assert!(help.lines().all(|line| !line.starts_with("          ")), "a line is broken in two: {help}");
    }

    #[test]
    fn one_dash_does_for_long_names_too() {
        let args = ["-data-dir", "-token", "-token=a", "-debug", "-v2", "-kubelet-arg", "-v=4"].map(OsString::from);
        let expected =
            ["--data-dir", "-token", "--token=a", "--debug", "-v2", "--kubelet-arg", "-v=4"].map(OsString::from);
        assert_eq!(with_two_dashes(Role::Server, &args), expected);
    }

    #[test]
    fn help_has_the_names_that_k3s_has_for_flags() {
        let help = command(Role::Server).render_long_help().to_string();
        for name in ["--etcd-snapshot-retention", "--etcd-snapshot-schedule-cron", "--etcd-snapshot-dir"] {
            assert!(help.contains(&format!("[k3s: {name}]")), "{help}");
        }
    }

    #[test]
    fn every_add_on_is_named_where_users_look() {
        let module = concat!(env!("CARGO_MANIFEST_DIR"), "/../../nix/module/node.nix");
        let module = fs::read_to_string(module).expect("the module is in the tree");
        let listed = module.lines().find(|line| line.contains("Packaged add-ons to leave out:")).unwrap();
        let help = Flag::find(Role::Server, "disable").unwrap().help;
        for addon in Addon::ALL.map(Addon::name) {
            assert!(help.contains(addon), "src/config/flags/table.rs: {help}");
            assert!(listed.contains(addon), "nix/module/node.nix: {listed}");
        }
    }

    /// The tables of docs/configuration.md, made of the table above.
    #[test]
    fn the_documentation_lists_what_is_not_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let page = fs::read_to_string(path).expect("the page is in the tree");
        for (title, table) in [("refused", refused()), ("accepted", accepted())] {
            assert!(page.contains(&table), "{path} should have this table of {title} flags:\n{table}");
        }
    }

    fn refused() -> String {
        let mut rows = Vec::<(Vec<String>, Refusal)>::new();
        for flag in all() {
            let (names, refusal) = match flag.support {
                FlagSupport::Unserved(refusal) => match flag.default {
                    Some("true") => (vec![format!("`--{}=false`", flag.name)], refusal),
                    _ => (vec![marked(flag)], refusal),
                },
                FlagSupport::UnservedValues(values, refusal) => {
                    (values.iter().map(|value| format!("`--{}={value}`", flag.name)).collect(), refusal)
                }
                _ => continue,
            };
            match rows.iter_mut().find(|row| row.1 == refusal) {
                Some(row) => row.0.extend(names),
                None => rows.push((names, refusal)),
            }
        }
        let rows = rows.iter().map(|(names, refusal)| {
            format!("| {} | {} | {} |\n", names.join(", "), refusal.what.trim_end_matches(','), refusal.instead)
        });
        format!("| Flag | What it is | Instead |\n|---|---|---|\n{}", rows.collect::<String>())
    }

    fn accepted() -> String {
        let rows = all().filter_map(|flag| match flag.support {
            FlagSupport::Accepted(why) => Some(format!("| {} | {why} |\n", marked(flag))),
            _ => None,
        });
        format!("| Flag | Why it changes nothing |\n|---|---|\n{}", rows.collect::<String>())
    }

    /// A flag's name, and the role where it concerns one while the other has such a flag too.
    fn marked(flag: &Flag) -> String {
        let both = [Role::Server, Role::Agent].iter().all(|role| Flag::find(*role, flag.name).is_some());
        match flag.roles {
            Roles::Server if both => format!("`--{}` of a server", flag.name),
            Roles::Agent if both => format!("`--{}` of an agent", flag.name),
            _ => format!("`--{}`", flag.name),
        }
    }

    fn all() -> impl Iterator<Item = &'static Flag> {
        SECTIONS.iter().flat_map(|section| section.flags)
    }
}
