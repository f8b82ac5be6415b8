//! From many sources to one set of values.
//!
//! Lowest to highest: defaults, variables, the configuration file, its drop-ins by name, the command line. As in k3s, files act
//! as if their settings stood on the command line before what really stands there. So for a flag with one value the last source
//! wins; for a list, a drop-in replaces what earlier files hold (`key+` adds to it), the command line adds to the files, and a
//! variable counts only if neither has the flag.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    environment::Environment,
    error::{Error, Origin, Place, UnknownKey, Warning},
    file::{self, Setting},
    flags::{Flag, Kind, Refusal, Role, Standing, read_command_line},
    provenance::Provenance,
};

/// What was asked for: every flag that somebody gave, with its values. Switches hold `true` or `false`, texts are not empty, and
/// nothing is left that is refused by its name alone.
pub(crate) struct Values {
    role: Role,
    given: BTreeMap<&'static str, Vec<Given>>,
    pub(crate) provenance: Provenance,
}

/// One value and where it comes from.
#[derive(Clone)]
pub(crate) struct Given {
    pub(crate) place: Place,
    pub(crate) text: String,
}

/// Reads all sources for `role`; `args` is what follows the verb.
pub(crate) fn collect(
    role: Role,
    args: &[OsString],
    environment: &Environment,
) -> Result<(Values, Vec<Warning>), Error> {
    let mut warnings = Vec::new();
    let mut layers = Layers { command_line: BTreeMap::new(), files: BTreeMap::new(), file_order: Vec::new() };
    for (flag, values) in read_command_line(role, args)? {
        let place = Place { flag: flag.name, origin: Origin::CommandLine };
        let given = values.into_iter().map(|value| Given::new(flag, place.clone(), value)).collect::<Result<_, _>>()?;
        layers.command_line.insert(flag.name, given);
    }
    let path = layers.read_files(role, environment, &mut warnings)?;

    let provenance = Provenance::new(role, &layers.file_arguments(), args, &environment.variables);
    let mut given = BTreeMap::<_, Vec<_>>::new();
    for flag in Flag::of(role) {
        let values = layers.take(flag, environment)?;
        let Some(first) = values.first() else { continue };
        let place = first.place.clone();
        for value in &values {
            if let Some(refusal) = flag.refusal(&value.text) {
                return Err(value.not_served(refusal));
            }
        }
        let name = match flag.standing {
            Standing::Renamed(name) => {
                warnings.push(Warning::Deprecated { place, instead: format!("--{name}") });
                name
            }
            Standing::Deprecated(instead) => {
                warnings.push(Warning::Deprecated { place, instead: instead.to_owned() });
                flag.name
            }
            Standing::Served | Standing::Unserved(_) | Standing::UnservedValues(..) => flag.name,
        };
        // The old name never wins over the new one.
        let entry = given.entry(name).or_default();
        match flag.standing {
            Standing::Renamed(_) => {
                entry.splice(0..0, values);
            }
            _ => entry.extend(values),
        }
    }
    if let Some(given) = given.get("config").and_then(|given| given.last())
        && environment.absolute(&given.text) != path
    {
        warnings.push(Warning::ConfigNotRead { place: given.place.clone(), read: path });
    }
    Ok((Values { role, given, provenance }, warnings))
}

impl Values {
    /// The value that counts, if somebody gave one.
    pub(crate) fn given(&self, name: &str) -> Option<&Given> {
        debug_assert!(Flag::find(self.role, name).is_some(), "--{name} is not in the table");
        self.given.get(name).and_then(|given| given.last())
    }

    /// The value that counts, or the default that the table has.
    pub(crate) fn text(&self, name: &'static str) -> Given {
        self.given(name).cloned().unwrap_or_else(|| {
            let default = Flag::find(self.role, name).and_then(|flag| flag.default);
            Given {
                place: Place { flag: name, origin: Origin::Default },
                text: default.expect("flags read this way have a default in the table").to_owned(),
            }
        })
    }

    /// Every value of a list.
    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &Given> {
        debug_assert!(Flag::find(self.role, name).is_some(), "--{name} is not in the table");
        self.given.get(name).into_iter().flatten()
    }

    /// Every value of a list whose items may also stand in one text, with commas between them.
    pub(crate) fn items(&self, name: &str) -> Vec<Given> {
        let split = |given: &Given| {
            let place = given.place.clone();
            let items = given.text.split(',').map(|item| Given { place: place.clone(), text: item.trim().to_owned() });
            items.collect::<Vec<_>>()
        };
        self.list(name).flat_map(split).collect()
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &'static str) -> bool {
        self.given(name).is_some_and(|given| given.text == "true")
    }
}

impl Given {
    fn new(flag: &'static Flag, place: Place, text: OsString) -> Result<Self, Error> {
        let invalid = |place, problem: &str| Error::Invalid { place, problem: problem.to_owned() };
        let Ok(text) = text.into_string() else {
            return Err(invalid(place, "the value is not UTF-8 text; write it as UTF-8"));
        };
        if text.is_empty() {
            return Err(invalid(place, "the value is empty; give one or leave the flag out"));
        }
        match (flag.kind, truth(&text)) {
            (Kind::Switch, Some(on)) => Ok(Self { place, text: on.to_string() }),
            (Kind::Switch, None) => Err(invalid(place, "the value is neither true nor false; write one of them")),
            (Kind::Text | Kind::List, _) => Ok(Self { place, text }),
        }
    }

    /// The value read by `parse`, whose error is a problem with its remedy.
    pub(crate) fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Error> {
        parse(&self.text).map_err(|problem| self.invalid(problem))
    }

    pub(crate) fn invalid(&self, problem: impl Into<String>) -> Error {
        Error::Invalid { place: self.place.clone(), problem: problem.into() }
    }

    pub(crate) fn not_served(&self, refusal: Refusal) -> Error {
        Error::NotServed { place: self.place.clone(), refusal }
    }

    pub(crate) fn unreadable(&self, path: &Path, source: std::io::Error) -> Error {
        Error::Unreadable { place: self.place.clone(), path: path.to_owned(), source }
    }
}

/// What each source says, by flag.
struct Layers {
    command_line: BTreeMap<&'static str, Vec<Given>>,
    files: BTreeMap<&'static str, Vec<Given>>,
    /// The files' flags in the order in which they first appear.
    file_order: Vec<&'static str>,
}

impl Layers {
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
            Some(given) => environment.absolute(&given.text),
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

/// What Go's `ParseBool` takes, and the words that YAML 1.1 reads as truth values.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" => Some(true),
        "0" | "f" | "F" => Some(false),
        _ => match text.to_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        },
    }
}
