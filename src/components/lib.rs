//! Each upstream program as data: its arguments, its environment, the files it reads and how it tells that it is ready.
//!
//! Nothing here starts anything. A function per program turns the configuration into a [`Launch`]; the roles write its files
//! and hand its program to the supervisor. Flags follow what k3s passes to the same components, so that a user's
//! `--kube-apiserver-arg` and its like meet the defaults they expect.

mod capabilities;
mod containerd;
mod control_loop;
mod environment;
mod etcd;
mod kine;
mod kube_apiserver;
mod kube_controller_manager;
mod kube_proxy;
mod kube_proxy_fields;
mod kube_scheduler;
mod kubelet;
mod launch;
mod libexec;
mod node;
mod paths;
pub mod registries;
mod resources;
mod template;
#[cfg(test)]
mod testing;
mod user_config;

pub use containerd::{TemplateGeneration, UserTemplate, containerd};
pub use environment::InheritedEnvironment;
pub use etcd::{CLIENT_PORT, EtcdMember, EtcdStart, EtcdTimeouts, etcd};
pub use kine::kine;
pub use kube_apiserver::kube_apiserver;
pub use kube_controller_manager::kube_controller_manager;
pub use kube_proxy::kube_proxy;
pub use kube_scheduler::kube_scheduler;
pub use kubelet::kubelet;
pub use launch::{File, Launch};
pub use libexec::{Components, HELM, Libexec, MissingComponents, Need, Package, SHARED_SHIM, SHIM};
pub use node::{CgroupDriver, Node};
pub use paths::Paths;
pub use registries::{DefaultEndpoint, Registries, RegistriesError};
pub use template::TemplateError;
pub use user_config::{UserConfigError, UserConfigs};
