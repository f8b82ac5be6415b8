//! What k3s' helm-controller leaves of a HelmChart: Jobs, whose pods may still run Helm, and what these needed.

use std::fmt::Debug;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Secret, ServiceAccount},
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Preconditions, PropagationPolicy},
};
use serde::de::DeserializeOwned;

use crate::{chart::HelmChart, decision::Step, job};

/// On the objects that k3s makes for a HelmChart: for which one.
const OWNER: [&str; 3] = [
    "objectset.rio.cattle.io/owner-gvk",
    "objectset.rio.cattle.io/owner-namespace",
    "objectset.rio.cattle.io/owner-name",
];

/// Deletes a Job of k3s that has not ended, with its pods: two Helms must not work on one release. Says which one is still there.
///
/// # Errors
/// If the API does not answer.
pub(crate) async fn stop_job(chart: &HelmChart, client: &Client) -> kube::Result<Option<String>> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), &chart.namespace().unwrap_or_default());
    for step in [Step::Install, Step::Uninstall] {
        let name = job::name(chart, step);
        let Some(found) = jobs.get_opt(&name).await? else { continue };
        if is_of(&found, chart) && !job::has_ended(&found) {
            delete(&jobs, &found, PropagationPolicy::Foreground).await?;
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Deletes what k3s' Jobs have needed, among it the rights of `cluster-admin`, and the Jobs.
///
/// # Errors
/// If the API does not answer.
pub(crate) async fn delete_rest(chart: &HelmChart, client: &Client) -> kube::Result<()> {
    let (name, namespace) = (chart.name_any(), chart.namespace().unwrap_or_default());
    for step in [Step::Install, Step::Uninstall] {
        delete_of::<Job>(Api::namespaced(client.clone(), &namespace), job::name(chart, step), chart).await?;
    }
    delete_of::<ClusterRoleBinding>(Api::all(client.clone()), format!("helm-{namespace}-{name}"), chart).await?;
    delete_of::<ServiceAccount>(Api::namespaced(client.clone(), &namespace), format!("helm-{name}"), chart).await?;
    delete_of::<Secret>(Api::namespaced(client.clone(), &namespace), format!("chart-values-{name}"), chart).await?;
    delete_of::<ConfigMap>(Api::namespaced(client.clone(), &namespace), format!("chart-content-{name}"), chart).await
}

async fn delete_of<K>(api: Api<K>, name: String, chart: &HelmChart) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    match api.get_metadata_opt(&name).await? {
        Some(found) if is_of(&found, chart) => delete(&api, &found, PropagationPolicy::Background).await,
        _ => Ok(()),
    }
}

async fn delete<K>(api: &Api<K>, found: &impl Resource, how: PropagationPolicy) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    let preconditions = Preconditions { uid: found.meta().uid.clone(), resource_version: None };
    let params =
        DeleteParams { preconditions: Some(preconditions), propagation_policy: Some(how), ..DeleteParams::default() };
    match api.delete(&found.name_any(), &params).await {
        // Gone, or another one by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        deleted => deleted.map(drop),
    }
}

/// Whether k3s has made an object for this HelmChart.
pub(crate) fn is_of(object: &impl Resource, chart: &HelmChart) -> bool {
    let owner = ["helm.cattle.io/v1, Kind=HelmChart", &chart.namespace().unwrap_or_default(), &chart.name_any()];
    OWNER.iter().zip(owner).all(|(key, value)| object.annotations().get(*key).is_some_and(|found| found == value))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::chart::tests::chart;

    #[test]
    fn only_what_k3s_made_for_this_chart_is_its_own() {
        let of = |gvk: &str, namespace: &str, name: &str| {
            let owner = [gvk, namespace, name];
            let annotations: serde_json::Map<String, Value> =
                OWNER.iter().zip(owner).map(|(key, value)| ((*key).to_owned(), value.into())).collect();
            let account: ServiceAccount =
                serde_json::from_value(json!({"metadata": {"name": "helm-app", "annotations": annotations}})).unwrap();
            is_of(&account, &chart(Value::Null))
        };
        assert!(of("helm.cattle.io/v1, Kind=HelmChart", "kube-system", "app"));
        assert!(!of("k3s.cattle.io/v1, Kind=Addon", "kube-system", "app"));
        assert!(!of("helm.cattle.io/v1, Kind=HelmChart", "default", "app"));
        assert!(!of("helm.cattle.io/v1, Kind=HelmChart", "kube-system", "other"));
        assert!(!is_of(&ServiceAccount::default(), &chart(Value::Null)), "a user's own of such a name");
    }
}
