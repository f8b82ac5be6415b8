//! `k3s crictl`: one that the user installed, pointed at our containerd.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use super::{
    Failure,
    failure::UNAVAILABLE,
    upstream::{become_program, libexec},
};

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    // A link of that name to ourselves would call itself for ever.
    let own = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let program = libexec()?.find("crictl").filter(|path| path.canonicalize().ok() != own);
    let Some(program) = program else {
        return Err(Failure::new(UNAVAILABLE, "no crictl is in PATH: install cri-tools, or use k3s ctr"));
    };
    let endpoint = OsStr::new("unix:///run/k3s/containerd/containerd.sock");
    become_program(
        program,
        "crictl",
        args,
        &[("CONTAINER_RUNTIME_ENDPOINT", endpoint), ("IMAGE_SERVICE_ENDPOINT", endpoint)],
    )
}
