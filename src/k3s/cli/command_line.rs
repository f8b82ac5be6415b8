//! What other users of this machine see of the command line, in `/proc/PID/cmdline`: secrets among the arguments are struck out as soon
//! as the process has read them. k3s shows nothing but its name and verb; here the other arguments stay, for whoever looks for a fault.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io,
    ops::Range,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
};

/// Verbs whose flags have letters of their own.
const ROLES: [&str; 3] = ["server", "agent", "check-config"];
/// An option of `k3s token rotate`.
const NEW_TOKEN: &str = "new-token";

/// Strikes the secrets among `args`, the arguments that this process was started with.
///
/// # Errors
/// If the process' own memory cannot be written, or is not as expected; then nothing has changed.
pub(crate) fn hide_secrets(args: &[OsString]) -> io::Result<()> {
    let secrets = secrets(args);
    if secrets.is_empty() {
        return Ok(());
    }
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
    let start = start_of_arguments()?;
    let expected: Vec<u8> = args.iter().flat_map(|arg| arg.as_bytes().iter().chain(&[0])).copied().collect();
    let mut found = vec![0; expected.len()];
    memory.read_exact_at(&mut found, start)?;
    if found != expected {
        return Err(io::Error::other("the arguments are not where the kernel says"));
    }
    for secret in secrets {
        memory.write_all_at(&vec![b'*'; secret.len()], start + secret.start as u64)?;
    }
    Ok(())
}

/// Where the secrets are in `args` with a NUL behind each, as the kernel keeps them.
fn secrets(args: &[OsString]) -> Vec<Range<usize>> {
    // Wherever the verb stands. What is struck once too often is struck here only: other programs get arguments of their own.
    let is_role = args.iter().any(|arg| ROLES.iter().any(|role| arg == role));
    let mut found = Vec::new();
    let (mut at, mut is_value) = (0, false);
    for arg in args {
        let bytes = arg.as_bytes();
        let end = at + bytes.len();
        let secret = if is_value {
            is_value = false;
            Some(0)
        } else if let Some(option) = bytes.strip_prefix(b"--") {
            let name = option.split(|byte| *byte == b'=').next().unwrap_or_default();
            let is_secret =
                std::str::from_utf8(name).is_ok_and(|name| name == NEW_TOKEN || k3s_config::is_secret(name));
            is_value = is_secret && name.len() == option.len();
            (is_secret && !is_value).then_some(2 + name.len() + 1)
        } else if let Some([b'-', letter, rest @ ..]) = is_role.then_some(bytes) {
            let is_secret = std::str::from_utf8(&[*letter]).is_ok_and(k3s_config::is_secret);
            is_value = is_secret && rest.is_empty();
            (is_secret && !is_value).then_some(2 + usize::from(rest.starts_with(b"=")))
        } else {
            None
        };
        found.extend(secret.map(|offset| at + offset..end).filter(|range| !range.is_empty()));
        at = end + 1;
    }
    found
}

/// Field 48 of `/proc/self/stat` (proc(5)).
fn start_of_arguments() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in parentheses, and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let start = fields.split_whitespace().nth(48 - 3).and_then(|field| field.parse().ok());
    start.filter(|start| *start != 0).ok_or_else(|| io::Error::other("the kernel does not tell where they are"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn hidden(args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let mut line: Vec<u8> = args.iter().flat_map(|arg| arg.as_bytes().iter().chain(b" ")).copied().collect();
        for secret in secrets(&args) {
            line[secret].fill(b'*');
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    #[test]
    fn secrets_are_struck_however_they_are_given_and_nothing_else() {
        for (args, shown) in [
            (&["k3s", "server", "--token", "s3cret", "--debug"][..], "k3s server --token ****** --debug"),
            (&["k3s", "agent", "--token=s3=et", "-s", "https://a:6443"], "k3s agent --token=***** -s https://a:6443"),
            (&["k3s", "agent", "-t", "s3cret"], "k3s agent -t ******"),
            (&["k3s", "-d", "/data", "agent", "-t", "s3cret"], "k3s -d /data agent -t ******"),
            (&["k3s", "agent", "-ts3cret", "-t=s3"], "k3s agent -t****** -t=**"),
            (
                &["k3s", "server", "--agent-token=a", "--cluster-secret", "b"],
                "k3s server --agent-token=* --cluster-secret *",
            ),
            (&["k3s", "server", "--datastore-endpoint=https://u:p@h"], "k3s server --datastore-endpoint=*************"),
            (&["k3s", "server", "--etcd-s3-secret-key=k"], "k3s server --etcd-s3-secret-key=*"),
            (&["k3s", "token", "rotate", "--token=a", "--new-token", "b"], "k3s token rotate --token=* --new-token *"),
            (&["k3s", "kubectl", "exec", "-t", "pod"], "k3s kubectl exec -t pod"),
            (&["k3s", "server", "--token-file", "f", "--token="], "k3s server --token-file f --token="),
            (&["k3s", "server", "--token"], "k3s server --token"),
        ] {
            assert_eq!(hidden(args), shown);
        }
    }

    const CHILD: &str = "K3S_TEST_HIDDEN";

    /// In a process of its own: what is struck is struck for good.
    #[test]
    fn others_do_not_see_them() {
        let args: Vec<OsString> = std::env::args_os().collect();
        if std::env::var_os(CHILD).is_some() {
            hide_secrets(&args).unwrap();
            let line = fs::read_to_string("/proc/self/cmdline").unwrap().replace('\0', " ");
            io::Write::write_all(&mut io::stdout(), line.as_bytes()).unwrap();
            return;
        }
        let name = "cli::command_line::tests::others_do_not_see_them";
        // What libtest takes for the name of a test to skip.
        let args = ["--exact", name, "--nocapture", "--skip", "--token=s3cret", "--skip", "visible"];
        let child = Command::new(std::env::current_exe().unwrap()).args(args).env(CHILD, "1").output().unwrap();
        let output = String::from_utf8(child.stdout).unwrap();
        assert!(child.status.success(), "{output}");
        assert!(output.contains("--skip --token=****** --skip visible"), "{output}");
    }
}
