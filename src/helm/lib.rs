//! Helm charts: what HelmChart objects say becomes a release, and goes with them.
//!
//! ```text
//! HelmChart, HelmChartConfig, Secrets ──► Wanted (`wanted.rs`) ─┐
//! the release's records ────────────────► Release (`release.rs`) ─┴─► Decision (`decision.rs`) ──► helm (`command.rs`, `helm.rs`)
//!                                                                          └─► conditions, events, Job (`report.rs`, `job.rs`)
//! ```
//!
//! The objects and what becomes of them are those of k3s' helm-controller. It runs Helm in a pod of a Job with the rights of
//! `cluster-admin`; here Helm is a child of the server, which needs neither an image nor a node that is ready.

#[cfg(test)]
mod against_an_api;
mod chart;
mod command;
mod controller;
mod decision;
mod helm;
mod inputs;
mod job;
mod reconcile;
mod release;
mod report;
mod retired;
mod set;
mod source;
mod values;
mod wanted;

pub use controller::HelmController;
pub use helm::Helm;
