//! `k3s ctr`: our containerd, and the namespace that pods live in.

use std::{ffi::OsString, process::ExitCode};

use super::{
    Failure,
    upstream::{become_program, find},
};

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let defaults = [("CONTAINERD_ADDRESS", "/run/k3s/containerd/containerd.sock"), ("CONTAINERD_NAMESPACE", "k8s.io")];
    become_program(find("ctr")?, "ctr", args, &defaults)
}
