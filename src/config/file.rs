//! One configuration file: a YAML mapping from flag names to a value or a list of values.
//!
//! Values keep the text that was written. k3s reads them as YAML types first, so that an unquoted `0644` becomes 420 there.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use granit_parser::{Event, Parser, ScalarStyle};

use crate::{
    error::{Error, Origin, Place},
    whole_file::{self, LONGEST},
};

/// A key with its values, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// As written, without a final `+`.
    pub(crate) key: String,
    /// `key+`: added to the values of the files before, instead of replacing them.
    pub(crate) append: bool,
    /// None for a key that stands alone.
    pub(crate) values: Vec<FileValue>,
    pub(crate) path: Arc<Path>,
    pub(crate) line: usize,
}

/// A scalar and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileValue {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl FileValue {
    /// Bytes in memory.
    fn size(&self) -> usize {
        size_of::<Self>() + self.text.len()
    }
}

/// The settings of `path` and then of `<path>.d/*.yaml` and `*.yml` in the order of their names. A missing `path` is an error
/// only if somebody asked for it (`named`).
pub(crate) fn read(path: &Path, named: Option<&Origin>) -> Result<Vec<Setting>, Error> {
    let unreadable = |path: &Path, source| {
        let origin = named.cloned().unwrap_or(Origin::Default);
        Error::Unreadable { place: Place { flag: "config", origin }, path: path.to_owned(), source }
    };
    let mut settings = match whole_file::read(path) {
        Ok(bytes) => parse(path, &bytes)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => Vec::new(),
        Err(error) => return Err(unreadable(path, error)),
    };
    let directory = {
        let mut name = path.as_os_str().to_owned();
        name.push(".d");
        PathBuf::from(name)
    };
    for path in drop_ins(&directory).map_err(|error| unreadable(&directory, error))? {
        let bytes = whole_file::read(&path).map_err(|error| unreadable(&path, error))?;
        settings.extend(parse(&path, &bytes)?);
    }
    Ok(settings)
}

fn drop_ins(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "yaml" || end == "yml") && !path.is_dir());
    paths.sort();
    Ok(paths)
}

/// The settings in `bytes`, which came from `path`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Setting>, Error> {
    let malformed = |line, problem: &str| Error::Malformed { path: path.to_owned(), line, problem: problem.to_owned() };
    let text = str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        malformed(line, "the file is not UTF-8 text; write it as UTF-8")
    })?;

    let shared: Arc<Path> = path.into();
    let mut settings = Vec::<Setting>::new();
    let mut anchors = HashMap::<usize, Vec<FileValue>>::new();
    let mut repeated = 0;
    let mut state = State::Document;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            malformed(error.marker().line(), &format!("this is not YAML ({}); correct it", error.info()))
        })?;
        let line = span.start.line();
        state = match (state, event) {
            (
                state,
                Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Comment(..) | Event::Anchor(..),
            ) => state,
            (State::Document, Event::DocumentStart(..)) => State::Document,
            (State::Document, Event::MappingStart(..)) => State::Key,
            // A file of nothing but comments.
            (State::Document, Event::Scalar(text, style, ..)) if is_null(&text, style) => State::Done,
            (State::Document, _) => {
                return Err(malformed(line, "the file holds no mapping; write each flag as `name: value`"));
            }
            (State::Key, Event::MappingEnd) => State::Done,
            (State::Key, Event::Scalar(text, ..)) => {
                let (key, append) = text.strip_suffix('+').map_or((&*text, false), |key| (key, true));
                if let Some(first) = settings.iter().find(|setting| setting.key == key && setting.append == append) {
                    let problem = format!("`{text}` is set again after line {}; merge the two", first.line);
                    return Err(malformed(line, &problem));
                }
                settings.push(Setting {
                    key: key.to_owned(),
                    append,
                    values: Vec::new(),
                    path: Arc::clone(&shared),
                    line,
                });
                State::Value
            }
            (State::Key, _) => return Err(malformed(line, "a key is not plain text; use the name of a flag")),
            (State::Value | State::List(_), Event::MappingStart(..)) => {
                return Err(malformed(line, "a value is a mapping; flags take one value or a list of values"));
            }
            (State::List(_), Event::SequenceStart(..)) => {
                return Err(malformed(line, "a list stands inside a list; write one list of values"));
            }
            (State::Value, Event::SequenceStart(_, anchor, _)) => State::List(anchor),
            (State::List(anchor), Event::SequenceEnd) => {
                anchors.insert(anchor, last(&mut settings).clone());
                State::Key
            }
            (state @ (State::Value | State::List(_)), Event::Scalar(text, style, anchor, _)) => {
                let value = (!is_null(&text, style)).then(|| FileValue { text: text.into_owned(), line });
                anchors.insert(anchor, value.iter().cloned().collect());
                last(&mut settings).extend(value);
                state.after_value()
            }
            (state @ (State::Value | State::List(_)), Event::Alias(anchor)) => {
                let values = anchors.get(&anchor).map(Vec::as_slice).unwrap_or_default();
                repeated += values.iter().map(FileValue::size).sum::<usize>();
                if repeated > LONGEST {
                    let problem =
                        format!("its aliases repeat more than {} MiB of values; write the values out", LONGEST >> 20);
                    return Err(malformed(line, &problem));
                }
                last(&mut settings).extend_from_slice(values);
                state.after_value()
            }
            (State::Done, _) => {
                return Err(malformed(line, "a second document starts here; put all keys into one document"));
            }
            (State::Value | State::List(_), _) => return Err(malformed(line, "a value is missing here; write one")),
        };
    }
    Ok(settings)
}

/// Where in the file the parser is.
///
/// ```text
/// Document ─{─▶ Key ─name─▶ Value ─scalar─▶ Key      Key ─}─▶ Done
///                             └──[──▶ List ─]─▶ Key
/// ```
#[derive(Debug, Clone, Copy)]
enum State {
    Document,
    Key,
    Value,
    /// Inside a list with this anchor.
    List(usize),
    Done,
}

impl State {
    fn after_value(self) -> Self {
        if matches!(self, Self::List(_)) { self } else { Self::Key }
    }
}

fn last(settings: &mut [Setting]) -> &mut Vec<FileValue> {
    &mut settings.last_mut().expect("values follow a key, which made a setting").values
}

fn is_null(text: &str, style: ScalarStyle) -> bool {
    style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(yaml: &str) -> Vec<(String, Vec<String>)> {
        let settings = parse(Path::new("config.yaml"), yaml.as_bytes()).expect("a valid file");
        settings.into_iter().map(|s| (s.key, s.values.into_iter().map(|v| v.text).collect())).collect()
    }

    fn problem(yaml: &str) -> String {
        parse(Path::new("config.yaml"), yaml.as_bytes()).expect_err("a wrong file").to_string()
    }

    fn setting(key: &str, values: &[&str]) -> (String, Vec<String>) {
        (key.to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
    }

    #[test]
    fn scalars_keep_the_text_that_was_written() {
        assert_eq!(
            settings("write-kubeconfig-mode: 0644\ndebug: true\ntoken: \"1e3\"\nv: 2\n"),
            [
                setting("write-kubeconfig-mode", &["0644"]),
                setting("debug", &["true"]),
                setting("token", &["1e3"]),
                setting("v", &["2"]),
            ]
        );
    }

    #[test]
    fn lists_may_be_written_both_ways_and_shared() {
        assert_eq!(
            settings("tls-san: &names\n  - a\n  - b\nnode-label: [x=1, y=2]\nnode-external-dns: *names\n"),
            [
                setting("tls-san", &["a", "b"]),
                setting("node-label", &["x=1", "y=2"]),
                setting("node-external-dns", &["a", "b"]),
            ]
        );
    }

    #[test]
    fn aliases_that_multiply_are_refused() {
        let doubled = |levels: usize| {
            let level = |level| format!("k{level}: &a{level} [*a{0}, *a{0}]\n", level - 1);
            "k0: &a0 [x, x]\n".to_owned() + &(1..=levels).map(level).collect::<String>()
        };
        assert_eq!(settings(&doubled(10))[10].1.len(), 2048);
        let refused = problem(&doubled(25));
        assert!(refused.ends_with("its aliases repeat more than 1 MiB of values; write the values out"), "{refused}");
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.yaml");
        fs::File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        let refused = read(&path, None).expect_err("too long").to_string();
        assert!(refused.contains("cannot be read (it is longer than 1 MiB)"), "{refused}");
    }

    #[test]
    fn an_empty_file_and_an_empty_key_set_nothing() {
        assert_eq!(settings(""), []);
        assert_eq!(settings("# all defaults\n"), []);
        assert_eq!(settings("---\n"), []);
        assert_eq!(settings("token:\ndebug: ~\n"), [setting("token", &[]), setting("debug", &[])]);
    }

    #[test]
    fn a_plus_asks_to_append() {
        let settings = parse(Path::new("config.yaml"), b"disable+: traefik\n").expect("a valid file");
        assert_eq!((settings[0].key.as_str(), settings[0].append, settings[0].line), ("disable", true, 1));
    }

    #[test]
    fn what_is_no_mapping_of_values_is_refused_with_its_line() {
        for (yaml, expected) in [
            ("- a\n", "config.yaml line 1: the file holds no mapping; write each flag as `name: value`"),
            ("token\n", "config.yaml line 1: the file holds no mapping; write each flag as `name: value`"),
            ("v: 1\ndebug: true\nv: 2\n", "config.yaml line 3: `v` is set again after line 1; merge the two"),
            (
                "kubelet-arg:\n  max-pods: 50\n",
                "config.yaml line 2: a value is a mapping; flags take one value or a list of values",
            ),
            ("tls-san:\n- [a]\n", "config.yaml line 2: a list stands inside a list; write one list of values"),
            ("? [a]\n: 1\n", "config.yaml line 1: a key is not plain text; use the name of a flag"),
            ("v: 1\n---\nv: 2\n", "config.yaml line 2: a second document starts here; put all keys into one document"),
        ] {
            assert_eq!(problem(yaml), expected, "{yaml:?}");
        }
        assert!(problem("v: 1\ntoken: 'secret\n").starts_with("config.yaml line "), "{}", problem("token: 'secret\n"));
        assert!(!problem("v: 1\ntoken: 'secret\n").contains("secret"));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_line() {
        let error = parse(Path::new("config.yaml"), b"v: 1\ntoken: \xff\n").expect_err("not UTF-8");
        assert_eq!(error.to_string(), "config.yaml line 2: the file is not UTF-8 text; write it as UTF-8");
    }
}
