//! Controllers that fail, in builds for tests: what one of them does may not touch the others.

use std::sync::Arc;

use futures_util::stream;
use k3s_supervise::TaskError;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;

use crate::{Context, Controller, Registry, queue::reconcile_each};

/// Set by a scenario, to whatever.
const VARIABLE: &str = "K3S_TEST_FAULTS";

/// Adds them where the scenario asks for them.
pub fn add_faults(registry: &mut Registry) {
    let asked = std::env::var_os(VARIABLE).is_some();
    registry.add(asked.then_some(Panics)).add(asked.then_some(Fails)).add(asked.then_some(IsRefused));
}

struct Panics;

impl Controller for Panics {
    const NAME: &'static str = "fault-panic";

    async fn run(&self, _: Context) -> Result<(), TaskError> {
        panic!("as the scenario asks")
    }
}

struct Fails;

impl Controller for Fails {
    const NAME: &'static str = "fault-error";

    async fn run(&self, _: Context) -> Result<(), TaskError> {
        Err("as the scenario asks".into())
    }
}

/// Wants a label that the API refuses.
struct IsRefused;

impl Controller for IsRefused {
    const NAME: &'static str = "fault-object";

    async fn run(&self, context: Context) -> Result<(), TaskError> {
        let nodes: Api<Node> = Api::all(context.client);
        let reconcile = move |node: Arc<Node>| {
            let nodes = nodes.clone();
            async move {
                let patch = Patch::Merge(json!({"metadata": {"labels": {"fault": "not a label"}}}));
                nodes.patch(&node.name_any(), &PatchParams::default(), &patch).await?;
                Ok(Action::await_change())
            }
        };
        let also = None::<stream::Pending<ObjectRef<Node>>>;
        reconcile_each(&context.view.nodes(), also, context.status, reconcile).await;
        Ok(())
    }
}
