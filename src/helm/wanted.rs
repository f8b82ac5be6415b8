//! What a HelmChart, its HelmChartConfig and the objects that they name ask for, all in one.

use std::{net::SocketAddr, time::Duration};

use aws_lc_rs::digest;
use data_encoding::{BASE64_MIME_PERMISSIVE, HEXUPPER};
use serde_json::Value;

use crate::{
    chart::{ConfigSpec, Driver, FailurePolicy, Reference, ServerSide, Spec, ValuesSecret},
    inputs::{Data, Objects},
    set::{Setting, settings},
    source::Source,
    values::{Layer, Part, ValuesFile, file_name},
};

/// How long one step of Helm takes at most where nothing says it: Helm's own.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How often a chart is tried again where nothing says it: the limit of k3s' jobs.
const BACK_OFF_LIMIT: u32 = 1000;
/// The characters of a hash that fit into a label.
const LABEL: usize = 63;

/// A release as it is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) target: Target,
    pub(crate) source: Source,
    pub(crate) version: String,
    /// The archive of [`Source::Content`].
    pub(crate) content: Vec<u8>,
    pub(crate) values: Vec<ValuesFile>,
    pub(crate) set: Vec<Setting>,
    pub(crate) create_namespace: bool,
    pub(crate) take_ownership: bool,
    pub(crate) server_side: Option<ServerSide>,
    pub(crate) force_conflicts: bool,
    pub(crate) policy: FailurePolicy,
    /// How often it is tried again.
    pub(crate) back_off_limit: u32,
    pub(crate) access: Access,
    /// Fields that are set and have no effect here, as a user reads it.
    pub(crate) ignored: Vec<&'static str>,
}

/// A release by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) driver: Driver,
    /// How long one step of Helm may take.
    pub(crate) timeout: Duration,
}

/// How the chart is fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// The authorities whose certificates are believed, PEM; those of the machine if there are none.
    pub(crate) authorities: Vec<u8>,
    pub(crate) login: Option<Login>,
    /// Also to other hosts than the repository's.
    pub(crate) pass_credentials: bool,
    /// A Docker configuration with logins for registries.
    pub(crate) registries: Option<Vec<u8>>,
    pub(crate) insecure_skip_tls_verify: bool,
    pub(crate) plain_http: bool,
}

/// What one shows to a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Basic { username: String, password: String },
    Certificate { certificate: Vec<u8>, key: Vec<u8> },
}

impl Target {
    /// With the timeout of `spec`, if it says one.
    pub(crate) fn new(name: &str, namespace: &str, spec: &Spec) -> Self {
        let timeout = spec.timeout.filter(|timeout| !timeout.is_negative()).map_or(TIMEOUT, Duration::from);
        Self { name: name.to_owned(), namespace: namespace.to_owned(), driver: spec.driver, timeout }
    }
}

impl Wanted {
    /// What they ask for; `api` is the address of this server.
    ///
    /// # Errors
    /// What is missing or wrong, as a user reads it.
    pub(crate) fn new(
        target: Target,
        spec: &Spec,
        config: &ConfigSpec,
        objects: &Objects,
        api: SocketAddr,
    ) -> Result<Self, String> {
        let source = Source::of(spec, api)?;
        let mut values = values_of(Layer::Chart, &spec.values_content, &spec.values, &spec.values_secrets, objects)?;
        values.extend(values_of(
            Layer::Config,
            &config.values_content,
            &config.values,
            &config.values_secrets,
            objects,
        )?);
        Ok(Self {
            version: if source.has_versions() { spec.version.trim().to_owned() } else { String::new() },
            content: content(spec)?,
            values,
            set: settings(&spec.set)?,
            create_namespace: spec.create_namespace,
            take_ownership: spec.take_ownership,
            server_side: config.server_side.or(spec.server_side),
            force_conflicts: config.force_conflicts.unwrap_or(spec.force_conflicts),
            policy: config.failure_policy.or(spec.failure_policy).unwrap_or_default(),
            back_off_limit: spec.back_off_limit.unwrap_or(BACK_OFF_LIMIT),
            access: Access::new(spec, objects)?,
            ignored: ignored(spec, config, &source),
            target,
            source,
        })
    }

    /// What of it makes the release, in a label: another one is an upgrade.
    pub(crate) fn hash(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut add = |part: &[u8]| {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        };
        add(self.source.describe(&self.version).as_bytes());
        add(&self.content);
        self.set.iter().for_each(|setting| add(&setting.bytes()));
        for file in self.values.iter().filter(|file| file.counts) {
            add(file.name.as_bytes());
            add(&file.content);
        }
        let mut hash = HEXUPPER.encode(context.finish().as_ref());
        hash.truncate(LABEL);
        hash
    }
}

impl Access {
    fn new(spec: &Spec, objects: &Objects) -> Result<Self, String> {
        let mut authorities = spec.repo_ca.clone().into_bytes();
        if let Some(reference) = &spec.repo_ca_config_map {
            let map = objects.config_maps.get(&reference.name);
            let map =
                map.ok_or_else(|| format!("the ConfigMap {} of spec.repoCAConfigMap is missing", reference.name))?;
            for certificate in map.values() {
                authorities.push(b'\n');
                authorities.extend_from_slice(certificate);
            }
        }
        let login = spec.auth_secret.as_ref().map(|reference| Login::new(reference, objects)).transpose()?;
        let registries = spec.docker_registry_secret.as_ref().map(|reference| {
            let secret = secret(reference, objects, "spec.dockerRegistrySecret")?;
            let config = secret.get(".dockerconfigjson");
            config.cloned().ok_or_else(|| {
                format!("the Secret {} of spec.dockerRegistrySecret has no key .dockerconfigjson", reference.name)
            })
        });
        Ok(Self {
            authorities,
            login,
            pass_credentials: spec.auth_pass_credentials,
            registries: registries.transpose()?,
            insecure_skip_tls_verify: spec.insecure_skip_tls_verify,
            plain_http: spec.plain_http,
        })
    }
}

impl Login {
    fn new(reference: &Reference, objects: &Objects) -> Result<Self, String> {
        let secret = secret(reference, objects, "spec.authSecret")?;
        let text = |key: &str| secret.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        if let (Some(username), Some(password)) = (text("username"), text("password")) {
            return Ok(Self::Basic { username, password });
        }
        match (secret.get("tls.crt"), secret.get("tls.key")) {
            (Some(certificate), Some(key)) => {
                Ok(Self::Certificate { certificate: certificate.clone(), key: key.clone() })
            }
            _ => Err(format!(
                "the Secret {} of spec.authSecret has neither username and password nor tls.crt and tls.key",
                reference.name
            )),
        }
    }
}

fn secret<'a>(reference: &Reference, objects: &'a Objects, field: &str) -> Result<&'a Data, String> {
    objects.secrets.get(&reference.name).ok_or_else(|| format!("the Secret {} of {field} is missing", reference.name))
}

fn content(spec: &Spec) -> Result<Vec<u8>, String> {
    BASE64_MIME_PERMISSIVE
        .decode(spec.chart_content.as_bytes())
        .map_err(|error| format!("spec.chartContent is not base64: {error}"))
}

fn values_of(
    layer: Layer,
    content: &str,
    values: &Value,
    secrets: &[ValuesSecret],
    objects: &Objects,
) -> Result<Vec<ValuesFile>, String> {
    let mut files = Vec::new();
    let mut add =
        |part, content: Vec<u8>, counts| files.push(ValuesFile { name: file_name(layer, part), content, counts });
    if !content.is_empty() {
        add(Part::Content, content.as_bytes().to_vec(), true);
    }
    match values {
        Value::Null => {}
        Value::Object(map) if map.is_empty() => {}
        // JSON is YAML.
        Value::Object(_) => add(Part::Values, values.to_string().into_bytes(), true),
        _ => return Err("spec.values is no mapping: write values by their names".to_owned()),
    }
    let keys = secrets.iter().flat_map(|secret| secret.keys.iter().map(move |key| (secret, key)));
    for (index, (secret, key)) in keys.enumerate() {
        match objects.secrets.get(&secret.name).and_then(|data| data.get(key)) {
            Some(content) => add(Part::Secret(index), content.clone(), !secret.ignore_updates),
            None if secret.ignore_updates => {}
            None => return Err(format!("the Secret {} of valuesSecrets, or its key {key}, is missing", secret.name)),
        }
    }
    Ok(files)
}

/// Fields that k3s' jobs know, or that do not fit together.
fn ignored(spec: &Spec, config: &ConfigSpec, source: &Source) -> Vec<&'static str> {
    let is_repository = matches!(source, Source::Repository { .. });
    let server_side = config.server_side.or(spec.server_side);
    let found = [
        (!spec.job_image.is_empty(), "jobImage: Helm needs no image here"),
        (!spec.pod_security_context.is_null(), "podSecurityContext: Helm runs in no pod here"),
        (!spec.security_context.is_null(), "securityContext: Helm runs in no container here"),
        (!spec.version.is_empty() && !source.has_versions(), "version: the chart is one archive"),
        (spec.auth_secret.is_some() && !is_repository, "authSecret: it is for a repository in spec.repo"),
        (spec.plain_http && !source.has_versions(), "plainHTTP: it is for charts of an OCI registry"),
        (spec.auth_pass_credentials && spec.auth_secret.is_none(), "authPassCredentials: there is no authSecret"),
        (
            spec.docker_registry_secret.is_some() && !matches!(source, Source::Registry(_)),
            "dockerRegistrySecret: it is for charts of an OCI registry",
        ),
        (
            config.force_conflicts.unwrap_or(spec.force_conflicts) && server_side == Some(ServerSide::False),
            "forceConflicts: there are none without server-side apply",
        ),
    ];
    found.into_iter().filter_map(|(is_set, sentence)| is_set.then_some(sentence)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::chart::tests::chart;

    pub(crate) fn wanted_with(spec: Value, config: Value, objects: &Objects) -> Result<Wanted, String> {
        let chart = chart(spec);
        let spec = chart.read_spec()?;
        let config = crate::chart::HelmChartConfig { spec: config, ..Default::default() }.read_spec()?;
        let target = Target::new("app", &chart.target_namespace(), &spec);
        Wanted::new(target, &spec, &config, objects, "127.0.0.1:6443".parse().unwrap())
    }

    pub(crate) fn wanted(spec: Value) -> Wanted {
        wanted_with(spec, Value::Null, &Objects::default()).unwrap()
    }

    fn with_secret(name: &str, data: &[(&str, &str)]) -> Objects {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        Objects { secrets: [(name.to_owned(), data)].into(), ..Objects::default() }
    }

    #[test]
    fn values_come_in_the_order_of_k3s_and_count_by_their_content() {
        let objects = with_secret("passwords", &[("db", "password: a"), ("web", "token: b")]);
        let spec = json!({
            "chart": "https://charts.lan/app.tgz",
            "valuesContent": "a: 1",
            "values": {"b": 2},
            "valuesSecrets": [{"name": "passwords", "keys": ["db", "web"]}, {"name": "none", "keys": ["x"], "ignoreUpdates": true}],
        });
        let config = json!({"valuesContent": "c: 3", "failurePolicy": "retry"});
        let wanted = wanted_with(spec.clone(), config, &objects).unwrap();
        let names: Vec<_> = wanted.values.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "values-0-000-HelmChart-ValuesContent.yaml",
                "values-0-001-HelmChart-Values.yaml",
                "values-0-002-HelmChart-ValuesSecret.yaml",
                "values-0-003-HelmChart-ValuesSecret.yaml",
                "values-1-000-HelmChartConfig-ValuesContent.yaml",
            ]
        );
        assert_eq!(wanted.values[1].content, br#"{"b":2}"#);
        assert_eq!(wanted.policy, FailurePolicy::Retry);

        let changed = with_secret("passwords", &[("db", "password: c"), ("web", "token: b")]);
        let hash = |objects| wanted_with(spec.clone(), Value::Null, objects).unwrap().hash();
        assert_ne!(hash(&objects), hash(&changed));
        assert_eq!(hash(&objects).len(), LABEL);
        let missing = wanted_with(spec.clone(), Value::Null, &Objects::default()).unwrap_err();
        assert_eq!(missing, "the Secret passwords of valuesSecrets, or its key db, is missing");
    }

    #[test]
    fn values_that_are_no_mapping_are_refused() {
        let refused = wanted_with(json!({"chart": "oci://r.lan/app", "values": [1]}), Value::Null, &Objects::default());
        assert_eq!(refused.unwrap_err(), "spec.values is no mapping: write values by their names");
    }

    #[test]
    fn a_secret_whose_updates_are_ignored_changes_nothing() {
        let spec = json!({
            "chart": "https://charts.lan/app.tgz",
            "valuesSecrets": [{"name": "s", "keys": ["k"], "ignoreUpdates": true}],
        });
        let hash = |value| wanted_with(spec.clone(), Value::Null, &with_secret("s", &[("k", value)])).unwrap().hash();
        assert_eq!(hash("a: 1"), hash("a: 2"));
    }

    #[test]
    fn only_what_makes_the_release_is_an_upgrade() {
        let base = json!({"chart": "app", "repo": "https://charts.lan", "version": "1"});
        let hash = |change: Value| {
            let mut spec = base.clone();
            spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            wanted(spec).hash()
        };
        let unchanged = hash(json!({}));
        for change in
            [json!({"timeout": "1h"}), json!({"failurePolicy": "abort"}), json!({"insecureSkipTLSVerify": true})]
        {
            assert_eq!(hash(change.clone()), unchanged, "{change}");
        }
        for change in [json!({"version": "2"}), json!({"set": {"a": 1}}), json!({"valuesContent": "a: 1"})] {
            assert_ne!(hash(change.clone()), unchanged, "{change}");
        }
    }

    #[test]
    fn logins_are_names_or_certificates() {
        let spec = json!({"chart": "app", "repo": "https://charts.lan", "authSecret": {"name": "auth"}});
        let login = |data: &[(&str, &str)]| {
            wanted_with(spec.clone(), Value::Null, &with_secret("auth", data))
                .map(|wanted| wanted.access.login.unwrap())
        };
        let basic = Login::Basic { username: "me".into(), password: "secret".into() };
        assert_eq!(login(&[("username", "me"), ("password", "secret")]), Ok(basic));
        assert!(matches!(login(&[("tls.crt", "C"), ("tls.key", "K")]), Ok(Login::Certificate { .. })));
        assert!(login(&[("username", "me")]).unwrap_err().contains("neither username and password"));
        assert!(
            wanted_with(spec.clone(), Value::Null, &Objects::default())
                .unwrap_err()
                .contains("spec.authSecret is missing")
        );
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let ignored = wanted(json!({
            "chart": "https://charts.lan/app.tgz",
            "version": "1.0",
            "jobImage": "klipper",
            "podSecurityContext": {"runAsNonRoot": true},
            "serverSide": "false",
            "forceConflicts": true,
        }))
        .ignored;
        let fields: Vec<_> = ignored.iter().map(|sentence| sentence.split(':').next().unwrap()).collect();
        assert_eq!(fields, ["jobImage", "podSecurityContext", "version", "forceConflicts"]);
        assert!(wanted(json!({"chart": "oci://r.lan/app", "version": "1", "bootstrap": true})).ignored.is_empty());
    }

    #[test]
    fn content_is_base64_with_lines() {
        assert_eq!(wanted(json!({"chartContent": "YWJj\nZGVm\n"})).content, b"abcdef");
        let refused = wanted_with(json!({"chartContent": "!"}), Value::Null, &Objects::default());
        assert!(refused.unwrap_err().contains("spec.chartContent is not base64"));
    }
}
