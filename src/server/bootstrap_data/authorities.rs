//! Other authorities in the place of stored ones: what is brought is completed by what is stored, and judged before anything is written.
//! Which files can be replaced, and the rules, are k3s' (`k3s certificate rotate-ca`).

use std::{path::Path, time::SystemTime};

use k3s_files::FileError;
use k3s_pki::{Unfit, authority_succeeds, service_keys_succeed};
use k3s_supervisor_api::{BootstrapData, Replacement};
use tracing::warn;

use super::files::{self, place_of};

/// k3s' names of the authorities, each with its key's.
const AUTHORITIES: [(&str, &str); 5] = [
    ("ServerCA", "ServerCAKey"),
    ("ClientCA", "ClientCAKey"),
    ("RequestHeaderCA", "RequestHeaderCAKey"),
    ("ETCDServerCA", "ETCDServerCAKey"),
    ("ETCDPeerCA", "ETCDPeerCAKey"),
];

/// k3s' name of the service-account keys.
const SERVICE_KEYS: &str = "ServiceKey";

/// Why authorities are not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReplaced {
    /// Nothing is brought that could be replaced.
    #[error("there is neither an authority nor a key among the files: tls/server-ca.crt and its like are meant")]
    Nothing,
    /// Some of it will not do.
    #[error("{}", sentence(reasons))]
    Unfit {
        /// The files below `<data>/server`, and what is against them.
        reasons: Vec<(&'static str, Unfit)>,
    },
}

/// What lies in a folder that is laid out as `<data>/server` and can take the place of what is stored.
pub(crate) fn from_folder(folder: &Path) -> Result<BootstrapData, FileError> {
    let mut data = files::from_disk(folder)?;
    data.files.retain(|name, file| is_replaceable(name) && !file.content.is_empty());
    Ok(data)
}

/// `stored` with the authorities and keys of `offered`; empty ones and all other files stay as they are.
///
/// They are judged by what is `in_use`, as that is what the nodes of the cluster and its pods trust at this moment. `replacement` says
/// whether that is put up with which a cluster can live with.
///
/// # Errors
/// Everything that is against it.
pub(crate) fn with_authorities(
    stored: BootstrapData,
    in_use: &BootstrapData,
    offered: &BootstrapData,
    replacement: Replacement,
    now: SystemTime,
) -> Result<BootstrapData, NotReplaced> {
    let mut data = stored;
    let offered: Vec<_> =
        offered.files.iter().filter(|(name, file)| is_replaceable(name) && !file.content.is_empty()).collect();
    if offered.is_empty() {
        return Err(NotReplaced::Nothing);
    }
    for (name, file) in &offered {
        if content(&data, name) != file.content {
            files::supersede(&mut data, in_use, name, file.content.clone());
        }
    }
    let is_offered = |name: &str| offered.iter().any(|(offered, _)| *offered == name);
    let is_forced = |unfit: &Unfit| replacement == Replacement::Forced && unfit.can_be_forced();
    let (forced, reasons): (Vec<_>, Vec<_>) =
        unfit(&data, in_use, is_offered, now).into_iter().partition(|(_, unfit)| is_forced(unfit));
    if !reasons.is_empty() {
        return Err(NotReplaced::Unfit { reasons });
    }
    for (path, reason) in forced {
        warn!(path, %reason, "A certificate authority or key is replaced by force.");
    }
    Ok(data)
}

/// What is against `data` in the place of what is `in_use`, where it was offered and differs: what stays was good enough until now.
fn unfit(
    data: &BootstrapData,
    in_use: &BootstrapData,
    is_offered: impl Fn(&str) -> bool,
    now: SystemTime,
) -> Vec<(&'static str, Unfit)> {
    let differs = |name| content(data, name) != content(in_use, name);
    let mut reasons = Vec::new();
    for (name, key) in AUTHORITIES {
        if (is_offered(name) || is_offered(key)) && (differs(name) || differs(key)) {
            let judged = authority_succeeds(content(in_use, name), content(data, name), content(data, key), now);
            // With another key alone, nobody has to trust anything new.
            let is_new = is_offered(name) && differs(name);
            reasons.extend(judged.err().filter(|unfit| is_new || !unfit.can_be_forced()).map(|unfit| (name, unfit)));
        }
    }
    if is_offered(SERVICE_KEYS) && differs(SERVICE_KEYS) {
        let judged = service_keys_succeed(content(in_use, SERVICE_KEYS), content(data, SERVICE_KEYS));
        reasons.extend(judged.err().map(|unfit| (SERVICE_KEYS, unfit)));
    }
    reasons.into_iter().filter_map(|(name, unfit)| Some((place_of(name)?, unfit))).collect()
}

fn is_replaceable(name: &str) -> bool {
    name == SERVICE_KEYS || AUTHORITIES.iter().any(|(certificate, key)| name == *certificate || name == *key)
}

/// A file's; nothing if there is none.
fn content<'a>(data: &'a BootstrapData, name: &str) -> &'a [u8] {
    data.files.get(name).map(|file| file.content.as_slice()).unwrap_or_default()
}

fn sentence(reasons: &[(&'static str, Unfit)]) -> String {
    let told: Vec<_> = reasons.iter().map(|(path, unfit)| format!("{path}: {unfit}")).collect();
    let remedy = if reasons.iter().all(|(_, unfit)| unfit.can_be_forced()) {
        "; --force replaces them all the same, and whatever trusts the old ones has to be set up again"
    } else {
        ""
    };
    format!("{}{remedy}", told.join("; "))
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use k3s_supervisor_api::File;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;
    use Replacement::{Forced, Vouched};

    /// `<name>` and `<name>Key` of an authority, below `root` if there is one.
    fn authority(name: &str, root: Option<&BootstrapData>) -> BootstrapData {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let text = |root: &BootstrapData, name: &str| String::from_utf8(content(root, name).to_vec()).unwrap();
        let chain = match root {
            None => params.self_signed(&key).unwrap().pem(),
            Some(root) => {
                params.use_authority_key_identifier_extension = true;
                let (above, above_key) =
                    (text(root, name), KeyPair::from_pem(&text(root, &format!("{name}Key"))).unwrap());
                let issuer = Issuer::from_ca_cert_pem(&above, above_key).unwrap();
                params.signed_by(&key, &issuer).unwrap().pem() + &above
            }
        };
        of([(name.to_owned(), chain), (format!("{name}Key"), key.serialize_pem())])
    }

    fn of(files: impl IntoIterator<Item = (String, String)>) -> BootstrapData {
        let modified = "2026-01-02T03:04:05Z".parse().unwrap();
        let file = |(name, text): (String, String)| (name, File { modified, content: text.into() });
        BootstrapData { files: files.into_iter().map(file).collect() }
    }

    fn both(mut one: BootstrapData, other: &BootstrapData) -> BootstrapData {
        one.complete_by(other);
        one
    }

    /// `offered` in the place of `in_use`, which is stored too.
    fn replaced(
        in_use: &BootstrapData,
        offered: &BootstrapData,
        replacement: Replacement,
    ) -> Result<BootstrapData, String> {
        let replaced = with_authorities(in_use.clone(), in_use, offered, replacement, SystemTime::now());
        replaced.map_err(|error| error.to_string())
    }

    #[test]
    fn only_authorities_and_keys_that_are_brought_change() {
        let accounts = of([("PasswdFile".into(), "accounts".into()), ("Tomorrow".into(), "x".into())]);
        let in_use = both(both(authority("ServerCA", None), &authority("ClientCA", None)), &accounts);
        let new = authority("ServerCA", Some(&in_use));
        let others = of([("PasswdFile".into(), "mine".into()), ("ClientCA".into(), String::new())]);
        let data = replaced(&in_use, &both(others, &new), Vouched).unwrap();
        let expected = both(new, &in_use);
        assert!(data.same_contents(&expected));
        assert!(
            replaced(&in_use, &accounts, Vouched).unwrap_err().starts_with("there is neither an authority nor a key")
        );
    }

    #[test]
    fn what_is_stored_is_not_older_than_what_it_replaces() {
        let mut in_use = authority("ServerCA", None);
        let ahead = Timestamp::now() + SignedDuration::from_hours(1);
        in_use.files.get_mut("ServerCA").unwrap().modified = ahead;
        let data = replaced(&in_use, &authority("ServerCA", Some(&in_use)), Vouched).unwrap();
        assert_eq!(data.files["ServerCA"].modified, ahead);
        assert!(data.files["ServerCAKey"].modified > in_use.files["ServerCAKey"].modified);
    }

    #[test]
    fn what_stays_as_it_is_is_not_judged() {
        let in_use = both(authority("ServerCA", None), &authority("ClientCA", None));
        // A single certificate, as the first start of a cluster makes it.
        assert_eq!(replaced(&in_use, &in_use, Vouched), Ok(in_use.clone()));
        let offered = both(authority("ServerCA", Some(&in_use)), &in_use);
        assert!(replaced(&in_use, &offered, Vouched).unwrap().same_contents(&offered));
    }

    #[test]
    fn every_reason_is_told_and_force_helps_only_against_some() {
        let in_use = both(authority("ServerCA", None), &authority("ClientCA", None));
        let strangers = both(authority("ServerCA", None), &authority("ClientCA", None));
        let refused = replaced(&in_use, &strangers, Vouched).unwrap_err();
        let single = "it holds a single certificate, and not those that lead to its root";
        assert!(
            refused.starts_with(&format!("tls/server-ca.crt: {single}; tls/client-ca.crt: {single}; --force")),
            "{refused}"
        );
        assert!(replaced(&in_use, &strangers, Forced).unwrap().same_contents(&strangers));

        let halves = both(of([("ClientCAKey".into(), "none".into())]), &strangers);
        for replacement in [Vouched, Forced] {
            let refused = replaced(&in_use, &halves, replacement).unwrap_err();
            assert!(refused.contains("tls/client-ca.crt: its key is not") && !refused.contains("--force"), "{refused}");
        }
    }

    #[test]
    fn the_ones_in_use_count_until_the_next_start() {
        let in_use = both(authority("ServerCA", None), &authority("ClientCA", None));
        let stored = both(authority("ServerCA", None), &in_use);
        let judged =
            |offered: &BootstrapData| with_authorities(stored.clone(), &in_use, offered, Vouched, SystemTime::now());
        judged(&authority("ServerCA", Some(&stored))).unwrap_err();
        judged(&authority("ServerCA", Some(&in_use))).unwrap();
        // What was forced before is not asked about again.
        let client_ca = authority("ClientCA", Some(&in_use));
        let data = judged(&client_ca).unwrap();
        assert_eq!(data.files["ServerCA"], stored.files["ServerCA"]);
        // It is taken back by what is in use, certificate and key.
        let [certificate, key] = ["ServerCA", "ServerCAKey"]
            .map(|name| of([(name.to_owned(), String::from_utf8(content(&in_use, name).to_vec()).unwrap())]));
        let half = judged(&certificate).unwrap_err().to_string();
        assert!(half.contains("its first certificate is not for its key"), "{half}");
        assert!(judged(&both(certificate, &key)).unwrap().same_contents(&in_use));
    }
}
