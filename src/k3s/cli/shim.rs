//! What containerd starts as its shim on a small node: upstream's shim, told to serve all pods in one process.
//!
//! containerd asks for a shim by `start` in a pod's bundle. Upstream's shim hands out the one that serves the group which the bundle's
//! annotation names, and starts one if nobody does (`cmd/containerd-shim-runc-v2/manager` of containerd 2.4, `groupLabels`); without the
//! annotation each pod is a group. Nothing sets it for all pods but the bundle itself, so it is put there.

use std::{ffi::OsString, fs, path::Path, process::ExitCode};

use k3s_components::SHIM;
use k3s_files as files;
use serde_json::{Value, json};

use super::{Failure, upstream::become_program};

const GROUP: &str = "io.containerd.runc.v2.group";
/// On what CRI makes for pods; what `ctr` starts keeps its own shim.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
/// What a bundle says of its container.
const SPEC: &str = "config.json";

/// Becomes upstream's shim, which lies a folder above the link that was `called`.
pub(super) fn run(called: &Path, args: Vec<OsString>) -> Result<ExitCode, Failure> {
    if args.last().is_some_and(|verb| verb == "start") {
        // containerd takes all that is printed for the answer. A pod that is not in the group has a shim of its own, and runs.
        let _ = join_group(Path::new(SPEC));
    }
    let above = called.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    become_program(above.join(SHIM), SHIM, args, &[])
}

/// Puts the pod of this specification into the group of all.
fn join_group(file: &Path) -> Option<()> {
    let mut spec: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let annotations = spec.get_mut("annotations")?.as_object_mut()?;
    if !annotations.contains_key(SANDBOX) || annotations.contains_key(GROUP) {
        return None;
    }
    annotations.insert(GROUP.to_owned(), json!("pods"));
    files::write(file, &serde_json::to_vec(&spec).ok()?, files::PRIVATE).ok().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_join_the_group_and_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(SPEC);
        let joined = |annotations: Value| {
            fs::write(&file, json!({"ociVersion": "1.2.0", "annotations": annotations}).to_string()).unwrap();
            join_group(&file);
            let spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            assert_eq!(spec["ociVersion"], "1.2.0");
            spec["annotations"][GROUP].as_str().map(str::to_owned)
        };
        assert_eq!(joined(json!({SANDBOX: "a"})).as_deref(), Some("pods"));
        assert_eq!(joined(json!({SANDBOX: "a", GROUP: "mine"})).as_deref(), Some("mine"));
        assert_eq!(joined(json!({})), None);
        assert_eq!(joined(Value::Null), None);
    }
}
