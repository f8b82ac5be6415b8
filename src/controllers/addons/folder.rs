//! The folder of manifests: which files there are, and what each of them is to this server.
//!
//! Its rules are k3s': files end in `.yaml`, `.yml` or `.json`, in any case; those whose names begin with a dot do not count; a link to a
//! folder is followed, links within it are not. `NAME.skip` anywhere keeps hands off the files called `NAME`. A name in `--disable` is
//! that of a file without its ending, or the path of a folder. Of our own is the mark `.authoritative`: files that go from a folder which
//! has it, or from folders in it, take their objects along.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// In a folder, makes it authoritative.
pub(super) const AUTHORITATIVE: &str = ".authoritative";

/// Folders in folders: enough for everybody, and an end for loops of mounts.
const DEEPEST: usize = 16;

/// A file with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ManifestFile {
    /// Where it is found, links not resolved.
    pub(super) path: PathBuf,
    /// As it is told to people: below the folder.
    pub(super) name: String,
    /// Differs when it may have changed.
    pub(super) fingerprint: Fingerprint,
    /// Whether it is ours to delete: what is behind a link is somebody else's.
    pub(super) removable: bool,
    /// Whether the folder it is in speaks for all that came from it.
    pub(super) authoritative: bool,
}

/// What a change of a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    /// In bytes.
    pub(super) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What there is in the folder at one moment.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Manifests to apply, by path.
    pub(super) wanted: Vec<ManifestFile>,
    /// Manifests whose objects are to go, by path.
    pub(super) disabled: Vec<ManifestFile>,
    /// Files that are there and left alone.
    pub(super) skipped: BTreeSet<PathBuf>,
    /// Files and folders that cannot be looked at, with what people call them.
    pub(super) unreadable: Vec<(String, io::Error)>,
    /// Folders that speak for all that came from them.
    pub(super) authoritative: Vec<PathBuf>,
    /// All folders that were looked into, as they are without links: to follow.
    pub(super) folders: Vec<PathBuf>,
}

/// Looks into `base`, which may not be there yet.
pub(super) fn scan(base: &Path, disabled: &BTreeSet<String>) -> Scan {
    let mut walk = Walk { base, found: Vec::new(), marks: BTreeSet::new(), scan: Scan::default() };
    if base.exists() {
        walk.folder(base, Reached::Plainly { links: true }, 0, false);
    }
    let Walk { mut found, marks, mut scan, .. } = walk;
    found.sort_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
    for file in found {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_disabled(base, &file.path, disabled) {
            scan.disabled.push(file);
        } else if marks.contains(&name) {
            scan.skipped.insert(file.path);
        } else {
            scan.wanted.push(file);
        }
    }
    scan
}

/// How a folder was reached.
#[derive(Clone, Copy)]
enum Reached {
    /// From the base; links in it are followed.
    Plainly { links: bool },
    /// By a link, so that its files are not ours.
    ByLink,
}

struct Walk<'a> {
    base: &'a Path,
    found: Vec<ManifestFile>,
    /// What is to be skipped.
    marks: BTreeSet<String>,
    scan: Scan,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, reached: Reached, depth: usize, authoritative: bool) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries.filter_map(Result::ok).collect::<Vec<_>>(),
            Err(error) => return self.scan.unreadable.push((self.name(folder), error)),
        };
        self.scan.folders.extend(fs::canonicalize(folder).ok());
        let marked = entries.iter().any(|entry| entry.file_name() == AUTHORITATIVE);
        if marked {
            self.scan.authoritative.push(folder.to_owned());
        }
        let authoritative = authoritative || marked;
        for entry in entries {
            let path = entry.path();
            if let Err(error) = self.entry(&path, reached, depth, authoritative) {
                self.scan.unreadable.push((self.name(&path), error));
            }
        }
    }

    fn entry(&mut self, path: &Path, reached: Reached, depth: usize, authoritative: bool) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(skipped) = name.strip_suffix(".skip") {
            self.marks.insert(skipped.to_owned());
            return Ok(());
        }
        let is_link = fs::symlink_metadata(path)?.is_symlink();
        // Of what does not count, nobody has to be able to read anything.
        let metadata = match fs::metadata(path) {
            Err(_) if is_link && !is_manifest(&name) => return Ok(()),
            metadata => metadata?,
        };
        if metadata.is_dir() {
            let within = match (is_link, reached) {
                (true, Reached::Plainly { links: true }) => Reached::ByLink,
                (true, _) => return Ok(()),
                (false, reached) => reached,
            };
            if depth < DEEPEST {
                self.folder(path, within, depth + 1, authoritative);
            }
        } else if is_manifest(&name) {
            // A pipe would be waited for, and a device never ends.
            if !metadata.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            self.found.push(ManifestFile {
                name: self.name(path),
                path: path.to_owned(),
                fingerprint: Fingerprint::of(&metadata),
                removable: matches!(reached, Reached::Plainly { .. }),
                authoritative,
            });
        }
        Ok(())
    }

    fn name(&self, path: &Path) -> String {
        let below = path.strip_prefix(self.base).unwrap_or(path);
        if below.as_os_str().is_empty() { path.display().to_string() } else { below.display().to_string() }
    }
}

fn is_manifest(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| lower.ends_with(ending))
}

/// An add-on is named by its file without the ending, or by a folder of it.
pub(super) fn is_disabled(base: &Path, path: &Path, disabled: &BTreeSet<String>) -> bool {
    let below = path.strip_prefix(base).unwrap_or(path);
    let named = |part: &Path| part.to_str().is_some_and(|name| disabled.contains(name));
    below.ancestors().skip(1).any(named) || below.file_stem().is_some_and(|stem| named(Path::new(stem)))
}

/// The name of the add-on of a file: k3s takes the file's up to its first dot.
pub(super) fn addon_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Whether the API takes it as the name of an AddOn.
pub(super) fn is_addon_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|byte| *byte != b'-');
    let bytes = name.as_bytes();
    bytes.len() <= 253 && is_edge(bytes.first()) && is_edge(bytes.last()) && bytes.iter().all(|byte| is_inner(*byte))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: impl AsRef<Path>) {
        fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn names(files: &[ManifestFile]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    fn disabled(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn files_count_by_their_endings_and_in_the_order_of_their_paths() {
        let base = tempfile::tempdir().unwrap();
        for path in ["b.YAML", "a.yml", "c/d.json", "B.yaml", ".hidden.yaml", "note.txt", "e.yaml.bak"] {
            write(base.path().join(path));
        }
        assert_eq!(names(&scan(base.path(), &BTreeSet::new()).wanted), ["B.yaml", "a.yml", "b.YAML", "c/d.json"]);
        assert!(scan(&base.path().join("none"), &BTreeSet::new()).wanted.is_empty());
    }

    #[test]
    fn a_mark_beside_or_elsewhere_skips_a_name() {
        let base = tempfile::tempdir().unwrap();
        for path in ["a.yaml", "c/a.yaml", "b.yaml", "c/b.yaml.skip", "a.yml"] {
            write(base.path().join(path));
        }
        let scan = scan(base.path(), &BTreeSet::new());
        assert_eq!(names(&scan.wanted), ["a.yaml", "a.yml", "c/a.yaml"]);
        assert_eq!(scan.skipped, [base.path().join("b.yaml")].into());
    }

    #[test]
    fn a_name_disables_files_and_folders_also_where_they_are_skipped() {
        let base = tempfile::tempdir().unwrap();
        for path in
            ["coredns.yaml", "coredns.yaml.skip", "metrics-server/a.yaml", "x/coredns.yml", "x/y/z.yaml", "other.yaml"]
        {
            write(base.path().join(path));
        }
        let scan = scan(base.path(), &disabled(&["coredns", "metrics-server", "x/y"]));
        assert_eq!(names(&scan.disabled), ["coredns.yaml", "metrics-server/a.yaml", "x/coredns.yml", "x/y/z.yaml"]);
        assert_eq!(names(&scan.wanted), ["other.yaml"]);
    }

    #[test]
    fn links_to_folders_are_followed_once_and_their_files_are_not_ours() {
        let (base, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(store.path().join("farm/a.yaml"));
        write(store.path().join("deep/b.yaml"));
        write(store.path().join("file.yaml"));
        symlink(store.path().join("deep"), store.path().join("farm/deep")).unwrap();
        symlink(store.path().join("file.yaml"), store.path().join("farm/linked.yaml")).unwrap();
        symlink(store.path().join("farm"), base.path().join("nixos")).unwrap();
        symlink(store.path().join("file.yaml"), base.path().join("own.yaml")).unwrap();
        symlink("nowhere", base.path().join("dangling.yaml")).unwrap();
        let scan = scan(base.path(), &BTreeSet::new());
        assert_eq!(names(&scan.wanted), ["nixos/a.yaml", "nixos/linked.yaml", "own.yaml"]);
        assert_eq!(scan.wanted.iter().map(|file| file.removable).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(scan.unreadable.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["dangling.yaml"]);
        assert!(scan.folders.contains(&fs::canonicalize(store.path().join("farm")).unwrap()));
    }

    #[test]
    fn a_mark_makes_a_folder_and_what_is_in_it_authoritative() {
        let base = tempfile::tempdir().unwrap();
        for path in ["a.yaml", "nixos/.authoritative", "nixos/b.yaml", "nixos/c/d.yaml"] {
            write(base.path().join(path));
        }
        let scan = scan(base.path(), &BTreeSet::new());
        assert_eq!(scan.wanted.iter().map(|file| file.authoritative).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(scan.authoritative, [base.path().join("nixos")]);
    }

    #[test]
    fn the_first_dot_ends_an_addons_name() {
        assert_eq!(addon_name(Path::new("/x/traefik.v3.yaml")), "traefik");
        for (name, is_one) in
            [("a", true), ("metrics-server", true), ("", false), ("My_App", false), ("-a", false), ("ü", false)]
        {
            assert_eq!(is_addon_name(name), is_one, "{name}");
        }
        assert!(is_addon_name(&"a".repeat(253)) && !is_addon_name(&"a".repeat(254)));
    }
}
