//! The names by which servers are reached: one list for all of them, in the Secret `kube-system/k3s-serving`, as k3s' servers share it.
//!
//! A fixed registration address that one server is given with `--tls-san` is thereby on every server's certificate. Each server keeps a key
//! of its own. What is in the Secret beside the list is the certificate of the server that changed it last, for all these names: servers of
//! k3s in the same cluster show that.

use std::{collections::BTreeSet, sync::Arc};

use k3s_controllers::{Context, Controller};
use k3s_pki::{San, ServingSecret};
use k3s_supervise::TaskError;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Error as ApiError,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher::Config,
};
use serde_json::{from_value, json};
use tokio::select;
use tracing::info;

use crate::renewal::Renewal;

const NAMESPACE: &str = "kube-system";
const SECRET: &str = "k3s-serving";
/// As the status names it.
const OBJECT: &str = "Secret kube-system/k3s-serving";
/// Names on a certificate: each handshake carries all of them.
const MOST: usize = 256;

/// Keeps the front's names and the Secret's the same.
pub(crate) struct ServingNames {
    pub(crate) renewal: Arc<Renewal>,
}

/// What is to be done so that both have all names.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Agreed,
    /// The front's certificate lacks these.
    Take(BTreeSet<San>),
    /// The Secret lacks some.
    Share,
    /// There are too many to share.
    TooMany(usize),
}

impl Step {
    fn of(own: &BTreeSet<San>, shared: &BTreeSet<San>) -> Self {
        match shared - own {
            _ if (own | shared).len() > MOST => Self::TooMany((own | shared).len()),
            lacking if !lacking.is_empty() => Self::Take(lacking),
            _ if own.len() > shared.len() => Self::Share,
            _ => Self::Agreed,
        }
    }
}

impl Controller for ServingNames {
    const NAME: &'static str = "serving-names";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let api: Api<Secret> = Api::namespaced(context.client, NAMESPACE);
        let only_this = Config::default().fields(&format!("metadata.name={SECRET}"));
        // Of its key nothing is kept.
        let secrets = context.view.reflect("the servers' names", api.clone(), only_this, |secret| secret.data = None);
        let mut present = secrets.derive(|secret| Some(secret.clone()), |all| all.values().next().cloned());
        let mut own = self.renewal.front_names();
        let mut secret: Option<Option<Secret>> = None;
        loop {
            select! {
                present = present.changed() => secret = Some(present),
                Ok(()) = own.changed() => {}
            }
            let Some(secret) = &secret else { continue };
            let annotations =
                secret.as_ref().and_then(|secret| secret.metadata.annotations.clone()).unwrap_or_default();
            if ServingSecret::is_static(&annotations) {
                context.status.problem(OBJECT, "holds a certificate that the user brought, and names are not shared");
                continue;
            }
            let shared = ServingSecret::names(&annotations);
            let names = own.borrow_and_update().clone();
            match Step::of(&names, &shared) {
                Step::Agreed => context.status.solved(OBJECT),
                Step::Take(lacking) => {
                    info!(names = ?lacking, "The front's certificate takes names of other servers.");
                    // The front's names change with it.
                    self.renewal.name_front(lacking).await?;
                }
                Step::Share => share(&api, secret.as_ref(), self.renewal.name_front(BTreeSet::new()).await?).await?,
                Step::TooMany(names) => {
                    let problem = format!(
                        "servers would have {names} names, more than {MOST}: leave out some of --tls-san, and delete it"
                    );
                    context.status.problem(OBJECT, problem);
                }
            }
        }
    }
}

/// Writes the front's certificate and names into the Secret, unless another server has just done the same.
async fn share(api: &Api<Secret>, present: Option<&Secret>, own: ServingSecret) -> Result<(), TaskError> {
    let own = own.into_json();
    let written = match present {
        Some(present) => {
            let mut patch = own;
            patch["metadata"]["resourceVersion"] = json!(present.metadata.resource_version);
            api.patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await
        }
        None => {
            let mut secret: Secret = from_value(own)?;
            secret.metadata.name = Some(SECRET.into());
            api.create(&PostParams::default(), &secret).await
        }
    };
    match written {
        Ok(_) => Ok(()),
        // Its next event tells what it is now.
        Err(ApiError::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<San> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn servers_come_to_have_all_names_of_each_other() {
        let (one, two) = (names(&["one", "192.0.2.1"]), names(&["two", "register.example"]));
        assert_eq!(Step::of(&one, &BTreeSet::new()), Step::Share);
        assert_eq!(Step::of(&two, &one), Step::Take(one.clone()));
        let both = &one | &two;
        assert_eq!(Step::of(&both, &one), Step::Share);
        assert_eq!(Step::of(&one, &both), Step::Take(two));
        assert_eq!(Step::of(&both, &both), Step::Agreed);
    }

    #[test]
    fn a_list_without_end_is_not_taken() {
        let many: BTreeSet<San> = (0..MOST).map(|number| format!("n{number}").parse().unwrap()).collect();
        assert_eq!(Step::of(&names(&["one"]), &many), Step::TooMany(MOST + 1));
    }
}
