//! `k3s certificate`: the certificates on this machine, and the cluster's certificate authorities.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use k3s_pki::{Listed, NotListed, Service, Validity, set_aside};
use k3s_server::{PinnedTokens, Replacement};

use super::{
    Failure, duration,
    failure::{IO_ERROR, NO_INPUT},
    globals::Globals,
    location::NodeFlags,
    output::{self, line, print_json, show, tell},
    running_server::{RunningServer, refused},
    runtime,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the certificates on this machine, and when they end
    Check {
        #[command(flatten)]
        certificates: Certificates,
        /// text, table, json or yaml
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Have certificates and keys made anew by the next start
    ///
    /// The ones of before are kept in a folder beside them; the authorities stay. No certificate needs this to be renewed in time: it is for
    /// keys that others may know.
    Rotate(Certificates),
    /// Replace the cluster's certificate authorities by your own, or by new ones
    ///
    /// To be run on a server. The authorities and the service-account keys are read as PATH/tls/server-ca.crt, PATH/tls/server-ca.key,
    /// PATH/tls/service.key and so on, each with the chain that leads to its root; what is not there stays as it is. The server takes them
    /// if the old authorities vouch for them, and keeps them in the datastore; they count once all servers, and then all agents, have
    /// started again.
    RotateCa(RotateCa),
}

/// Certificates of this machine.
#[derive(Debug, Args)]
pub(super) struct Certificates {
    #[command(flatten)]
    node: NodeFlags,
    /// Only those of these services; of all that run here if not given
    #[arg(short, long = "service", value_name = "SERVICE", value_delimiter = ',')]
    services: Vec<Service>,
}

#[derive(Debug, Args)]
pub(super) struct RotateCa {
    #[command(flatten)]
    server: RunningServer,
    /// The folder that holds tls/server-ca.crt and its like
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Replace them also by ones that the old ones do not vouch for: every node has to join again with the new token, and every pod to
    /// start again
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Text,
    Table,
    Json,
    Yaml,
}

pub(super) fn run(verb: Verb, globals: Globals) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Check { certificates, output } => certificates.find(globals)?.check(output)?,
        Verb::Rotate(certificates) => certificates.find(globals)?.rotate()?,
        Verb::RotateCa(rotate) => runtime::run(rotate.run(globals))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Certificates that are there.
struct Found {
    data_dir: PathBuf,
    /// Those that were asked for, or all.
    services: Vec<Service>,
    /// In the order of the services.
    certificates: Vec<Result<Listed, NotListed>>,
}

impl Certificates {
    fn find(self, globals: Globals) -> Result<Found, Failure> {
        let data_dir = self.node.locate(globals)?.data_dir;
        let services = if self.services.is_empty() { Service::ALL.to_vec() } else { self.services };
        let certificates: Vec<_> = services.iter().flat_map(|service| Listed::of(*service, &data_dir)).collect();
        if certificates.is_empty() {
            let dir = data_dir.display();
            let remedy = "run this as root where k3s has run, and name its directory with --data-dir";
            return Err(Failure::new(NO_INPUT, format!("there are no such certificates in {dir}: {remedy}")));
        }
        Ok(Found { data_dir, services, certificates })
    }
}

impl Found {
    fn check(self, format: Format) -> Result<(), Failure> {
        let now = SystemTime::now();
        let mut listed = Vec::new();
        for certificate in self.certificates {
            match certificate {
                Ok(certificate) => listed.push(certificate),
                Err(NotListed::File(error)) => return Err(Failure::from_error(IO_ERROR, &error)),
                Err(error @ NotListed::Unreadable { .. }) => tell(format_args!("{error}.")),
            }
        }
        match format {
            Format::Text => show(sentences(&listed, now)),
            Format::Table => show(table(&listed, now)),
            // JSON is YAML too.
            Format::Json | Format::Yaml => {
                let rows: Vec<_> = listed.iter().map(|listed| in_full(listed, now)).collect();
                print_json("the list", &serde_json::json!({ "Certificates": rows }))
            }
        }
    }

    fn rotate(self) -> Result<(), Failure> {
        let kept = set_aside(&self.data_dir, &self.services, SystemTime::now())
            .map_err(|error| Failure::from_error(IO_ERROR, &error))?;
        line(format_args!("The certificates and keys of before are in {}.", kept.display()))?;
        line("Start k3s again: it makes new ones. Then remove that folder.")
    }
}

impl RotateCa {
    async fn run(self, globals: Globals) -> Result<(), Failure> {
        let server = self.server.find(globals)?;
        let replacement = if self.force { Replacement::Forced } else { Replacement::Vouched };
        let tokens = server.access()?.replace_authorities(&self.path, replacement).await.map_err(refused)?;
        line("The datastore holds the new certificate authorities.")?;
        line("Start every server again, one after the other, and then every agent: they count from then on.")?;
        if tokens == PinnedTokens::Change {
            let file = server.token_file();
            line(format_args!(
                "Whole tokens (K10…) pin another root from then on: where one is configured, put what {} holds then.",
                file.display()
            ))?;
        }
        Ok(())
    }
}

/// A line for each, as k3s tells it.
fn sentences(listed: &[Listed], now: SystemTime) -> String {
    let sentence = |listed: &Listed| {
        let what = format!("{}: certificate {} ({})", file_name(&listed.path), listed.subject, listed.usages.join(","));
        let ends = time(listed.not_after);
        match listed.validity(now) {
            Validity::Good => format!("{what} is ok, expires at {ends}\n"),
            Validity::EndsSoon => format!("{what} will expire within 120 days at {ends}\n"),
            Validity::Ended => format!("{what} expired at {ends}\n"),
            Validity::NotYetValid => format!("{what} is not valid before {}\n", time(listed.not_before)),
        }
    };
    listed.iter().map(sentence).collect()
}

fn table(listed: &[Listed], now: SystemTime) -> String {
    let header = ["FILENAME", "SUBJECT", "USAGES", "EXPIRES", "RESIDUAL TIME", "STATUS"].map(str::to_owned);
    let row = |listed: &Listed| {
        [
            file_name(&listed.path),
            listed.subject.clone(),
            listed.usages.join(","),
            time(listed.not_after),
            duration::short(residual(listed, now)),
            listed.validity(now).to_string(),
        ]
    };
    output::table(std::iter::once(header).chain(listed.iter().map(row)))
}

/// k3s' names and units: nanoseconds of the rest of its life.
fn in_full(listed: &Listed, now: SystemTime) -> serde_json::Value {
    let validity = listed.validity(now);
    let expiry = if validity == Validity::NotYetValid { listed.not_before } else { listed.not_after };
    let nanoseconds = i64::try_from(residual(listed, now).as_nanos()).unwrap_or(i64::MAX);
    serde_json::json!({
        "Filename": file_name(&listed.path),
        "Subject": listed.subject,
        "Issuer": listed.issuer,
        "Usages": listed.usages,
        "ExpiryTime": time(expiry),
        "ResidualTime": nanoseconds,
        "Status": validity.to_string(),
    })
}

/// Nothing of one that has ended.
fn residual(listed: &Listed, now: SystemTime) -> Duration {
    listed.not_after.duration_since(now).unwrap_or_default()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn time(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "a time beyond all calendars".to_owned(), |time| format!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn listed(subject: &str, begins: i64, ends: i64) -> Listed {
        let at = |days: i64| {
            let distance = DAY * u32::try_from(days.unsigned_abs()).unwrap();
            if days < 0 { now() - distance } else { now() + distance }
        };
        Listed {
            path: "/data/server/tls/client-admin.crt".into(),
            subject: subject.into(),
            issuer: "k3s-client-ca@1".into(),
            usages: vec!["ServerAuth", "ClientAuth"],
            not_before: at(begins),
            not_after: at(ends),
        }
    }

    #[test]
    fn a_table_and_sentences_tell_the_same() {
        let all = [listed("good", -1, 300), listed("soon", -1, 30), listed("ended", -9, -1), listed("future", 1, 300)];
        assert_eq!(
            table(&all, now()),
            "FILENAME         SUBJECT USAGES                EXPIRES              RESIDUAL TIME STATUS\n\
             client-admin.crt good    ServerAuth,ClientAuth 2027-11-11T08:00:00Z 300d          OK\n\
             client-admin.crt soon    ServerAuth,ClientAuth 2027-02-14T08:00:00Z 30d           WARNING\n\
             client-admin.crt ended   ServerAuth,ClientAuth 2027-01-14T08:00:00Z 0s            EXPIRED\n\
             client-admin.crt future  ServerAuth,ClientAuth 2027-11-11T08:00:00Z 300d          NOT YET VALID\n"
        );
        let text = sentences(&all, now());
        let ends: Vec<_> = text.lines().map(|line| line.split_once(") ").unwrap().1).collect();
        assert_eq!(
            ends,
            [
                "is ok, expires at 2027-11-11T08:00:00Z",
                "will expire within 120 days at 2027-02-14T08:00:00Z",
                "expired at 2027-01-14T08:00:00Z",
                "is not valid before 2027-01-16T08:00:00Z",
            ]
        );
    }

    #[test]
    fn json_is_k3s_own() {
        assert_eq!(
            in_full(&listed("good", -1, 300), now()),
            serde_json::json!({
                "Filename": "client-admin.crt",
                "Subject": "good",
                "Issuer": "k3s-client-ca@1",
                "Usages": ["ServerAuth", "ClientAuth"],
                "ExpiryTime": "2027-11-11T08:00:00Z",
                "ResidualTime": 25_920_000_000_000_000_i64,
                "Status": "OK",
            })
        );
    }
}
