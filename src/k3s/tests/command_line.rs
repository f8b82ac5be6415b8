//! The command line as users type it, of the program as it is built. What `k3s` becomes is a script that says how it was called.
#![cfg(test)]

use std::{
    fs,
    io::pipe,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// A machine's files, in a folder of their own.
struct Machine(TempDir);

impl Machine {
    /// Without any configuration.
    fn new() -> Self {
        let machine = Self(TempDir::new().unwrap());
        let script = "#!/bin/sh\necho \"$(basename \"$0\") kubeconfig=$KUBECONFIG $*\"\n";
        for name in ["kubectl", "ctr"] {
            let path = machine.write(&format!("libexec/{name}"), script);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        machine.write("config.yaml", &format!("write-kubeconfig: {}\n", machine.path("k3s.yaml").display()));
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn k3s(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_k3s"));
        command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(self.0.path());
        command.env("K3S_LIBEXEC", self.path("libexec")).env("K3S_CONFIG_FILE", self.path("config.yaml"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.k3s(args).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn kubectl_goes_without_a_server_where_there_is_none() {
    let machine = Machine::new();
    assert_eq!(stdout(&machine.run(&["kubectl", "version", "--client"])), "kubectl kubeconfig= version --client");
    let own = machine.write("k3s.yaml", "");
    let expected = format!("kubectl kubeconfig={} get nodes", own.display());
    assert_eq!(stdout(&machine.run(&["kubectl", "get", "nodes"])), expected);
    // An empty variable names no file.
    let empty = machine.k3s(&["kubectl", "get", "nodes"]).env("KUBECONFIG", "").output().unwrap();
    assert_eq!(stdout(&empty), expected);
    let mine = machine.k3s(&["kubectl", "get", "nodes"]).env("KUBECONFIG", "/mine").output().unwrap();
    assert_eq!(stdout(&mine), "kubectl kubeconfig=/mine get nodes");
    let named = machine.run(&["kubectl", "--kubeconfig=/mine", "get", "nodes"]);
    assert_eq!(stdout(&named), "kubectl kubeconfig= --kubeconfig=/mine get nodes");
    // A configuration that is wrong, or that this user may not read, is none of kubectl's business.
    machine.write("config.yaml", "- no mapping\n");
    assert_eq!(machine.run(&["kubectl", "config", "view"]).status.code(), Some(0));
}

#[test]
fn flags_may_stand_before_the_verb() {
    let machine = Machine::new();
    assert_eq!(stdout(&machine.run(&["--data-dir", "/srv", "kubectl", "get"])), "kubectl kubeconfig= get");
    assert_eq!(stdout(&machine.run(&["-d", "/srv", "ctr", "images", "ls"])), "ctr kubeconfig= images ls");
    assert_eq!(machine.run(&["--debug", "server", "--help"]).status.code(), Some(0));
    let refused = machine.run(&["--debug", "--data-dir=~nobody/k3s", "server"]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(
        stderr(&refused).contains("--data-dir: nothing is put in for the beginning of `~nobody/k3s`"),
        "{refused:?}"
    );
    // Before the verb and after it are the same.
    let dir = machine.path("nowhere");
    let dir = dir.to_str().unwrap();
    let [before, after] = [["--data-dir", dir, "certificate", "check"], ["certificate", "check", "--data-dir", dir]]
        .map(|args| machine.run(&args));
    assert_eq!(stderr(&before), stderr(&after));
    assert!(stderr(&before).contains(dir), "{before:?}");
}

#[test]
fn etcd_snapshot_without_a_verb_saves() {
    let machine = Machine::new();
    let dir = machine.path("data");
    let dir = format!("--data-dir={}", dir.display());
    let [bare, save] = [vec!["etcd-snapshot", "--name=mine", &dir], vec!["etcd-snapshot", "save", "--name=mine", &dir]]
        .map(|args| machine.run(&args));
    assert_eq!((bare.status.code(), stderr(&bare)), (save.status.code(), stderr(&save)));
    assert_ne!(bare.status.code(), Some(64), "{bare:?}");
}

#[test]
fn every_verb_finds_the_node_where_its_configuration_says() {
    let machine = Machine::new();
    let data = machine.path("elsewhere");
    machine.write("config.yaml", &format!("data-dir: {}\n", data.display()));
    let looked_for = data.display().to_string();
    for args in [
        &["certificate", "check"][..],
        &["certificate", "rotate"],
        &["certificate", "rotate-ca", "--path=."],
        &["token", "rotate"],
    ] {
        let refused = machine.run(args);
        assert_eq!(refused.status.code(), Some(66), "{args:?}: {refused:?}");
        assert!(stderr(&refused).contains(&looked_for), "{args:?}: {refused:?}");
        assert!(!data.exists(), "{args:?} left something");
    }
    // An agent's folder alone holds no certificate, and there is nothing to be rotated.
    fs::create_dir_all(data.join("agent")).unwrap();
    for verb in ["check", "rotate"] {
        let refused = machine.run(&["certificate", verb]);
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(66), String::new()), "{verb}");
        assert!(fs::read_dir(data.join("agent")).unwrap().next().is_none(), "{verb} left something");
    }
}

#[test]
fn output_may_end_early() {
    let machine = Machine::new();
    for args in [
        &["--version"][..],
        &["--help"],
        &["server", "--help"],
        &["agent", "--version"],
        &["completion", "bash"],
        &["token", "generate"],
        &["check-config", "--disable-agent"],
        &["check-config"],
        &["snapshot", "ls"],
        &["snapshot", "prune"],
        &["status"],
        &["certificate", "check"],
        &["frobnicate"],
        &["server", "--frobnicate"],
        &["kubectl"],
    ] {
        let (_, closed) = pipe().unwrap();
        let ended = machine.k3s(args).stdout(closed).stderr(Stdio::piped()).output().unwrap();
        assert!(!stderr(&ended).contains("panicked"), "{args:?}: {}", stderr(&ended));
        let [(_, out), (_, err)] = [pipe().unwrap(), pipe().unwrap()];
        let ended = machine.k3s(args).stdout(out).stderr(err).status().unwrap();
        assert!(ended.code().is_none_or(|code| code != 101), "{args:?}: {ended}");
    }
}
