//! A container image as `images/<name>/image.json` declares it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k3s_oci::{Config, Digest, ImageName, Node, Platform, PlatformBuilder};
use serde::{Deserialize, de::IgnoredAny};

use crate::component::{Component, Scratch};
use crate::process::{stdout, succeed};
use crate::{elf, folder, workspace};

/// Flags that make a program of one C file without a C library, the same bytes each time.
const FREESTANDING: [&str; 13] = [
    "-Os",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pie",
    "-no-pie",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none,-z,noseparate-code",
    "-s",
];

/// `image.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    /// Its name, which `k3s_images` has read from here; of the tag, `{component}` stands for that component's version without its `v`,
    /// `{k3s}` for ours.
    #[serde(rename = "repository")]
    _repository: IgnoredAny,
    #[serde(rename = "tag")]
    _tag: IgnoredAny,
    #[serde(default)]
    purpose: Purpose,
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    cmd: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    exposed_ports: BTreeSet<String>,
    #[serde(default)]
    volumes: BTreeSet<String>,
    files: BTreeMap<PathBuf, Source>,
    /// Target → names beside it that are symbolic links to it.
    #[serde(default)]
    links: BTreeMap<PathBuf, Vec<String>>,
}

/// Who needs an image.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// Every node: it comes with the package.
    #[default]
    Node,
    /// Tests and demonstrations.
    Test,
    /// Whoever runs the product itself from an image.
    Product,
}

/// Where a file of the image comes from.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Source {
    /// A program of a component, of the component's name.
    Component(String),
    /// A C file beside the declaration, compiled without a C library.
    C(PathBuf),
    /// A shell script beside the declaration.
    Script(PathBuf),
    /// This text.
    Text(String),
    /// A folder with this octal mode.
    Folder(String),
    /// A statically linked program of this machine.
    Host { path: PathBuf, package: String },
    /// A file of this machine, with the libraries that it is linked with at their own places.
    Installed { path: PathBuf, package: String },
    /// The tree of `cargo xtask dist`, with the libraries of its programs.
    Dist {},
}

/// A declared image.
#[derive(Debug)]
pub(crate) struct Image {
    name: String,
    folder: PathBuf,
    declaration: Declaration,
}

/// An image that was packed.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) name: ImageName,
    pub(crate) digest: Digest,
}

impl Image {
    /// Every declared image, by name.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let folder = workspace::root().join("images");
        let mut images = Vec::new();
        for name in workspace::declared(&folder, "image.json")? {
            let folder = folder.join(&name);
            let path = folder.join("image.json");
            let declaration = serde_json::from_slice(&fs::read(&path)?)
                .with_context(|| format!("Wrong declaration {}", path.display()))?;
            images.push(Self { name, folder, declaration });
        }
        Ok(images)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.declaration.purpose
    }

    /// The components whose programs it holds.
    pub(crate) fn components(&self) -> impl Iterator<Item = &str> {
        self.declaration.files.values().filter_map(|source| match source {
            Source::Component(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether it holds a component that few ask for.
    pub(crate) fn is_optional(&self) -> Result<bool> {
        let components: Vec<_> = self.components().map(Component::named).collect::<Result<_>>()?;
        Ok(components.iter().any(Component::is_optional))
    }

    /// Packs the image as `<folder>/<name>.tar`. Components that it holds are built first; the product's holds the tree `dist`.
    pub(crate) fn pack(&self, dist: &Path, folder: &Path) -> Result<Packed> {
        fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
        let scratch = Scratch::create(folder, &self.name)?;
        let image = self.image(dist, &scratch.0)?;
        let partial = scratch.0.join("image.tar");
        let mut file = BufWriter::new(fs::File::create(&partial)?);
        let digest = image.pack(&mut file)?;
        file.flush()?;
        let archive = folder.join(format!("{}.tar", self.name));
        fs::rename(&partial, &archive).with_context(|| format!("Cannot rename to {}", archive.display()))?;
        Ok(Packed { name: image.name, digest })
    }

    fn image(&self, dist: &Path, scratch: &Path) -> Result<k3s_oci::Image> {
        let mut files = BTreeMap::new();
        for (path, source) in &self.declaration.files {
            self.add(&mut files, path, source, dist, scratch)?;
        }
        for (target, names) in &self.declaration.links {
            let program = target.file_name().context("A link needs the path of a program")?;
            files.extend(names.iter().map(|name| (target.with_file_name(name), Node::Link(program.into()))));
        }
        Ok(k3s_oci::Image { name: self.image_name()?, platform: platform()?, config: self.declaration.config(), files })
    }

    fn image_name(&self) -> Result<ImageName> {
        let name = k3s_images::named(&self.name).with_context(|| format!("images/{} is not declared", self.name))?;
        Ok(name.parse()?)
    }

    fn add(&self, files: &mut Files, path: &Path, source: &Source, dist: &Path, scratch: &Path) -> Result<()> {
        let node = match source {
            Source::Text(text) => Node::Text(text.clone()),
            Source::Folder(mode) => {
                Node::Folder(u32::from_str_radix(mode, 8).with_context(|| format!("{mode:?} is no octal mode"))?)
            }
            Source::Component(name) => Node::Copy(Component::named(name)?.build()?.folder.join(name), 0o755),
            Source::C(file) => {
                let program = scratch.join(file).with_extension("");
                let mut compiler = Command::new("cc");
                succeed(compiler.args(FREESTANDING).arg("-o").arg(&program).arg(self.folder.join(file)))?;
                Node::Copy(program, 0o755)
            }
            Source::Host { path: program, package } => {
                ensure!(
                    !elf::is_dynamic(&installed(program, package)?),
                    "{} is not statically linked: install the package {package}",
                    program.display()
                );
                Node::Copy(program.clone(), 0o755)
            }
            Source::Installed { path: file, package } => {
                let is_program = elf::is_dynamic(&installed(file, package)?);
                if is_program {
                    files.extend(libraries(file)?);
                }
                Node::Copy(file.clone(), if is_program { 0o755 } else { 0o644 })
            }
            Source::Script(file) => Node::Copy(self.folder.join(file), 0o755),
            Source::Dist {} => return add_dist(files, path, dist),
        };
        files.insert(path.to_owned(), node);
        Ok(())
    }
}

type Files = BTreeMap<PathBuf, Node>;

/// The tree `dist` at `path`; programs of ours that are linked dynamically bring their libraries.
fn add_dist(files: &mut Files, path: &Path, dist: &Path) -> Result<()> {
    for file in folder::files(dist).context("Run `cargo xtask dist` first")? {
        let from = dist.join(&file);
        let node = if from.is_symlink() {
            Node::Link(fs::read_link(&from)?)
        } else {
            let mode = fs::metadata(&from)?.permissions().mode();
            if mode & 0o111 != 0 && elf::is_dynamic(&fs::read(&from)?) {
                files.extend(libraries(&from)?);
            }
            Node::Copy(from, if mode & 0o111 == 0 { 0o644 } else { 0o755 })
        };
        files.insert(path.join(&file), node);
    }
    Ok(())
}

/// The shared libraries of a program and their loader, each at the path by which the loader finds it.
fn libraries(program: &Path) -> Result<Files> {
    let listing = String::from_utf8(stdout(Command::new("ldd").arg(program))?)?;
    let paths = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(|path| (PathBuf::from(path), Node::Copy(PathBuf::from(path), 0o755))).collect())
}

fn installed(path: &Path, package: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Cannot read {}: install the package {package}", path.display()))
}

impl Declaration {
    /// Without what is not declared.
    fn config(&self) -> Config {
        let given = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty());
        let ports: Vec<_> = self.exposed_ports.iter().cloned().collect();
        let volumes: Vec<_> = self.volumes.iter().cloned().collect();
        let mut config = Config::default();
        config
            .set_user(Some(self.user.clone()).filter(|user| !user.is_empty()))
            .set_exposed_ports(given(&ports))
            .set_volumes(given(&volumes))
            .set_env(given(&self.env))
            .set_entrypoint(given(&self.entrypoint))
            .set_cmd(given(&self.cmd));
        config
    }
}

/// What this machine runs.
pub(crate) fn platform() -> Result<Platform> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(PlatformBuilder::default().architecture(architecture).os("linux").build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declaration_names_an_image() {
        let all = Image::all().unwrap();
        assert!(!all.is_empty());
        for image in all {
            image.image_name().unwrap();
        }
    }

    /// The demo image's wget under the shell that it has there.
    #[test]
    fn the_demos_wget_ends_after_the_seconds_that_it_is_given() {
        use std::{io::Read as _, net::TcpListener, thread};

        let script = workspace::root().join("images/demo/wget");
        let wget = |flags: &[&str], url: &str| {
            let mut shell = Command::new("busybox");
            shell.arg("sh").arg(&script).args(flags).args(["-O", "-", url]).output().unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        // Connections are taken by the kernel, and nobody answers.
        for flags in [&["-T", "1"][..], &["-qT1"], &["-q", "--timeout=1"]] {
            let finished = wget(flags, &url);
            let said = String::from_utf8_lossy(&finished.stderr);
            assert_eq!(finished.status.code(), Some(1), "{flags:?}: {said}");
            assert!(said.contains("wget: download timed out"), "{flags:?}: {said}");
        }
        let answering = thread::spawn(move || {
            // The three of before wait in line first.
            for stream in listener.incoming().take(6) {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nhi\n");
            }
        });
        for flags in [&["-q", "-T", "60"][..], &["-qT", "60"], &["-q"]] {
            let finished = wget(flags, &url);
            assert_eq!(String::from_utf8_lossy(&finished.stdout), "hi\n", "{flags:?}");
        }
        answering.join().unwrap();
    }
}
