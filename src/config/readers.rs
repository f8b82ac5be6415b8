//! That whatever is configured has a reader: a field that is parsed, checked and passed on by nobody would be a flag without an effect.
//!
//! The sources of the other rooms are searched for `.field` and for patterns that take it out of its structure, since the compiler says
//! nothing of public fields. A name that two structures have is found for both: this finds what was forgotten, not what was meant to be.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Structures whose fields users fill.
const STRUCTURES: [&str; 23] = [
    "AddonsConfig",
    "AgentConfig",
    "ClientCertificate",
    "ClusterNetwork",
    "ControlPlaneArgs",
    "ControlPlaneConfig<'a>",
    "DisabledParts",
    "Etcd",
    "EtcdEndpoint",
    "KubeconfigOutput",
    "NodeConfig",
    "Pool",
    "PortRange",
    "Provenance",
    "S3Config",
    "S3Credentials",
    "S3Endpoint",
    "S3Settings",
    "ServerConfig",
    "ServerUrl",
    "SnapshotConfig",
    "Sql",
    "Taint",
];

/// Files that tell others what is configured, or that it has no effect. That is no reader.
const TELLERS: [&str; 2] = ["server/cluster_document.rs", "k3s/cli/unused_files.rs"];

/// Hands fields on by other names, which are looked for too.
const VIEW: &str = "config/control_plane.rs";

#[test]
fn every_field_has_a_reader() {
    let rooms = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let own: String = sources(&rooms.join("config")).iter().map(|(_, text)| text.as_str()).collect();
    let is_reader = |path: &Path| {
        let path = path.strip_prefix(rooms).unwrap();
        (!path.starts_with("config") || path == Path::new(VIEW))
            && !path.starts_with("xtask")
            && !TELLERS.iter().any(|teller| path == Path::new(teller))
    };
    let readers: String =
        sources(rooms).into_iter().filter(|(path, _)| is_reader(path)).map(|(_, text)| text + "\n").collect();

    let mut unread = Vec::new();
    for structure in STRUCTURES {
        let fields = fields(&own, structure);
        assert!(!fields.is_empty(), "{structure} is not found");
        let is_unread = |field: &&str| !is_read(&readers, structure, field);
        unread.extend(fields.into_iter().filter(is_unread).map(|field| format!("{structure}.{field}")));
    }
    assert!(unread.is_empty(), "nothing reads {}", unread.join(", "));
}

/// All files of Rust below `folder`, without comments and tests.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") && !["tests.rs", "testing.rs", "readers.rs"].contains(&name.as_str()) {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
            found.push((path, lines.collect::<Vec<_>>().join("\n")));
        }
    }
    found
}

/// The public fields of a structure.
fn fields<'a>(code: &'a str, structure: &str) -> Vec<&'a str> {
    let body = code.split_once(&format!("pub struct {structure} {{")).and_then(|(_, rest)| rest.split_once("\n}"));
    let lines = body.map(|(body, _)| body.lines()).into_iter().flatten();
    lines.filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':').map(|(name, _)| name)).collect()
}

/// Whether the field is taken from a value, or out of it by a pattern.
fn is_read(code: &str, structure: &str, field: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let dotted = format!(".{field}");
    let by_dot =
        code.match_indices(&dotted).any(|(at, _)| !code[at + dotted.len()..].starts_with(|c| is_word(c) || c == '('));
    let pattern = format!("{} {{", structure.split('<').next().unwrap_or(structure));
    let by_pattern = code.match_indices(&pattern).any(|(at, _)| {
        let inside = code[at + pattern.len()..].split('}').next().unwrap_or_default();
        inside.split(|c| !is_word(c)).any(|word| word == field)
    });
    by_dot || by_pattern
}
