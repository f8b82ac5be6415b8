//! The first-boot file: what a machine is called, which role it has, its network and k3s' configuration.

use std::fmt;

use k3s_config::{Role, is_dns_subdomain};
use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::{Error as YamlError, Spanned, options};

use crate::{
    config_section::ConfigSection,
    network::{Entry, Interface},
};

/// The longest host name that is one label of DNS, as a node's name has to be made of.
const LONGEST_LABEL: usize = 63;
/// The longest name that Linux gives a host.
const LONGEST_NAME: usize = 64;

/// What a first-boot file asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct FirstBoot {
    pub(crate) hostname: Option<String>,
    pub(crate) role: Role,
    pub(crate) network: Vec<Interface>,
    pub(crate) config: ConfigSection,
    /// Whether the ESP keeps what makes the machine the same again, should its data partition have to be replaced.
    pub(crate) keep_identity: bool,
}

/// What is wrong with a first-boot file, and what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {reason}", FirstBoot::NAME, At(*line))]
pub struct Wrong {
    /// From 1; none where it is about the file as a whole.
    pub line: Option<u64>,
    /// The problem with its remedy.
    pub reason: String,
}

impl Wrong {
    pub(crate) fn whole(reason: impl Into<String>) -> Self {
        Self { line: None, reason: reason.into() }
    }
}

struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " line {line}"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    hostname: Option<Spanned<String>>,
    role: Option<Spanned<String>>,
    network: Option<Vec<Spanned<Entry>>>,
    #[serde(rename = "keep-identity", default)]
    keep_identity: bool,
    #[serde(rename = "config")]
    _config: Option<IgnoredAny>,
}

impl FirstBoot {
    /// Its name on the ESP.
    pub const NAME: &str = "first-boot.yaml";

    /// What `bytes` ask for.
    ///
    /// # Errors
    /// The first thing that cannot be followed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Wrong> {
        let text = std::str::from_utf8(bytes).map_err(|_| Wrong::whole("it is not UTF-8 text; write it as UTF-8"))?;
        // Windows' editors begin a file with it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let document: Option<Document> = serde_saphyr::from_str_with_options(text, options! { with_snippet: false })
            .map_err(|error| of_yaml(&error))?;
        let Some(Document { hostname, role, network, keep_identity, _config }) = document else {
            return Err(Wrong::whole(
                "it says nothing; write `role: server`, or `role: agent` with the server's address and token under config",
            ));
        };
        let role = role.ok_or_else(|| Wrong::whole("it names no role; write `role: server` or `role: agent`"))?;
        let role_line = line_of(&role);
        let role = Role::ALL.into_iter().find(|known| known.verb() == role.value).ok_or_else(|| Wrong {
            line: role_line,
            reason: format!("`{}` is no role; write server or agent", role.value),
        })?;
        if let Some(hostname) = &hostname {
            check_hostname(&hostname.value).map_err(|reason| Wrong { line: line_of(hostname), reason })?;
        }
        let mut interfaces = Vec::<Interface>::new();
        for entry in network.unwrap_or_default() {
            let wrong = |reason| Wrong { line: line_of(&entry), reason };
            let interface = Interface::try_from(&entry.value).map_err(wrong)?;
            if interfaces.iter().any(|other| other.matches() == interface.matches()) {
                return Err(wrong("this interface is matched above already; merge the two".to_owned()));
            }
            interfaces.push(interface);
        }
        let config = ConfigSection::find(text)?;
        Ok(Self { hostname: hostname.map(|hostname| hostname.value), role, network: interfaces, config, keep_identity })
    }
}

fn check_hostname(name: &str) -> Result<(), String> {
    if name.len() <= LONGEST_NAME && is_dns_subdomain(name) {
        return Ok(());
    }
    Err(format!("`{name}` cannot be the name of a node; use small letters, digits and dashes, {LONGEST_LABEL} at most"))
}

pub(crate) fn line_of<T>(value: &Spanned<T>) -> Option<u64> {
    Some(value.referenced.line()).filter(|line| *line > 0)
}

/// The parser's sentence and line, without the rest of its report.
fn of_yaml(error: &YamlError) -> Wrong {
    let text = error.to_string();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or(first);
    let first = first.strip_prefix("error: ").unwrap_or(first).trim_end_matches([':', ',']);
    let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
    Wrong { line, reason: format!("{first}; correct it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        FirstBoot::parse(text.as_bytes()).expect_err(text).to_string()
    }

    #[test]
    fn a_file_says_who_a_machine_is() {
        let text = "hostname: kiosk-7\nrole: agent\nnetwork:\n- match: {name: eth0}\n  addresses: [10.0.0.7/24]\nconfig:\n  token: x\n";
        let parsed = FirstBoot::parse(text.as_bytes()).expect("a right file");
        assert_eq!((parsed.hostname.as_deref(), parsed.role), (Some("kiosk-7"), Role::Agent));
        assert_eq!(parsed.network.len(), 1);
        assert_eq!(parsed.config.text(), "token: x\n");
    }

    #[test]
    fn a_role_is_enough() {
        for text in ["role: server\n", "\u{feff}role: server", "# ours\n---\nrole: \"server\"\nconfig:\n"] {
            let parsed = FirstBoot::parse(text.as_bytes()).expect(text);
            assert_eq!((parsed.role, parsed.hostname, parsed.network.len()), (Role::Server, None, 0), "{text:?}");
            assert_eq!(parsed.config.text(), "", "{text:?}");
        }
    }

    #[test]
    fn every_wrong_file_is_one_sentence_with_its_line() {
        for (text, expected) in [
            ("hostname: a\n", "first-boot.yaml: it names no role; write `role: server` or `role: agent`"),
            ("role: master\n", "first-boot.yaml line 1: `master` is no role; write server or agent"),
            (
                "role: server\nhostname: Kiosk_7\n",
                "first-boot.yaml line 2: `Kiosk_7` cannot be the name of a node; use small letters, digits and dashes, 63 at most",
            ),
            (
                "role: server\nnetwork:\n- match: {name: eth0}\n- match: {name: eth0}\n",
                "first-boot.yaml line 4: this interface is matched above already; merge the two",
            ),
            (
                "role: server\nconfig: [a]\n",
                "first-boot.yaml line 2: config holds no keys; write k3s' flags below it as `name: value`",
            ),
        ] {
            assert_eq!(wrong(text), expected, "{text:?}");
        }
        for text in ["", "# nothing\n", "---\n", "~"] {
            assert!(
                wrong(text).starts_with("first-boot.yaml: it says nothing; write `role: server`"),
                "{}",
                wrong(text)
            );
        }
        for (text, named) in [
            ("role: server\nssh-keys: [x]\n", "ssh-keys"),
            ("role: server\nrole: agent\n", "role"),
            ("role: server\nnetwork:\n- match: {nmae: eth0}\n", "nmae"),
            ("- role: server\n", "first-boot.yaml"),
            ("role: [server]\n", "line 1"),
            ("role: 'server\n", "first-boot.yaml"),
            ("role: server\n---\nrole: agent\n", "first-boot.yaml"),
        ] {
            let sentence = wrong(text);
            assert!(sentence.contains(named) && !sentence.contains('\n'), "{text:?}: {sentence}");
        }
        assert_eq!(
            FirstBoot::parse(b"role: \xff").expect_err("no text").to_string(),
            "first-boot.yaml: it is not UTF-8 text; write it as UTF-8"
        );
    }
}
