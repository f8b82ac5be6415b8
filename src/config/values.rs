//! What was asked for, once every source has spoken: still text, but each value knows where it comes from.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::SignedDuration;

use crate::{
    args::{ComponentArg, ComponentArgs},
    environment::Environment,
    error::{Error, Origin, Place},
    flags::{Flag, Kind, Refusal, Role},
    provenance::Provenance,
};

/// What was asked for: every flag that somebody gave, with its values. Switches hold `true` or `false`, texts are not empty, and
/// nothing is left that is refused by its name alone.
pub(crate) struct Values {
    pub(crate) role: Role,
    pub(crate) given: BTreeMap<&'static str, Vec<Given>>,
    pub(crate) provenance: Provenance,
}

/// One value and where it comes from.
#[derive(Clone)]
pub(crate) struct Given {
    pub(crate) place: Place,
    pub(crate) text: String,
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

    /// Every item of a list, through `parse`.
    pub(crate) fn each<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Error> {
        self.items(name).iter().map(|given| given.parse(&parse)).collect()
    }

    /// A component's arguments; they are never split at commas.
    pub(crate) fn component_args(&self, name: &str) -> Result<ComponentArgs, Error> {
        let parse = |text: &str| text.parse::<ComponentArg>().map_err(|error| format!("`{text}` will not do: {error}"));
        self.list(name).map(|given| given.parse(parse)).collect()
    }

    /// klog's verbosity.
    pub(crate) fn verbosity(&self) -> Result<u8, Error> {
        let problem = |text: &str| format!("`{text}` is not a level; write a number such as 2");
        self.text("v").parse(|text| text.parse().map_err(|_| problem(text)))
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &'static str) -> bool {
        self.given(name).is_some_and(|given| given.text == "true")
    }
}

impl Given {
    pub(crate) fn new(flag: &'static Flag, place: Place, text: OsString) -> Result<Self, Error> {
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

    /// Whether it comes from a variable.
    pub(crate) fn is_of_environment(&self) -> bool {
        matches!(self.place.origin, Origin::Variable(_))
    }

    /// The value as a path.
    pub(crate) fn path(&self, environment: &Environment) -> Result<PathBuf, Error> {
        environment.path(&self.text).map_err(|problem| self.invalid(problem))
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

/// A length of time as Go writes it, which is none at all for nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let parsed = parsed.filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| format!("`{text}` is no duration; write one such as 5m0s"))
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
