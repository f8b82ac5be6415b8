//! `k3s secrets-encrypt`: how Secrets are encrypted in the datastore, and with which keys.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use k3s_server::{EncryptionRequest, EncryptionStatus};
use serde::Serialize as _;
use serde_json::{Serializer, ser::PrettyFormatter};

use super::{
    Failure,
    globals::Globals,
    output::{Format, line, tell},
    running_server::{FoundServer, RunningServer, refused},
    runtime,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show whether Secrets are encrypted, with which key, and where an exchange of keys is
    Status {
        #[command(flatten)]
        server: RunningServer,
        /// text or json
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Encrypt Secrets, those that are there too
    ///
    /// Where nothing is set up yet, servers have to start again with --secrets-encryption first, and `rotate-keys` makes the first key.
    Enable {
        #[command(flatten)]
        server: RunningServer,
    },
    /// Write Secrets in the clear, those that are there too
    Disable {
        #[command(flatten)]
        server: RunningServer,
    },
    /// Make a new key, encrypt all Secrets with it, and forget the old one
    ///
    /// It takes a minute or two, since kube-apiserver looks at its keys once a minute. What was begun goes on by itself, also when this
    /// command or the server is stopped; other servers take the new key without a restart.
    RotateKeys {
        #[command(flatten)]
        server: RunningServer,
    },
    /// Make a new key that Secrets can be read with: the first of three stages that are gone through by hand
    Prepare(Stage),
    /// Encrypt with the new key from now on: the second stage
    Rotate(Stage),
    /// Encrypt all Secrets with the new key, and forget the old one: the third stage
    Reencrypt {
        #[command(flatten)]
        stage: Stage,
        /// Keep the old keys
        #[arg(long)]
        skip: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Stage {
    #[command(flatten)]
    server: RunningServer,
    /// Also from another stage than the one before, or while servers differ
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(verb: Verb, globals: Globals) -> Result<ExitCode, Failure> {
    let staged =
        |stage: &str, force, skip| EncryptionRequest { stage: Some(stage.to_owned()), enabled: None, force, skip };
    let switched = |on| EncryptionRequest { enabled: Some(on), ..EncryptionRequest::default() };
    // What is told at the end is k3s', which scripts look for.
    let (server, request, wanted, done) = match verb {
        Verb::Status { server, output } => {
            runtime::run(status(server.find(globals)?, output))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Enable { server } => {
            runtime::run(enable(server.find(globals)?, switched(true)))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Disable { server } => {
            (server, switched(false), "write Secrets in the clear", "secrets-encryption disabled")
        }
        Verb::RotateKeys { server } => {
            let request = staged("rotate_keys", false, false);
            (server, request, "exchange the keys", "keys rotated, reencryption finished")
        }
        Verb::Prepare(Stage { server, force }) => {
            (server, staged("prepare", force, false), "make a new key", "prepare completed successfully")
        }
        Verb::Rotate(Stage { server, force }) => {
            (server, staged("rotate", force, false), "encrypt with the new key", "rotate completed successfully")
        }
        Verb::Reencrypt { stage: Stage { server, force }, skip } => (
            server,
            staged("reencrypt_active", force, skip),
            "encrypt all Secrets with the new key",
            "reencryption started",
        ),
    };
    let server = server.find(globals)?;
    runtime::run(async { server.access()?.change_encryption(&request, wanted).await.map_err(refused) })?;
    line(done)?;
    Ok(ExitCode::SUCCESS)
}

async fn status(server: FoundServer, format: Format) -> Result<(), Failure> {
    let status = server.access()?.encryption_status().await.map_err(refused)?;
    match format {
        Format::Text => line(text(&status)),
        Format::Json => line(json(&status)),
    }
}

async fn enable(server: FoundServer, request: EncryptionRequest) -> Result<(), Failure> {
    let access = server.access()?;
    access.change_encryption(&request, "encrypt Secrets").await.map_err(refused)?;
    let status = access.encryption_status().await.map_err(refused)?;
    line("secrets-encryption enabled")?;
    if status.enabled != Some(true) {
        tell(
            "There is no key yet: start the servers again with --secrets-encryption, then run `k3s secrets-encrypt rotate-keys`.",
        );
    }
    Ok(())
}

/// As Go indents it.
fn json(status: &EncryptionStatus) -> String {
    let mut json = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(b"\t"));
    status.serialize(&mut serializer).expect("texts and lists are JSON");
    String::from_utf8(json).expect("JSON is UTF-8")
}

/// As k3s prints it.
fn text(status: &EncryptionStatus) -> String {
    let Some(enabled) = status.enabled else {
        return "Encryption Status: Disabled, no configuration file found".to_owned();
    };
    let hashes = if status.hashes_match { "All hashes match" } else { &*status.hash_error };
    let mut text = format!(
        "Encryption Status: {}\nCurrent Rotation Stage: {}\nServer Encryption Hashes: {hashes}\n\n",
        if enabled { "Enabled" } else { "Disabled" },
        status.stage
    );
    let keys = Some((" *", &status.active_key)).filter(|(_, key)| !key.is_empty());
    let keys = keys.into_iter().chain(status.inactive_keys.iter().map(|key| ("", key)));
    let rows = keys.map(|(active, key)| match key.split_once(' ') {
        Some((cipher, name)) => (active, cipher, name),
        None => (active, "", key.as_str()),
    });
    let rows: Vec<_> =
        [("Active", "Key Type", "Name"), ("------", "--------", "----")].into_iter().chain(rows).collect();
    let wide = rows.iter().map(|(_, cipher, _)| cipher.len()).max().unwrap_or_default() + 2;
    for (active, cipher, name) in rows {
        text += &format!("{active:8}{cipher:wide$}{name}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_k3s() {
        assert_eq!(text(&EncryptionStatus::default()), "Encryption Status: Disabled, no configuration file found");
        let mut status = EncryptionStatus {
            stage: "reencrypt_active".into(),
            active_key: "XSalsa20-POLY1305 secretboxkey-2027-01-15T08:00:00Z".into(),
            enabled: Some(true),
            hashes_match: true,
            hash_error: String::new(),
            inactive_keys: vec!["AES-CBC aescbckey".into()],
        };
        assert_eq!(
            text(&status),
            "Encryption Status: Enabled\n\
             Current Rotation Stage: reencrypt_active\n\
             Server Encryption Hashes: All hashes match\n\
             \n\
             Active  Key Type           Name\n\
             ------  --------           ----\n \
             *      XSalsa20-POLY1305  secretboxkey-2027-01-15T08:00:00Z\n        \
             AES-CBC            aescbckey\n"
        );
        (status.hashes_match, status.hash_error) = (false, "hash does not match between one and two".into());
        assert!(text(&status).contains("\nServer Encryption Hashes: hash does not match between one and two\n"));
        assert!(json(&status).starts_with("{\n\t\"stage\": \"reencrypt_active\",\n"));
    }
}
