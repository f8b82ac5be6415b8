//! `k3s ctr`: our containerd, and the namespace that pods live in.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use super::{
    Failure,
    upstream::{become_program, find},
};

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let socket = OsStr::new("/run/k3s/containerd/containerd.sock");
    let defaults = [("CONTAINERD_ADDRESS", socket), ("CONTAINERD_NAMESPACE", OsStr::new("k8s.io"))];
    become_program(find("ctr")?, "ctr", args, &defaults)
}
