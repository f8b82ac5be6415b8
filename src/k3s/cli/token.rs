//! `k3s token`: the bootstrap tokens that nodes may join with for a while, and the server's own token.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use k3s_identity::{
    BootstrapGroup, BootstrapToken, BootstrapTokenSecret, DEFAULT_GROUP, NoBootstrapToken, SECRET_TYPE, Token, Usage,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};

use super::{
    Failure,
    administrator::{Administrator, Credentials},
    duration,
    failure::{CANNOT_CREATE, NO_INPUT, SOFTWARE, USAGE},
    globals::Globals,
    output::{self, line, print_json, show, tell},
    running_server::{RunningServer, refused},
    runtime,
};

/// Where Kubernetes looks for bootstrap tokens.
const NAMESPACE: &str = "kube-system";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a bootstrap token that agents may join with, and print it in full
    Create(Create),
    /// Delete bootstrap tokens
    Delete {
        #[command(flatten)]
        administrator: Administrator,
        /// Tokens, or their first six characters as `list` shows them
        #[arg(required = true, value_name = "TOKEN", value_parser = id)]
        tokens: Vec<String>,
    },
    /// Print a random bootstrap token, and store nothing
    Generate,
    /// List the bootstrap tokens
    List {
        #[command(flatten)]
        administrator: Administrator,
        /// text, json or yaml; the last two tell the secrets
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Exchange the token that servers and agents join with for another one
    ///
    /// To be run on a server. The other servers have to be started again with the new token; agents that have joined need none. Keep the
    /// old token for as long as you keep snapshots that were taken under it: only it opens them.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    server: RunningServer,
    /// The token to be; a random one if not given
    #[arg(long, value_name = "TOKEN")]
    new_token: Option<String>,
    /// Taken as k3s takes it; no kubeconfig is needed
    #[arg(long, value_name = "FILE", hide = true)]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    administrator: Administrator,
    /// What it is for, for people
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Further groups that its bearer is in
    #[arg(long, value_name = "GROUP", value_delimiter = ',', default_value = DEFAULT_GROUP)]
    groups: Vec<BootstrapGroup>,
    /// After how long it ends, such as 1h30m; 0 is never
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    ttl: Duration,
    /// What it may be used for
    #[arg(long, value_name = "USAGE", value_delimiter = ',', default_value = "signing,authentication")]
    usages: Vec<Usage>,
    /// The token; a random one if not given
    token: Option<BootstrapToken>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
    Yaml,
}

pub(super) fn run(verb: Verb, globals: Globals) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Create(create) => runtime::run(create.run(globals))?,
        Verb::Delete { administrator, tokens } => runtime::run(delete(&administrator.credentials(globals)?, &tokens))?,
        Verb::Generate => line(random()?)?,
        Verb::List { administrator, output } => runtime::run(list(&administrator.credentials(globals)?, output))?,
        Verb::Rotate(rotate) => runtime::run(rotate.run(globals))?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Rotate {
    async fn run(self, globals: Globals) -> Result<(), Failure> {
        let server = self.server.find(globals)?;
        server.access()?.rotate_token(self.new_token.as_deref()).await.map_err(refused)?;
        line(format_args!("The token is exchanged; the new one is in {}.", server.token_file().display()))?;
        line("Start the other servers again with it, and correct --token where it is configured.")?;
        line("Keep the old one for the snapshots that were taken under it.")
    }
}

impl Create {
    async fn run(self, globals: Globals) -> Result<(), Failure> {
        let Self { administrator, description, groups, ttl, usages, token } = self;
        let administrator = administrator.credentials(globals)?;
        let token = token.map_or_else(random, Ok)?;
        let ca_hash = administrator.ca_hash()?;
        let secret = BootstrapTokenSecret {
            token: token.clone(),
            description,
            expires: end(Timestamp::now(), ttl)?,
            usages: BTreeSet::from_iter(usages),
            groups,
        };
        let api = secrets(&administrator).await?;
        match api.create(&PostParams::default(), &to_object(&secret)).await {
            Ok(_) => line(Token::bootstrap(ca_hash, token)),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let id = token.id();
                let remedy = format!("delete it with `k3s token delete {id}`, or choose another one");
                Err(Failure::new(CANNOT_CREATE, format!("there is a bootstrap token {id} already: {remedy}")))
            }
            Err(error) => Err(administrator.failed("store the bootstrap token", &error)),
        }
    }
}

async fn delete(administrator: &Credentials, ids: &[String]) -> Result<(), Failure> {
    let api = secrets(administrator).await?;
    for id in ids {
        match api.delete(&BootstrapToken::secret_name(id), &DeleteParams::default()).await {
            Ok(_) => line(format_args!("Deleted the bootstrap token {id}."))?,
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                let why = format!("there is no bootstrap token {id}: `k3s token list` shows all");
                return Err(Failure::new(NO_INPUT, why));
            }
            Err(error) => return Err(administrator.failed(&format!("delete the bootstrap token {id}"), &error)),
        }
    }
    Ok(())
}

async fn list(administrator: &Credentials, format: Format) -> Result<(), Failure> {
    let of_type = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
    let api = secrets(administrator).await?;
    let found = api.list(&of_type).await.map_err(|error| administrator.failed("list the bootstrap tokens", &error))?;
    let mut tokens = Vec::new();
    for object in found {
        match from_object(&object) {
            Ok(token) => tokens.push(token),
            Err(why) => {
                tell(format_args!("The Secret {NAMESPACE}/{} is no bootstrap token: {why}.", object.name_any()));
            }
        }
    }
    match format {
        Format::Text => show(table(&tokens, Timestamp::now()))?,
        // JSON is YAML too.
        Format::Json | Format::Yaml => print_json("the list", &tokens.iter().map(in_full).collect::<Vec<_>>())?,
    }
    Ok(())
}

async fn secrets(administrator: &Credentials) -> Result<Api<Secret>, Failure> {
    Ok(Api::namespaced(administrator.client().await?, NAMESPACE))
}

fn to_object(secret: &BootstrapTokenSecret) -> Secret {
    let data = secret.to_data().into_iter().map(|(key, value)| (key, ByteString(value))).collect();
    Secret {
        metadata: ObjectMeta {
            name: Some(BootstrapToken::secret_name(secret.token.id())),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

fn from_object(object: &Secret) -> Result<BootstrapTokenSecret, k3s_identity::BadSecret> {
    let data = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
    BootstrapTokenSecret::from_data(&object.name_any(), &data)
}

/// The columns of `k3s token list`: of the token only its public part.
fn table(tokens: &[BootstrapTokenSecret], now: Timestamp) -> String {
    let header = ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"].map(str::to_owned);
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let row = |secret: &BootstrapTokenSecret| {
        let (ttl, expires) = match secret.expires {
            Some(expires) => (left(now, expires), format!("{expires:.0}")),
            None => ("<forever>".to_owned(), "<never>".to_owned()),
        };
        [
            secret.token.id().to_owned(),
            ttl,
            expires,
            or_none(joined(&secret.usages)),
            or_none(secret.description.clone()),
            or_none(joined(secret.groups.iter().map(BootstrapGroup::as_str))),
        ]
    };
    output::table(std::iter::once(header).chain(tokens.iter().map(row)))
}

/// As kubeadm's types stand in JSON.
fn in_full(secret: &BootstrapTokenSecret) -> serde_json::Value {
    let mut value = serde_json::json!({ "token": secret.token.to_string() });
    let mut set = |key: &str, given: bool, field: serde_json::Value| {
        if given {
            value[key] = field;
        }
    };
    set("description", !secret.description.is_empty(), secret.description.clone().into());
    set("expires", secret.expires.is_some(), secret.expires.map(|expires| format!("{expires:.0}")).into());
    set("usages", !secret.usages.is_empty(), secret.usages.iter().map(ToString::to_string).collect());
    set("groups", !secret.groups.is_empty(), secret.groups.iter().map(BootstrapGroup::as_str).collect());
    value
}

fn joined(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn left(now: Timestamp, expires: Timestamp) -> String {
    Duration::try_from(expires.duration_since(now)).map_or_else(|_| "<expired>".to_owned(), duration::short)
}

fn end(now: Timestamp, ttl: Duration) -> Result<Option<Timestamp>, Failure> {
    if ttl.is_zero() {
        return Ok(None);
    }
    let end =
        now.checked_add(ttl).map_err(|_| Failure::new(USAGE, "--ttl is longer than time is known; use 0 for ever"))?;
    Ok(Some(end))
}

fn random() -> Result<BootstrapToken, Failure> {
    BootstrapToken::random().map_err(|error| Failure::from_error(SOFTWARE, &error))
}

/// The public part of a token that is given whole or by it.
fn id(text: &str) -> Result<String, NoBootstrapToken> {
    if BootstrapToken::is_id(text) {
        return Ok(text.to_owned());
    }
    // As `create` prints it, too.
    let bare = text.rsplit("::").next().unwrap_or(text);
    bare.parse().map(|token: BootstrapToken| token.id().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(token: &str, expires: Option<&str>) -> BootstrapTokenSecret {
        BootstrapTokenSecret {
            token: token.parse().unwrap(),
            description: String::new(),
            expires: expires.map(|time| time.parse().unwrap()),
            usages: [Usage::Authentication, Usage::Signing].into(),
            groups: vec![DEFAULT_GROUP.parse().unwrap()],
        }
    }

    #[test]
    fn the_list_shows_no_secret() {
        let now = "2026-11-21T18:00:00Z".parse().unwrap();
        let ends = |time| secret("abcdef.0123456789abcdef", Some(time));
        let tokens =
            [ends("2026-11-22T17:00:00Z"), ends("2026-11-21T17:00:00Z"), secret("bcdefg.0123456789abcdef", None)];
        assert_eq!(
            table(&tokens, now),
            "TOKEN  TTL       EXPIRES              USAGES                 DESCRIPTION EXTRA GROUPS\n\
             abcdef 23h       2026-11-22T17:00:00Z authentication,signing <none>      system:bootstrappers:k3s:default-node-token\n\
             abcdef <expired> 2026-11-21T17:00:00Z authentication,signing <none>      system:bootstrappers:k3s:default-node-token\n\
             bcdefg <forever> <never>              authentication,signing <none>      system:bootstrappers:k3s:default-node-token\n"
        );
    }

    #[test]
    fn json_is_kubeadms() {
        assert_eq!(
            in_full(&secret("abcdef.0123456789abcdef", Some("2026-11-22T17:00:00Z"))),
            serde_json::json!({
                "token": "abcdef.0123456789abcdef",
                "expires": "2026-11-22T17:00:00Z",
                "usages": ["authentication", "signing"],
                "groups": ["system:bootstrappers:k3s:default-node-token"],
            })
        );
    }

    #[test]
    fn an_object_holds_what_it_was_made_of() {
        let secret = secret("abcdef.0123456789abcdef", None);
        let object = to_object(&secret);
        assert_eq!(object.metadata.name.as_deref(), Some("bootstrap-token-abcdef"));
        assert_eq!(from_object(&object), Ok(secret));
    }

    #[test]
    fn a_token_is_deleted_by_its_id_or_whole() {
        for text in ["abcdef", "abcdef.0123456789abcdef", "K10::abcdef.0123456789abcdef"] {
            assert_eq!(id(text).as_deref(), Ok("abcdef"), "{text}");
        }
        for bad in ["", "abcde", "Abcdef", "abcdef.0123"] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_without_a_ttl_has_no_end() {
        let now: Timestamp = "2026-11-21T18:00:00Z".parse().unwrap();
        assert_eq!(end(now, Duration::ZERO).unwrap(), None);
        assert_eq!(end(now, Duration::from_secs(3600)).unwrap(), Some("2026-11-21T19:00:00Z".parse().unwrap()));
        assert!(end(now, Duration::MAX).is_err());
    }
}
