//! What has to be installed to build, run and test the project. On Debian and Ubuntu it is installed here; elsewhere what is missing is named.

use std::{
    env,
    ffi::OsStr,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;

use crate::process::succeed;

/// A Debian package, and the program by which it is known elsewhere.
pub(crate) type Package = (&'static str, Option<&'static str>);

/// What building and testing takes, and what for.
const PACKAGES: [Package; 15] = [
    // C: SQLite, the cryptography, runc's and pause's own.
    ("gcc", Some("cc")),
    ("libc6-dev", None),
    ("pkg-config", Some("pkg-config")),
    // runc.
    ("libseccomp-dev", None),
    // The client of containerd's API.
    ("protobuf-compiler", Some("protoc")),
    ("libprotobuf-dev", None),
    // The demo image.
    ("busybox-static", Some("busybox")),
    // Services, by either packet filter.
    ("nftables", Some("nft")),
    ("iptables", Some("iptables")),
    // Links and their addresses, of the nodes that tests make and of what `down` takes away.
    ("iproute2", Some("ip")),
    // Kernel modules.
    ("kmod", Some("modprobe")),
    // The disks whose power tests cut.
    ("e2fsprogs", Some("mkfs.ext4")),
    ("mount", Some("losetup")),
    // What scenarios look at a node with.
    ("procps", Some("pgrep")),
    ("curl", Some("curl")),
];

/// The databases of servers that share one, and what asks them.
pub(crate) const DATABASES: [Package; 3] =
    [("postgresql", Some("psql")), ("mariadb-server-core", Some("mariadbd")), ("mariadb-client-core", Some("mariadb"))];

/// Where programs of the system lie that a user's `PATH` may lack.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Installs what is missing; on a machine without apt, names it.
pub(crate) fn ensure() -> Result<()> {
    ensure_each(&PACKAGES)
}

/// As [`ensure`], of what one task needs besides.
pub(crate) fn ensure_each(packages: &[Package]) -> Result<()> {
    if !has("apt-get") || !has("dpkg-query") {
        let missing: Vec<_> = packages.iter().filter_map(|(_, program)| *program).filter(|name| !has(name)).collect();
        ensure!(
            missing.is_empty(),
            "This machine has no apt: install {} yourself, and the headers of libc, libseccomp and protobuf",
            missing.join(", ")
        );
        return Ok(());
    }
    let missing = missing_packages(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing {}.", missing.join(", "));
    // A machine that was just made has no lists yet.
    succeed(as_root("apt-get").args(["update", "-qq"]))?;
    succeed(as_root("apt-get").args(["install", "-qq", "--yes", "--no-install-recommends"]).args(&missing))
        .context("Install these packages yourself, then try again")
}

fn missing_packages(packages: &[Package]) -> Result<Vec<&'static str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${db:Status-Status}\n"]);
    query.args(packages.iter().map(|(package, _)| package));
    // It complains of, and fails for, packages that it never heard of: that is the answer.
    let output = query.stdin(Stdio::null()).output().context("Cannot run dpkg-query")?;
    Ok(not_installed(packages, &String::from_utf8_lossy(&output.stdout)))
}

fn not_installed(packages: &[Package], listing: &str) -> Vec<&'static str> {
    let installed = |package: &str| listing.lines().any(|line| line.split_once(' ') == Some((package, "installed")));
    packages.iter().map(|(package, _)| *package).filter(|package| !installed(package)).collect()
}

fn as_root(program: &str) -> Command {
    let mut command = if geteuid().is_root() {
        Command::new(program)
    } else {
        // apt's questions would wait for an answer that nobody sees; sudo resets the environment.
        let mut sudo = Command::new("sudo");
        sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", program]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn has(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(env::split_paths(OsStr::new(SYSTEM_PATH)))
        .any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_does_not_call_installed_is_missing() {
        let known = PACKAGES.map(|(package, _)| format!("{package} installed")).join("\n");
        assert!(not_installed(&PACKAGES, &known).is_empty());
        let removed = known.replace("nftables installed", "nftables config-files").replace("curl installed\n", "");
        let removed = removed.replace("curl installed", "");
        assert_eq!(not_installed(&PACKAGES, &removed), ["nftables", "curl"]);
    }
}
