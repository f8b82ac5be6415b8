//! `spec.set`: values that win over those of all files.
//!
//! k3s hands them to Helm as `--set key=value` and `--set-string key=value`, for every user of the machine to read. Here a text is in a
//! file of Helm's home that `--set-file` names: keys have the same grammar there, and what Helm would make of the text is made here.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// A path in Helm's grammar, as `a.b[0]`.
    key: String,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// A number, a boolean or null: a file has only texts.
    Literal(String),
    Text(String),
    /// A list of one text: k3s makes each comma one of the text.
    List(String),
}

/// Those of a HelmChart.
///
/// # Errors
/// Helm would not read one as a key and its value; as a user reads it.
pub(crate) fn settings(set: &BTreeMap<String, IntOrString>) -> Result<Vec<Setting>, String> {
    set.iter().map(|(key, value)| Setting::new(key, value)).collect()
}

impl Setting {
    fn new(key: &str, value: &IntOrString) -> Result<Self, String> {
        // What follows such a sign would be the value: the name of a file of the server.
        if key.contains('=') {
            return Err(format!("spec.set: the key {key:?} has a sign \"=\": give each value a key of its own"));
        }
        let value = match value {
            IntOrString::Int(number) => Value::Literal(number.to_string()),
            IntOrString::String(text) if matches!(&*text.to_ascii_lowercase(), "true" | "false" | "null") => {
                Value::Literal(text.clone())
            }
            IntOrString::String(text) => Value::of_text(text).ok_or_else(|| {
                format!("spec.set: {key} begins with {{ and is no list that ends in }}: write \\{{ where it is a text")
            })?,
        };
        Ok(Self { key: key.to_owned(), value })
    }

    /// What is on Helm's command line; `index` tells the setting from others.
    pub(crate) fn argument(&self, index: usize) -> String {
        let key = &self.key;
        match &self.value {
            Value::Literal(literal) => format!("--set={key}={literal}"),
            Value::Text(_) => format!("--set-file={key}={}", file_name(index)),
            Value::List(_) => format!("--set-file={key}={{{}}}", file_name(index)),
        }
    }

    /// The file that [`Self::argument`] names.
    pub(crate) fn file(&self, index: usize) -> Option<(String, Vec<u8>)> {
        match &self.value {
            Value::Literal(_) => None,
            Value::Text(text) | Value::List(text) => Some((file_name(index), text.clone().into_bytes())),
        }
    }

    /// All of it, to be compared: nothing else gives the same bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        format!("{self:?}").into_bytes()
    }
}

impl Value {
    /// As `--set-string` reads `text`, where k3s has made each comma one of the text; `None` if it is an error.
    fn of_text(text: &str) -> Option<Self> {
        let Some(list) = text.strip_prefix('{') else { return Some(Self::Text(unescape(text))) };
        // Up to the first brace that is not escaped, which has to be the last character.
        let mut is_escaped = false;
        let end = list.find(|character| match character {
            '}' if !is_escaped => true,
            _ => {
                is_escaped = character == '\\' && !is_escaped;
                false
            }
        })?;
        (end + 1 == list.len()).then(|| Self::List(unescape(&list[..end])))
    }
}

/// A backslash stands for the character after it, or for nothing at the end. k3s' escaping of commas changes nothing of that: it makes
/// the number of backslashes before a comma odd, so that half of them and the comma stay.
fn unescape(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            character => plain.push(character),
        }
    }
    plain
}

fn file_name(index: usize) -> String {
    format!("set-{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, value: IntOrString) -> Result<(String, Option<String>), String> {
        let settings = settings(&[(key.to_owned(), value)].into())?;
        let file = settings[0].file(0).map(|(name, content)| (name, String::from_utf8(content).unwrap()));
        assert!(file.as_ref().is_none_or(|(name, _)| name == "set-0"));
        Ok((settings[0].argument(0), file.map(|(_, content)| content)))
    }

    fn text(text: &str) -> (String, Option<String>) {
        of("k", IntOrString::String(text.into())).unwrap()
    }

    #[test]
    fn numbers_booleans_and_null_keep_their_type() {
        assert_eq!(of("a.b[0]", IntOrString::Int(3)), Ok(("--set=a.b[0]=3".into(), None)));
        for literal in ["true", "False", "NULL"] {
            assert_eq!(text(literal), (format!("--set=k={literal}"), None));
        }
    }

    #[test]
    fn texts_are_in_files_as_helm_would_read_them() {
        for (given, read) in [
            ("s3cret", "s3cret"),
            ("1.5", "1.5"),
            ("", ""),
            ("x,y", "x,y"),
            (r"x\,y", "x,y"),
            (r"x\\,y", r"x\,y"),
            (r"C:\\dir\x\", r"C:\dirx"),
            ("a=b", "a=b"),
            (r"\{a", "{a"),
            ("lines\nof text", "lines\nof text"),
        ] {
            assert_eq!(text(given), ("--set-file=k=set-0".into(), Some(read.into())), "{given}");
        }
    }

    #[test]
    fn braces_make_a_list_of_one() {
        for (given, read) in [("{a}", "a"), ("{a,b}", "a,b"), (r"{a\}b}", "a}b"), ("{}", "")] {
            assert_eq!(text(given), ("--set-file=k={set-0}".into(), Some(read.into())), "{given}");
        }
        for given in ["{a", "{a}b", r"{a\}", "{"] {
            let refused = of("k", IntOrString::String(given.into())).unwrap_err();
            assert!(refused.starts_with("spec.set: k begins with {"), "{refused}");
        }
    }

    #[test]
    fn a_key_cannot_name_a_file_of_the_server() {
        let refused = of("a=/etc/shadow,b", IntOrString::String("x".into())).unwrap_err();
        assert_eq!(refused, "spec.set: the key \"a=/etc/shadow,b\" has a sign \"=\": give each value a key of its own");
    }
}
