//! What all servers of a cluster have in common, as a map of files in JSON.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Files by the names that k3s gives them (`ServerCA`, …); names that are not known here are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootstrapData {
    /// By name.
    pub files: BTreeMap<String, File>,
}

/// A file: most are secret, so its contents are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// When it was last modified; what Go calls the zero time if that is not known.
    pub modified: Timestamp,
    /// All of it.
    pub content: Vec<u8>,
}

/// How a file stands in the JSON.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Entry {
    Dated {
        #[serde(rename = "Timestamp")]
        timestamp: Timestamp,
        /// Base64; Go writes null for nothing.
        #[serde(rename = "Content")]
        content: Option<String>,
    },
    /// Before k3s 1.22 there was only the content.
    Bare(String),
}

impl BootstrapData {
    /// Reads both forms that k3s has had.
    ///
    /// # Errors
    /// It is neither; the text says what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, &'static str> {
        let entries: BTreeMap<String, Entry> =
            serde_json::from_slice(json).map_err(|_| "it is not k3s' map of files")?;
        let mut files = BTreeMap::new();
        for (name, entry) in entries {
            let (modified, content) = match entry {
                Entry::Dated { timestamp, content } => (timestamp, content.unwrap_or_default()),
                Entry::Bare(content) => (never(), content),
            };
            let content = BASE64_STANDARD.decode(content).map_err(|_| "a file's content is not base64")?;
            files.insert(name, File { modified, content });
        }
        Ok(Self { files })
    }

    /// As servers store it and tell each other.
    pub fn to_json(&self) -> Vec<u8> {
        let entry = |(name, file): (&String, &File)| {
            let content = Some(BASE64_STANDARD.encode(&file.content));
            (name.clone(), Entry::Dated { timestamp: file.modified, content })
        };
        let entries: BTreeMap<_, _> = self.files.iter().map(entry).collect();
        serde_json::to_vec(&entries).expect("a map of texts is JSON")
    }

    /// The authority that tokens pin, PEM.
    pub fn server_ca(&self) -> Option<&[u8]> {
        self.files.get("ServerCA").map(|file| file.content.as_slice())
    }

    /// Takes over the files of `other` that are not here.
    pub fn complete_by(&mut self, other: &Self) {
        for (name, file) in &other.files {
            self.files.entry(name.clone()).or_insert_with(|| file.clone());
        }
    }

    /// Whether both hold the same files with the same contents.
    pub fn same_contents(&self, other: &Self) -> bool {
        self.files.len() == other.files.len()
            && self
                .files
                .iter()
                .zip(&other.files)
                .all(|((name, file), (its, theirs))| (name, &file.content) == (its, &theirs.content))
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} bytes of {})", self.content.len(), self.modified)
    }
}

/// Go's zero time: older than every file.
fn never() -> Timestamp {
    "0001-01-01T00:00:00Z".parse().expect("this is a timestamp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_of_k3s_forms_are_read() {
        let dated = r#"{"ServerCA":{"Timestamp":"2026-01-02T03:04:05.6+01:00","Content":"c2VydmVyIGNhCg=="},
                        "Tomorrow":{"Timestamp":"0001-01-01T00:00:00Z","Content":null}}"#;
        let data = BootstrapData::parse(dated.as_bytes()).unwrap();
        let expected = File { modified: "2026-01-02T02:04:05.6Z".parse().unwrap(), content: b"server ca\n".to_vec() };
        assert_eq!(data.files["ServerCA"], expected);
        assert_eq!(data.files["Tomorrow"], File { modified: never(), content: Vec::new() });
        assert_eq!(BootstrapData::parse(&data.to_json()), Ok(data));

        let bare = BootstrapData::parse(br#"{"ServerCA":"c2VydmVyIGNhCg=="}"#).unwrap();
        assert_eq!(bare.files["ServerCA"], File { modified: never(), content: b"server ca\n".to_vec() });
    }

    #[test]
    fn the_form_is_the_one_that_k3s_reads() {
        let file = File { modified: "2026-01-02T03:04:05.6Z".parse().unwrap(), content: b"server ca\n".to_vec() };
        let data = BootstrapData { files: [("ServerCA".to_owned(), file)].into() };
        let json = r#"{"ServerCA":{"Timestamp":"2026-01-02T03:04:05.6Z","Content":"c2VydmVyIGNhCg=="}}"#;
        assert_eq!(String::from_utf8(data.to_json()).unwrap(), json);
    }

    #[test]
    fn what_is_neither_is_refused() {
        for json in ["", "[]", r#"{"ServerCA":7}"#, r#"{"ServerCA":"?"}"#] {
            assert!(BootstrapData::parse(json.as_bytes()).is_err(), "{json}");
        }
    }
}
