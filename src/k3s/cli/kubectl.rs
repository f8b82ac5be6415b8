//! `k3s kubectl`: as this server's administrator unless the user says otherwise.

use std::{ffi::OsString, path::Path, process::ExitCode};

use super::{
    Failure,
    administrator::{KUBECONFIG, unreadable},
    upstream::{become_program, find},
};

pub(super) fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let chosen = std::env::var_os("KUBECONFIG").is_some()
        || args.iter().any(|arg| arg.to_string_lossy().starts_with("--kubeconfig"));
    if !chosen && let Err(error) = std::fs::File::open(Path::new(KUBECONFIG)) {
        return Err(unreadable(Path::new(KUBECONFIG), &error));
    }
    let defaults: &[(&str, &str)] = if chosen { &[] } else { &[("KUBECONFIG", KUBECONFIG)] };
    become_program(find("kubectl")?, "kubectl", args, defaults)
}
