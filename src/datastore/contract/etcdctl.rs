//! The everyday commands of etcdctl, where `ETCDCTL_BINARY` names it.

use std::ffi::OsString;
use std::process::{Output, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{contract_at, ours_at};

const BINARY: &str = "ETCDCTL_BINARY";

/// etcdctl, for a store.
struct Etcdctl {
    program: OsString,
    url: String,
}

impl Etcdctl {
    fn new(url: String) -> Option<Self> {
        Some(Self { program: std::env::var_os(BINARY)?, url })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--endpoints", &self.url]).args(line.split_whitespace());
        // It warns of variables that look like its own.
        command.env_remove(BINARY);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str, input: &str) -> Output {
        let mut child = self.command(line).spawn().unwrap();
        // It goes when it is dropped, so that etcdctl sees the end.
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        child.wait_with_output().await.unwrap()
    }

    /// What a command prints when it succeeds.
    async fn prints(&self, line: &str) -> String {
        let output = self.run(line, "").await;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{line}: {text}");
        text
    }
}

#[tokio::test]
async fn etcdctls_everyday_commands_work() {
    contract_at(async |_, url| {
        let Some(etcdctl) = Etcdctl::new(url.clone()) else { return };
        for (line, expected) in [
            ("put a 1", "OK\n"),
            ("put a 2 --prev-kv", "OK\na\n1\n"),
            ("get a", "a\n2\n"),
            ("get a --rev=2 --print-value-only", "1\n"),
            ("get / --from-key --keys-only", "a\n\n"),
            ("get a --prefix --limit=1 --sort-by=MODIFY --order=DESCEND", "a\n2\n"),
            ("del a --prev-kv", "1\na\n2\n"),
            ("get a", ""),
            ("compaction 3", "compacted revision 3\n"),
            ("alarm list", ""),
            ("alarm disarm", ""),
            ("lock name echo held", "held\n"),
        ] {
            assert_eq!(etcdctl.prints(line).await, expected, "{line}");
        }
        let txn = etcdctl.run("txn", "mod(\"b\") = \"0\"\n\nput b new\n\nget b\n\n").await;
        assert_eq!(String::from_utf8_lossy(&txn.stdout), "SUCCESS\n\nOK\n");

        let mut watch = etcdctl.command("watch b --rev=5").spawn().unwrap();
        let mut seen = [0; 10];
        watch.stdout.take().unwrap().read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"PUT\nb\nnew\n");
        watch.kill().await.unwrap();

        let granted = etcdctl.prints("lease grant 60").await;
        let id = granted.split_whitespace().nth(1).unwrap();
        assert_eq!(etcdctl.prints(&format!("put c leased --lease={id}")).await, "OK\n");
        for (line, part) in [
            ("lease list".to_owned(), id),
            (format!("lease timetolive {id} --keys"), "attached keys([c])"),
            (format!("lease keep-alive {id} --once"), "keepalived with TTL(60)"),
            (format!("lease revoke {id}"), "revoked"),
            ("endpoint status".to_owned(), ", 3.6.8, "),
            ("endpoint health".to_owned(), "is healthy"),
            ("endpoint hashkv".to_owned(), &url),
            ("member list".to_owned(), ", started, "),
            ("defrag".to_owned(), "Finished defragmenting"),
            ("auth status".to_owned(), "Authentication Status: false"),
        ] {
            let printed = etcdctl.prints(&line).await;
            assert!(printed.contains(part), "{line}: {printed}");
        }
        assert_eq!(etcdctl.prints("get c").await, "");
    })
    .await;
}

#[tokio::test]
async fn etcdctl_is_told_what_is_not_served() {
    ours_at(async |_, url| {
        let Some(etcdctl) = Etcdctl::new(url) else { return };
        let folder = tempfile::tempdir().unwrap();
        let save = format!("snapshot save {}/snapshot", folder.path().display());
        for key in ["a", "b"] {
            etcdctl.prints(&format!("put {key} 1")).await;
        }
        for (line, reason) in [
            (&*save, "k3s snapshot save"),
            ("move-leader 1", "always leads"),
            ("member add other --peer-urls=http://127.0.0.1:1", "members cannot be changed"),
            ("user list", "no users and roles"),
            ("del a --from-key", "more than one key"),
        ] {
            let output = etcdctl.run(line, "").await;
            let outcome = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && outcome.contains(reason), "{line}: {outcome}");
        }
    })
    .await;
}
