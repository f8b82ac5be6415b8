//! `k3s node`: what the cluster knows of its nodes beside their objects.

use std::process::ExitCode;

use clap::Subcommand;
use k3s_controllers::node_password_secret;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::DeleteParams};

use super::{
    Failure,
    administrator::{Administrator, Credentials},
    failure::{NO_INPUT, USAGE},
    globals::Globals,
    output::line,
    runtime,
};

/// Where the Secrets of node passwords are.
const NAMESPACE: &str = "kube-system";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Let a machine join under the name of a node whose password is lost
    ///
    /// At its first join each machine draws a password (/etc/rancher/node/password), and the servers let nobody else join under its
    /// name: "node password rejected". When the machine was replaced or reinstalled, or that file was lost, let the servers forget
    /// the old password; the next machine that joins under the name sets the new one. Make sure that this is the right machine: until
    /// then, whoever knows the token can take the name. The Node object, its labels and its pods stay. Two machines that both live
    /// need names of their own: start one with --node-name or --with-node-id.
    Forget {
        #[command(flatten)]
        administrator: Administrator,
        /// The node, as `k3s kubectl get nodes` names it
        name: String,
    },
}

pub(super) fn run(verb: Verb, globals: Globals) -> Result<ExitCode, Failure> {
    let Verb::Forget { administrator, name } = verb;
    if !is_name(&name) {
        return Err(Failure::new(
            USAGE,
            format!("{name:?} is not the name of a node; `k3s kubectl get nodes` lists them"),
        ));
    }
    let credentials = administrator.credentials(globals)?;
    runtime::run(forget(&credentials, &name))
}

async fn forget(administrator: &Credentials, node: &str) -> Result<ExitCode, Failure> {
    let secrets: Api<Secret> = Api::namespaced(administrator.client().await?, NAMESPACE);
    let secret = node_password_secret(node);
    match secrets.delete(&secret, &DeleteParams::default()).await {
        Ok(_) => {
            line(format_args!(
                "Deleted the Secret {NAMESPACE}/{secret}: the next machine that joins as {node} sets its password."
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Err(Failure::new(
            NO_INPUT,
            format!(
                "no password of a node {node} is stored (there is no Secret {NAMESPACE}/{secret}): any machine may join as {node} already"
            ),
        )),
        Err(error) => Err(administrator.failed(&format!("delete the Secret {NAMESPACE}/{secret}"), &error)),
    }
}

/// Whether it could be an object's name, in any case: nodes have their hosts' in small letters.
fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_an_object() {
        assert!(is_name("Edge-7.example"));
        for bad in ["", "node/edge-7", "a b", "../secrets"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
