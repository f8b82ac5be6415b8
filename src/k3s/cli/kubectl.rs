//! `k3s kubectl`: as this server's administrator where there is one, unless the user says otherwise.

use std::{ffi::OsString, fs::File, io::ErrorKind, path::PathBuf, process::ExitCode};

use k3s_config::{Location, locate};

use super::{
    Failure,
    environment::environment,
    globals::Globals,
    missing_api,
    output::tell,
    runtime,
    upstream::{become_program, find, is_set},
};

pub(super) fn run(args: Vec<OsString>, globals: Globals) -> Result<ExitCode, Failure> {
    let chosen = is_set("KUBECONFIG") || names_kubeconfig(&args);
    let own = if chosen { None } else { own_kubeconfig(globals)? };
    let defaults: Vec<_> = own.iter().map(|file| ("KUBECONFIG", file.as_os_str())).collect();
    become_program(find("kubectl")?, "kubectl", args, &defaults)
}

/// What follows `--` is for somebody else.
fn names_kubeconfig(args: &[OsString]) -> bool {
    let own = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    own.into_iter().any(|arg| arg == "--kubeconfig" || arg.starts_with("--kubeconfig="))
}

/// The one that this server writes, if it can be used. A user who may not read the server's configuration is looked for at the usual place.
fn own_kubeconfig(globals: Globals) -> Result<Option<PathBuf>, Failure> {
    let Ok(Location { kubeconfig, data_dir, .. }) = locate(globals.before(Vec::new()), &environment()?) else {
        return Ok(readable(Location::KUBECONFIG.into()));
    };
    let own = readable(kubeconfig);
    if own.is_some()
        && let Some(why) = runtime::run(async { Ok(missing_api::reason(&data_dir).await) })?
    {
        // Much of kubectl needs no API: it decides itself.
        tell(format_args!("k3s: the cluster has no API yet that kubectl could ask: {why}"));
    }
    Ok(own)
}

/// `file` if it can be used. Without it kubectl goes by `~/.kube/config`, or by nothing: much of it needs no cluster.
fn readable(file: PathBuf) -> Option<PathBuf> {
    match File::open(&file) {
        Ok(_) => Some(file),
        Err(error) => {
            if error.kind() == ErrorKind::PermissionDenied {
                let remedy =
                    "run this as root, or start the server with --write-kubeconfig-mode or --write-kubeconfig-group";
                tell(format_args!("k3s: {} may not be read, so kubectl goes without it: {remedy}", file.display()));
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_named_before_what_is_for_somebody_else() {
        let names = |args: &[&str]| names_kubeconfig(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(names(&["get", "nodes", "--kubeconfig", "mine"]) && names(&["--kubeconfig=mine", "get", "nodes"]));
        assert!(!names(&["exec", "pod", "--", "kubectl", "--kubeconfig=theirs"]) && !names(&["config", "view"]));
    }
}
