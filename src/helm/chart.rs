//! The objects: HelmChart and HelmChartConfig of `helm.cattle.io/v1`, field by field those of k3s' helm-controller.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::util::intstr::IntOrString};
use kube::{Resource, ResourceExt as _, api::ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

/// On a HelmChart that nobody is to touch.
const UNMANAGED: &str = "helmcharts.helm.cattle.io/unmanaged";
/// Says which controller looks after a HelmChart.
pub(crate) const MANAGED_BY: &str = "helmcharts.cattle.io/managed-by";
/// The name of k3s' own controller: either product takes over what the other one began.
pub(crate) const MANAGER: &str = "helm-controller";
/// Keeps a HelmChart until its release is gone; k3s' own.
pub(crate) const FINALIZER: &str = "wrangler.cattle.io/on-helm-chart-remove";
/// The longest name of a release that Helm takes.
const LONGEST_NAME: usize = 53;

/// A HelmChart. Its spec is read object by object, so that one that nobody understands harms no other.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct HelmChart {
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: Value,
    #[serde(default)]
    pub(crate) status: Value,
}

/// A HelmChartConfig: what a user adds to the HelmChart of the same name, which something else keeps.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct HelmChartConfig {
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: Value,
}

/// What a HelmChart asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    pub(crate) chart: String,
    pub(crate) version: String,
    pub(crate) repo: String,
    #[serde(rename = "repoCA")]
    pub(crate) repo_ca: String,
    #[serde(rename = "repoCAConfigMap")]
    pub(crate) repo_ca_config_map: Option<Reference>,
    pub(crate) target_namespace: String,
    pub(crate) create_namespace: bool,
    pub(crate) set: BTreeMap<String, IntOrString>,
    pub(crate) values: Value,
    pub(crate) values_content: String,
    pub(crate) values_secrets: Vec<ValuesSecret>,
    pub(crate) chart_content: String,
    pub(crate) helm_version: String,
    pub(crate) take_ownership: bool,
    pub(crate) server_side: Option<ServerSide>,
    pub(crate) force_conflicts: bool,
    pub(crate) back_off_limit: Option<u32>,
    pub(crate) timeout: Option<kube::core::Duration>,
    pub(crate) failure_policy: Option<FailurePolicy>,
    pub(crate) auth_secret: Option<Reference>,
    pub(crate) auth_pass_credentials: bool,
    #[serde(rename = "insecureSkipTLSVerify")]
    pub(crate) insecure_skip_tls_verify: bool,
    #[serde(rename = "plainHTTP")]
    pub(crate) plain_http: bool,
    pub(crate) docker_registry_secret: Option<Reference>,
    pub(crate) driver: Driver,
    pub(crate) job_image: String,
    pub(crate) pod_security_context: Value,
    pub(crate) security_context: Value,
}

/// What a HelmChartConfig adds.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConfigSpec {
    pub(crate) values: Value,
    pub(crate) values_content: String,
    pub(crate) values_secrets: Vec<ValuesSecret>,
    pub(crate) failure_policy: Option<FailurePolicy>,
    pub(crate) server_side: Option<ServerSide>,
    pub(crate) force_conflicts: Option<bool>,
}

/// An object of the HelmChart's namespace, by its name.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Reference {
    #[serde(default)]
    pub(crate) name: String,
}

/// A Secret with values.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ValuesSecret {
    pub(crate) name: String,
    /// Its keys, each a values file.
    pub(crate) keys: Vec<String>,
    /// Whether it may be missing, and its changes cause no upgrade.
    pub(crate) ignore_updates: bool,
}

/// What becomes of a release that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FailurePolicy {
    /// It stays as it is, until somebody mends or removes it.
    Abort,
    /// It is uninstalled and installed.
    #[default]
    Reinstall,
    /// It is upgraded.
    Retry,
}

/// By whom objects are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServerSide {
    True,
    False,
    /// As the release was made.
    Auto,
}

/// Where Helm keeps its records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    #[default]
    Secret,
    ConfigMap,
}

impl Driver {
    /// As `HELM_DRIVER` has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "configmap",
        }
    }
}

/// Whose a HelmChart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Another controller looks after it.
    Others,
    /// Nobody is to touch its release.
    Unmanaged,
    /// Nobody has it yet.
    Free,
    /// This controller's.
    Ours,
}

impl HelmChart {
    /// Whose it is, as k3s decides it.
    pub(crate) fn ownership(&self) -> Ownership {
        let annotations = self.annotations();
        if annotations.contains_key(UNMANAGED) {
            return Ownership::Unmanaged;
        }
        match annotations.get(MANAGED_BY) {
            Some(manager) if manager == MANAGER => Ownership::Ours,
            Some(_) => Ownership::Others,
            None => Ownership::Free,
        }
    }

    /// Whether there is something to install.
    pub(crate) fn names_a_chart(&self) -> bool {
        ["chart", "chartContent"].iter().any(|field| self.spec[*field].as_str().is_some_and(|text| !text.is_empty()))
    }

    /// What it asks for.
    ///
    /// # Errors
    /// What is wrong with it, as a user reads it.
    pub(crate) fn read_spec(&self) -> Result<Spec, String> {
        let spec: Spec = parse(&self.spec)?;
        if self.name_any().len() > LONGEST_NAME {
            return Err(format!(
                "the name has {} characters, and Helm takes {LONGEST_NAME} at most: give it a shorter one",
                self.name_any().len()
            ));
        }
        if let Some(wrong) = self.unusable_name(&spec) {
            return Err(wrong);
        }
        match &*spec.helm_version {
            "" | "v3" | "v4" => Ok(spec),
            other => Err(format!("spec.helmVersion {other} is not supported: leave it out")),
        }
    }

    /// What is said of a namespace or an object that can have no such name: it becomes a part of paths, of files and of the API's.
    fn unusable_name(&self, spec: &Spec) -> Option<String> {
        if !self.has_target() {
            return Some(format!("spec.targetNamespace {:?} is no name of a namespace", self.target_namespace()));
        }
        let objects = [&spec.repo_ca_config_map, &spec.auth_secret, &spec.docker_registry_secret].into_iter().flatten();
        let wrong = objects.map(|object| &*object.name).find(|name| !is_name(name));
        wrong.or(wrong_secret(&spec.values_secrets)).map(|name| format!("{name:?} is no name of a Secret or ConfigMap"))
    }

    /// The Secrets that change what is wanted.
    pub(crate) fn watched_secrets(&self) -> Vec<String> {
        parse(&self.spec).map(|spec: Spec| watched(spec.values_secrets)).unwrap_or_default()
    }

    /// Where its release is.
    pub(crate) fn target_namespace(&self) -> String {
        match self.spec["targetNamespace"].as_str() {
            None | Some("") => self.namespace().unwrap_or_default(),
            Some(namespace) => namespace.to_owned(),
        }
    }

    /// Whether there can be such a namespace.
    pub(crate) fn has_target(&self) -> bool {
        is_label(&self.target_namespace())
    }

    /// Where its release's records are.
    pub(crate) fn driver(&self) -> Driver {
        Driver::deserialize(&self.spec["driver"]).unwrap_or_default()
    }

    /// As people say it.
    pub(crate) fn title(&self) -> String {
        format!("HelmChart {}/{}", self.namespace().unwrap_or_default(), self.name_any())
    }
}

impl HelmChartConfig {
    /// What it adds.
    ///
    /// # Errors
    /// What is wrong with it, as a user reads it.
    pub(crate) fn read_spec(&self) -> Result<ConfigSpec, String> {
        let spec: ConfigSpec = parse(&self.spec).map_err(|error| format!("its HelmChartConfig: {error}"))?;
        match wrong_secret(&spec.values_secrets) {
            Some(name) => Err(format!("its HelmChartConfig: {name:?} is no name of a Secret")),
            None => Ok(spec),
        }
    }

    /// The Secrets that change what is wanted.
    pub(crate) fn watched_secrets(&self) -> Vec<String> {
        self.read_spec().map(|spec| watched(spec.values_secrets)).unwrap_or_default()
    }
}

fn wrong_secret(secrets: &[ValuesSecret]) -> Option<&str> {
    secrets.iter().map(|secret| &*secret.name).find(|name| !is_name(name))
}

/// Labels of DNS, as most objects are called.
fn is_name(name: &str) -> bool {
    name.split('.').all(is_label)
}

/// A label of DNS, as namespaces are called.
fn is_label(name: &str) -> bool {
    let is_inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| is_inner(&byte))
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn parse<'a, T: Deserialize<'a> + Default>(spec: &'a Value) -> Result<T, String> {
    if spec.is_null() {
        return Ok(T::default());
    }
    T::deserialize(spec).map_err(|error| format!("the spec is not one of this version: {error}"))
}

fn watched(secrets: Vec<ValuesSecret>) -> Vec<String> {
    secrets.into_iter().filter(|secret| !secret.ignore_updates).map(|secret| secret.name).collect()
}

impl Resource for HelmChart {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "HelmChart".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "helm.cattle.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "helmcharts".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Resource for HelmChartConfig {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "HelmChartConfig".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "helm.cattle.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "helmchartconfigs".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A HelmChart `kube-system/app` with this spec.
    pub(crate) fn chart(spec: Value) -> HelmChart {
        let metadata =
            ObjectMeta { name: Some("app".into()), namespace: Some("kube-system".into()), ..ObjectMeta::default() };
        HelmChart { metadata, spec, status: Value::Null }
    }

    fn annotated(key: &str, value: &str) -> HelmChart {
        let mut chart = chart(json!({"chart": "app"}));
        chart.annotations_mut().insert(key.into(), value.into());
        chart
    }

    #[test]
    fn a_chart_is_left_alone_that_is_somebody_elses() {
        assert_eq!(chart(json!({"chart": "app"})).ownership(), Ownership::Free);
        assert_eq!(annotated(MANAGED_BY, "helm-controller").ownership(), Ownership::Ours);
        assert_eq!(annotated(MANAGED_BY, "rancher").ownership(), Ownership::Others);
        assert_eq!(annotated(UNMANAGED, "").ownership(), Ownership::Unmanaged);
        assert!(chart(json!({"chartContent": "YQ=="})).names_a_chart());
        assert!(!chart(json!({"chart": "", "repo": "https://charts"})).names_a_chart());
        assert!(!chart(Value::Null).names_a_chart());
    }

    #[test]
    fn every_field_of_k3s_is_read() {
        let spec = chart(json!({
            "chart": "app", "version": "1.2", "repo": "https://charts", "repoCA": "PEM", "repoCAConfigMap": {"name": "ca"},
            "targetNamespace": "apps", "createNamespace": true, "set": {"a": 1, "b": "x"}, "values": {"c": true},
            "valuesContent": "d: 1", "valuesSecrets": [{"name": "s", "keys": ["k"], "ignoreUpdates": true}],
            "chartContent": "YQ==", "helmVersion": "v3", "bootstrap": true, "takeOwnership": true, "serverSide": "auto",
            "forceConflicts": true, "backOffLimit": 3, "timeout": "5m30s", "failurePolicy": "abort",
            "authSecret": {"name": "auth"}, "authPassCredentials": true, "insecureSkipTLSVerify": true, "plainHTTP": true,
            "dockerRegistrySecret": {"name": "registry"}, "driver": "configmap", "jobImage": "image",
            "podSecurityContext": {"runAsNonRoot": true}, "securityContext": {"privileged": false},
        }))
        .read_spec()
        .unwrap();
        assert_eq!((&*spec.repo_ca, spec.repo_ca_config_map.unwrap().name.as_str()), ("PEM", "ca"));
        assert_eq!(spec.set["a"], IntOrString::Int(1));
        assert_eq!(std::time::Duration::from(spec.timeout.unwrap()).as_secs(), 330);
        assert_eq!((spec.failure_policy, spec.server_side), (Some(FailurePolicy::Abort), Some(ServerSide::Auto)));
        assert!(spec.plain_http && spec.insecure_skip_tls_verify && spec.auth_pass_credentials && spec.take_ownership);
        assert_eq!((spec.driver, spec.back_off_limit), (Driver::ConfigMap, Some(3)));
        assert!(spec.values_secrets[0].ignore_updates);
    }

    #[test]
    fn what_nobody_understands_is_told_in_a_sentence() {
        let refused = |spec: Value| chart(spec).read_spec().unwrap_err();
        assert_eq!(refused(json!({"helmVersion": "v2"})), "spec.helmVersion v2 is not supported: leave it out");
        assert!(refused(json!({"set": [1]})).contains("the spec is not one of this version"));
        assert_eq!(
            refused(json!({"chart": "app", "targetNamespace": "x/../../../../etc/cron"})),
            "spec.targetNamespace \"x/../../../../etc/cron\" is no name of a namespace"
        );
        let elsewhere = json!({"chart": "app", "authSecret": {"name": "../../other/secrets/a"}});
        assert_eq!(refused(elsewhere), "\"../../other/secrets/a\" is no name of a Secret or ConfigMap");
        let mut long = chart(json!({"chart": "app"}));
        long.metadata.name = Some("x".repeat(54));
        assert!(long.read_spec().unwrap_err().contains("Helm takes 53 at most"));
    }
}
