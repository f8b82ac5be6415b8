//! One upstream program (or a family in one binary) as `nix/components/<name>/` declares it: a pinned Go module and a
//! `component.json`. The flake reads the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::counts::Counts;
use crate::digest::Inputs;
use crate::process::{stdout, succeed};
use crate::{folder, go_test, workspace};

/// Flags of every build: no paths of this machine, no state of the checkout in the bytes.
const BUILD: [&str; 4] = ["build", "-trimpath", "-buildvcs=false", "-mod=readonly"];
const LDFLAGS: &str = "-s -w -buildid=";

/// Names a folder with a folder of programs for each component, built elsewhere: the flake's.
const COMPONENTS: &str = "K3S_COMPONENTS";

/// `component.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    /// The module whose version in go.mod is the component's version.
    module: String,
    /// Set when the program links C.
    cgo: Option<Cgo>,
    /// More linker flags; `{version}`, `{major}` and `{minor}` stand for the module's version.
    #[serde(default)]
    ldflags: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    /// The folder that `go generate` fills before the build.
    generated: Option<String>,
    /// Modules of which a copy is built with some files exchanged for ours: a file's path in the module, and our file.
    #[serde(default)]
    swapped: BTreeMap<String, BTreeMap<PathBuf, PathBuf>>,
    programs: Vec<Program>,
    /// Files of the module that lie beside the programs: name, and path in the module.
    #[serde(default)]
    files: BTreeMap<PathBuf, PathBuf>,
    /// Built only for those who ask for what it is in: it takes longer than all others.
    #[serde(default)]
    optional: bool,
    /// Where the product has the programs, below `libexec/k3s`; not set if it has them in an image or not at all.
    libexec: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cgo {
    /// The pkg-config names of the C libraries.
    #[serde(default)]
    libraries: Vec<String>,
    /// Flags of the C compiler instead of Go's `-g -O2`.
    #[serde(default)]
    cflags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    name: String,
    package: String,
    /// Whether the program is the package's tests.
    #[serde(default)]
    test: bool,
    /// Build tags besides the component's.
    #[serde(default)]
    tags: Vec<String>,
    /// Symbolic links to the program: the names that select what a multi-call binary does.
    #[serde(default)]
    links: Vec<String>,
}

/// A declared component and its pinned version.
#[derive(Debug)]
pub(crate) struct Component {
    name: String,
    version: String,
    folder: PathBuf,
    declaration: Declaration,
}

/// A component in the cache.
#[derive(Debug)]
pub(crate) struct Built {
    /// Holds the programs and their links.
    pub(crate) folder: PathBuf,
    /// How long the build took; `None` if it was there.
    pub(crate) took: Option<Duration>,
}

impl Component {
    /// Every declared component, by name.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let folder = workspace::root().join("nix/components");
        workspace::declared(&folder, "component.json")?.iter().map(|name| Self::load(&folder, name)).collect()
    }

    /// Those that everybody builds.
    pub(crate) fn usual() -> Result<Vec<Self>> {
        Ok(Self::all()?.into_iter().filter(|component| !component.is_optional()).collect())
    }

    /// The component called `name`.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let mut all = Self::all()?;
        match all.iter().position(|component| component.name == name) {
            Some(index) => Ok(all.swap_remove(index)),
            None => {
                let names: Vec<_> = all.iter().map(Self::name).collect();
                bail!("There is no component {name:?}; there are: {}", names.join(", "))
            }
        }
    }

    /// The one that `<folder>/<name>` declares.
    pub(crate) fn load(folder: &Path, name: &str) -> Result<Self> {
        let folder = folder.join(name);
        let path = folder.join("component.json");
        let declaration: Declaration = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("Wrong declaration {}", path.display()))?;
        let go_mod = folder.join("go.mod");
        let text = fs::read_to_string(&go_mod).with_context(|| format!("Cannot read {}", go_mod.display()))?;
        let version = required_version(&text, &declaration.module)
            .with_context(|| format!("{} does not require {}", go_mod.display(), declaration.module))?
            .to_owned();
        Ok(Self { name: name.to_owned(), version, folder, declaration })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The upstream version, with its `v`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The component's own files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether its programs are tests, which are no part of the flake.
    pub(crate) fn is_of_tests(&self) -> bool {
        self.declaration.programs.iter().any(|program| program.test)
    }

    /// Whether it is built only for those who ask for what it is in.
    pub(crate) fn is_optional(&self) -> bool {
        self.declaration.optional
    }

    /// The names of its programs, without those of links.
    pub(crate) fn programs(&self) -> impl Iterator<Item = &str> {
        self.declaration.programs.iter().map(|program| program.name.as_str())
    }

    /// Where the product has the programs, below `libexec/k3s`.
    pub(crate) fn libexec(&self) -> Option<&Path> {
        self.declaration.libexec.as_deref()
    }

    /// Builds into the cache unless it is there already. What is in the cache is whole: it is renamed into place.
    pub(crate) fn build(&self) -> Result<Built> {
        if let Some(elsewhere) = env::var_os(COMPONENTS) {
            return Ok(Built { folder: PathBuf::from(elsewhere).join(&self.name), took: None });
        }
        let cache = workspace::cache()?.join("components");
        let folder = cache.join(format!("{}-{}", self.name, self.inputs()?));
        if folder.exists() {
            return Ok(Built { folder, took: None });
        }
        let started = Instant::now();
        fs::create_dir_all(&cache).with_context(|| format!("Cannot create {}", cache.display()))?;
        let scratch = Scratch::create(&cache, &self.name)?;
        let output = self.build_in(&scratch.0, None)?;
        match fs::rename(&output, &folder) {
            Err(_) if folder.exists() => {} // Another build of the same inputs came first.
            renamed => renamed.with_context(|| format!("Cannot rename to {}", folder.display()))?,
        }
        Ok(Built { folder, took: Some(started.elapsed()) })
    }

    /// Builds in the folder `scratch`, with Go's build cache at `go_cache` if given. Returns the folder of the programs.
    pub(crate) fn build_in(&self, scratch: &Path, go_cache: Option<&Path>) -> Result<PathBuf> {
        let source = scratch.join("source");
        let output = scratch.join("output");
        fs::create_dir_all(&output)?;
        for file in self.files()? {
            let to = source.join(&file);
            fs::create_dir_all(to.parent().expect("a joined path has a parent"))?;
            fs::copy(self.folder.join(&file), to)?;
        }
        let go = |arguments: &[&str]| {
            let mut command = self.go();
            command.current_dir(&source).args(arguments);
            if let Some(go_cache) = go_cache {
                command.env("GOCACHE", go_cache);
            }
            command
        };
        if self.declaration.generated.is_some() {
            succeed(&mut go(&["generate", "."]))?;
        }
        for (module, files) in &self.declaration.swapped {
            swap_files(module, files, &source, go)?;
        }
        for program in &self.declaration.programs {
            let binary = output.join(&program.name);
            let path = binary.to_str().with_context(|| format!("{} is not UTF-8", binary.display()))?;
            let mut arguments = BUILD.to_vec();
            if program.test {
                arguments.splice(..1, ["test", "-c", "-vet=off"]);
            }
            let (tags, ldflags) = (self.tags(program), self.ldflags());
            arguments.extend(["-tags", &tags, "-ldflags", &ldflags, "-o", path, &program.package]);
            succeed(&mut go(&arguments))?;
            for link in &program.links {
                symlink(&program.name, output.join(link))?;
            }
        }
        if !self.declaration.files.is_empty() {
            let package = self.declaration.programs.first().context("A component has programs")?.package.as_str();
            let module = module_folder(package, go)?;
            for (name, path) in &self.declaration.files {
                // Written, not copied: files of Go's module cache are read-only.
                let contents = fs::read(module.join(path));
                fs::write(output.join(name), contents.with_context(|| format!("There is no {}", path.display()))?)?;
            }
        }
        Ok(output)
    }

    /// Runs the tests of the component's own code.
    pub(crate) fn test(&self) -> Result<Counts> {
        let files = folder::files(&self.folder)?;
        let packages: BTreeSet<_> = files
            .iter()
            .filter(|file| is_test(file))
            .filter_map(|file| file.parent())
            .map(|folder| Path::new(".").join(folder))
            .collect();
        if packages.is_empty() {
            return Ok(Counts::default());
        }
        go_test::run_packages(self.go().current_dir(&self.folder).args(["test", "-json", "-trimpath"]).args(packages))
    }

    /// The hash of everything that decides over the bytes.
    fn inputs(&self) -> Result<String> {
        let mut inputs = Inputs::default();
        for file in self.files()? {
            inputs.part(&file.to_string_lossy(), &fs::read(self.folder.join(&file))?);
        }
        inputs.part("flags", format!("{BUILD:?} {LDFLAGS}").as_bytes());
        inputs.part("go", &stdout(self.go().args(["env", "GOVERSION", "GOOS", "GOARCH"]))?);
        if let Some(cgo) = &self.declaration.cgo {
            inputs.part("cc", &stdout(Command::new("cc").arg("--version"))?);
            if !cgo.libraries.is_empty() {
                inputs.part("libraries", &self.library_versions(&cgo.libraries)?);
            }
        }
        Ok(inputs.hex()[..16].to_owned())
    }

    fn library_versions(&self, libraries: &[String]) -> Result<Vec<u8>> {
        stdout(Command::new("pkg-config").arg("--modversion").args(libraries)).with_context(|| {
            format!(
                "{} links the C libraries {}: install their development packages and pkg-config",
                self.name,
                libraries.join(", ")
            )
        })
    }

    /// The component's own files that the build reads: neither generated ones nor tests.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = folder::files(&self.folder)?;
        files.retain(|file| !is_test(file));
        if let Some(generated) = &self.declaration.generated {
            files.retain(|file| !file.starts_with(generated));
        }
        Ok(files)
    }

    fn tags(&self, program: &Program) -> String {
        [&self.declaration.tags[..], &program.tags].concat().join(",")
    }

    fn ldflags(&self) -> String {
        let (major, minor) = major_minor(&self.version);
        let own = self.declaration.ldflags.join(" ").replace("{version}", &self.version);
        format!("{LDFLAGS} {own}").replace("{major}", major).replace("{minor}", minor)
    }

    /// `go` with nothing of the user's build settings but the module proxy and the caches.
    pub(crate) fn go(&self) -> Command {
        let mut command = Command::new("go");
        let cgo = self.declaration.cgo.as_ref();
        command
            .env("CGO_ENABLED", if cgo.is_some() { "1" } else { "0" })
            .envs([("GOTOOLCHAIN", "local"), ("GOWORK", "off"), ("GO111MODULE", "on")])
            .envs([("GOAMD64", "v1"), ("GOARM64", "v8.0"), ("GOARM", "7")]);
        for inherited in ["GOFLAGS", "GOEXPERIMENT", "GOOS", "GOARCH", "CC", "CGO_CFLAGS", "CGO_LDFLAGS"] {
            command.env_remove(inherited);
        }
        if let Some(cgo) = cgo.filter(|cgo| !cgo.cflags.is_empty()) {
            command.env("CGO_CFLAGS", cgo.cflags.join(" "));
        }
        command
    }
}

/// Where Go keeps the module of a package.
fn module_folder(package: &str, go: impl Fn(&[&str]) -> Command) -> Result<PathBuf> {
    let folder = String::from_utf8(stdout(&mut go(&["list", "-find", "-f", "{{.Module.Dir}}", package]))?)?;
    ensure!(!folder.trim().is_empty(), "{package} is in no module");
    Ok(PathBuf::from(folder.trim_end()))
}

/// Lets the build take a copy of `module` in which `files` are ours. go.sum guards the original.
fn swap_files(
    module: &str,
    files: &BTreeMap<PathBuf, PathBuf>,
    source: &Path,
    go: impl Fn(&[&str]) -> Command,
) -> Result<()> {
    let first = files.keys().next().and_then(|file| file.parent()).context("No file of the module is named")?;
    let copy = Path::new("swapped").join(module);
    folder::copy(&module_folder(&format!("{module}/{}", first.display()), &go)?, &source.join(&copy))?;
    for (theirs, ours) in files {
        let place = source.join(&copy).join(theirs);
        // Files of Go's module cache are read-only, and so are their copies.
        fs::remove_file(&place).with_context(|| format!("{module} has no file {}", theirs.display()))?;
        fs::copy(source.join(ours), &place).with_context(|| format!("Cannot copy {}", ours.display()))?;
    }
    succeed(&mut go(&["mod", "edit", "-replace", &format!("{module}=./{}", copy.display())]))
}

fn is_test(file: &Path) -> bool {
    file.to_string_lossy().ends_with("_test.go")
}

/// A folder that goes when it is dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// `<parent>/.<name>.<pid>`, empty.
    pub(crate) fn create(parent: &Path, name: &str) -> Result<Self> {
        let folder = parent.join(format!(".{name}.{}", std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("Remove {} by hand: {error}.", self.0.display());
        }
    }
}

/// The version that go.mod requires of `module`.
fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().strip_prefix("require ").unwrap_or(line).split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|version| version.starts_with('v'))
    })
}

fn major_minor(version: &str) -> (&str, &str) {
    let mut numbers = version.trim_start_matches('v').split('.');
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_go_mod_requires() {
        let go_mod = "module example\n\nrequire (\n\ta.io/b v1.2.3\n\ta.io/bc v9.0.0 // indirect\n)\nrequire c.io/d v4.5.6\nreplace a.io/b => a.io/e v0.0.1\n";
        assert_eq!(required_version(go_mod, "a.io/b"), Some("v1.2.3"));
        assert_eq!(required_version(go_mod, "a.io/bc"), Some("v9.0.0"));
        assert_eq!(required_version(go_mod, "c.io/d"), Some("v4.5.6"));
        assert_eq!(required_version(go_mod, "c.io"), None);
        assert_eq!(major_minor("v1.36.3"), ("1", "36"));
    }

    #[test]
    fn every_declaration_is_read_and_names_its_programs() {
        let all = Component::all().unwrap();
        assert!(!all.is_empty());
        for component in all {
            assert!(!component.declaration.programs.is_empty(), "{component:?}");
            assert!(!component.ldflags().contains('{'), "{component:?}");
        }
        let error = Component::named("kubee").unwrap_err().to_string();
        assert!(error.starts_with("There is no component \"kubee\"; there are: "), "{error}");
    }
}
