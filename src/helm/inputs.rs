//! The objects that a HelmChart names.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

use crate::chart::{ConfigSpec, Reference, Spec};

/// The keys of an object, with their contents.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// The names of what is named.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    secrets: BTreeSet<String>,
    config_maps: BTreeSet<String>,
}

/// What of it there is.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) secrets: BTreeMap<String, Data>,
    pub(crate) config_maps: BTreeMap<String, Data>,
}

impl Names {
    /// What a HelmChart and its HelmChartConfig name.
    pub(crate) fn of(spec: &Spec, config: &ConfigSpec) -> Self {
        let of_values = spec.values_secrets.iter().chain(&config.values_secrets);
        let of_values = of_values.filter(|secret| !secret.keys.is_empty()).map(|secret| secret.name.clone());
        let name = |reference: &Option<Reference>| reference.as_ref().map(|reference| reference.name.clone());
        Self {
            secrets: of_values.chain(name(&spec.auth_secret)).chain(name(&spec.docker_registry_secret)).collect(),
            config_maps: name(&spec.repo_ca_config_map).into_iter().collect(),
        }
    }
}

impl Objects {
    /// Reads those of `namespace`; what is missing is left out.
    ///
    /// # Errors
    /// If the API does not answer.
    pub(crate) async fn read(client: &Client, namespace: &str, names: Names) -> kube::Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let mut objects = Self::default();
        for name in names.secrets {
            if let Some(secret) = secrets.get_opt(&name).await? {
                let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
                objects.secrets.insert(name, data.collect());
            }
        }
        for name in names.config_maps {
            if let Some(map) = config_maps.get_opt(&name).await? {
                let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
                let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
                objects.config_maps.insert(name, text.chain(binary).collect());
            }
        }
        Ok(objects)
    }
}
