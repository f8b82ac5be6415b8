//! Nix and nixpkgs' `lib`, as this machine has them. The store is one of our own: nothing is asked of, or left in, the
//! machine's.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use crate::{
    component::Scratch,
    process::{stdout, succeed},
    workspace,
};

/// Names the folder of nixpkgs' lib.
const LIB_VARIABLE: &str = "NIXPKGS_LIB";
/// Archives that come with Debian's nix-bin and that no evaluation needs; a second libc would break every program.
const NOT_UNPACKED: [&str; 4] = ["libc6", "libdb", "libperl", "perl"];
/// Nothing is fetched, nobody else builds, and derivations run the host's programs.
const SETTINGS: &str = "experimental-features = nix-command flakes
sandbox = false
substituters =
build-users-group =
builders =
warn-dirty = false
";

/// What Nix asks whether somebody else builds, below a root that was unpacked; its own link is to the machine's /usr.
const BUILD_HOOK: &str = "usr/libexec/nix/build-remote";

/// A Nix that evaluates, and builds with the host's programs.
#[derive(Debug)]
pub(crate) struct Nix {
    programs: PathBuf,
    /// Where the programs' libraries lie, and their build hook, if not where the system has them.
    unpacked: Option<(OsString, PathBuf)>,
    state: PathBuf,
    lib: PathBuf,
}

/// Why there is none, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotAtHand {
    Nix,
    Lib { cached: PathBuf },
}

impl Nix {
    /// The machine's Nix or, on Debian, its package unpacked into the cache; and nixpkgs' lib.
    pub(crate) fn at_hand() -> Result<Result<Self, NotAtHand>> {
        let cache = workspace::cache()?.join("nix");
        let (programs, unpacked) = match on_path("nix-instantiate") {
            Some(folder) => (folder, None),
            None => {
                let root = cache.join("debian");
                if !root.exists() && !unpack_from_debian(&cache, &root)? {
                    return Ok(Err(NotAtHand::Nix));
                }
                (root.join("usr/bin"), Some((libraries(&root)?, root.join(BUILD_HOOK))))
            }
        };
        let mut nix = Self { programs, unpacked, state: cache, lib: PathBuf::new() };
        Ok(match nix.find_lib()? {
            Ok(lib) => {
                nix.lib = lib;
                Ok(nix)
            }
            Err(missing) => Err(missing),
        })
    }

    /// The folder of nixpkgs' lib.
    pub(crate) fn lib(&self) -> &Path {
        &self.lib
    }

    /// One of Nix' programs, with our store and settings.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        for (variable, folder) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "var"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "etc"),
            ("NIX_LOCALSTATE_DIR", "local"),
            ("XDG_CACHE_HOME", "cache"),
        ] {
            command.env(variable, self.state.join(folder));
        }
        let mut settings = SETTINGS.to_owned();
        if let Some((libraries, build_hook)) = &self.unpacked {
            settings += &format!("build-hook = {}\n", build_hook.display());
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command.env("NIX_CONFIG", settings).env("NIX_REMOTE", "local");
        command
    }

    /// What the file evaluates to when it is given nixpkgs' `lib`, as JSON.
    pub(crate) fn evaluate(&self, file: &Path) -> Result<Vec<u8>> {
        let lib = format!("import {}", self.lib.display());
        let mut command = self.program("nix-instantiate");
        stdout(command.args(["--eval", "--strict", "--json"]).arg(file).args(["--arg", "lib", &lib]))
            .with_context(|| format!("{} does not evaluate", file.display()))
    }

    fn find_lib(&self) -> Result<Result<PathBuf, NotAtHand>> {
        let holds_it = |folder: &PathBuf| folder.join("modules.nix").is_file();
        if let Some(named) = env::var_os(LIB_VARIABLE).map(PathBuf::from) {
            anyhow::ensure!(holds_it(&named), "{LIB_VARIABLE}={} is not nixpkgs' lib folder", named.display());
            return Ok(Ok(named));
        }
        let cached = self.state.join("nixpkgs.lib/lib");
        if holds_it(&cached) {
            return Ok(Ok(cached));
        }
        let channel = self.program("nix-instantiate").args(["--find-file", "nixpkgs"]).output();
        let channel = channel.context("Cannot run nix-instantiate")?;
        let folder = PathBuf::from(String::from_utf8_lossy(&channel.stdout).trim_end()).join("lib");
        Ok(if channel.status.success() && holds_it(&folder) { Ok(folder) } else { Err(NotAtHand::Lib { cached }) })
    }
}

impl fmt::Display for NotAtHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nix => write!(f, "There is no Nix: install it; on Debian, root needs no more than its archives"),
            Self::Lib { cached } => write!(
                f,
                "nixpkgs' lib is not at hand: name its folder with {LIB_VARIABLE}, or put nix-community's nixpkgs.lib \
                 where {} is looked for",
                cached.display()
            ),
        }
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).find(|folder| folder.join(program).is_file())
}

/// Takes the programs out of Debian's packages: to install them would exchange the machine's perl. Tells whether that worked.
fn unpack_from_debian(cache: &Path, root: &Path) -> Result<bool> {
    if !geteuid().is_root() || on_path("apt-get").is_none() || on_path("dpkg-deb").is_none() {
        return Ok(false);
    }
    fs::create_dir_all(cache).with_context(|| format!("Cannot create {}", cache.display()))?;
    let scratch = Scratch::create(cache, "debian")?;
    let archives = scratch.0.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let folder = format!("Dir::Cache::archives={}", archives.display());
    let download = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--download-only", "--no-install-recommends", "--yes", "-qq", "-o", &folder]);
        succeed(apt.args(["-o", "APT::Sandbox::User=root", "nix-bin"]))
    };
    // A machine that was just made has no lists yet.
    let update = || succeed(Command::new("apt-get").args(["update", "-qq"]));
    if download().or_else(|_| update().and_then(|()| download())).is_err() {
        return Ok(false);
    }
    let unpacked = scratch.0.join("root");
    for entry in fs::read_dir(&archives)? {
        let archive = entry?;
        let name = archive.file_name();
        if archive.path().extension() == Some(OsStr::new("deb")) && is_unpacked(&name.to_string_lossy()) {
            succeed(Command::new("dpkg-deb").arg("-x").arg(archive.path()).arg(&unpacked))?;
        }
    }
    let hook = unpacked.join(BUILD_HOOK);
    if hook.is_symlink() {
        fs::remove_file(&hook)?;
        symlink("../../bin/nix", &hook)?;
    }
    fs::rename(&unpacked, root).with_context(|| format!("Cannot rename to {}", root.display()))?;
    Ok(true)
}

fn is_unpacked(archive: &str) -> bool {
    !NOT_UNPACKED.iter().any(|name| archive.starts_with(name))
}

/// The folders of shared libraries below `root`, as the dynamic linker takes them.
fn libraries(root: &Path) -> Result<OsString> {
    let mut folders: Vec<_> = crate::folder::files(root)?
        .into_iter()
        .filter(|file| file.to_string_lossy().contains(".so"))
        .filter_map(|file| file.parent().map(|folder| root.join(folder)))
        .collect();
    folders.sort();
    folders.dedup();
    Ok(env::join_paths(folders)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perl_and_libc_stay_those_of_the_machine() {
        assert!(is_unpacked("nix-bin_2.8.0-1.1+b1_amd64.deb"));
        assert!(is_unpacked("libboost-context1.74.0_1.74.0+ds1-21_amd64.deb"));
        for archive in ["perl-base_5.36.0_amd64.deb", "libperl5.36_5.36.0_amd64.deb", "libc6_2.36_amd64.deb"] {
            assert!(!is_unpacked(archive), "{archive}");
        }
    }

    #[test]
    fn what_is_missing_says_what_to_do() {
        let missing = NotAtHand::Lib { cached: "/home/a/.cache/k3s/nix/nixpkgs.lib/lib".into() };
        let text = missing.to_string();
        assert!(text.contains(LIB_VARIABLE) && text.contains("/home/a/.cache/k3s/nix/nixpkgs.lib/lib"), "{text}");
    }
}
