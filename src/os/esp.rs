//! The ESP: the one place that who flashes a machine reaches from another one. FAT, without permissions.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use k3s_files::{FileError, failed};

use crate::{Assessment, BootEntry, FirstBoot, Version};

/// Bytes of a first-boot file.
const LONGEST: u64 = 1 << 20;

/// What the initrd leaves before it replaces the data partition.
const DATA_FAULT: &str = "data-fault";
/// The folder of what makes a machine the same again.
const IDENTITY: &str = "identity";
/// What a kernel ends in while it is written.
const UNFINISHED: &str = "new";

/// Its files that are meant for people.
#[derive(Debug, Clone)]
pub struct Esp(PathBuf);

impl Esp {
    /// What a machine says of its first-boot file.
    pub const STATUS: &str = "status.txt";

    /// The one that is mounted here.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The first-boot file, or none.
    ///
    /// # Errors
    /// If it cannot be read, or is longer than 1 MiB.
    pub fn first_boot(&self) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.0.join(FirstBoot::NAME);
        match read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            // A partition without the file, but not a missing partition.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.0.is_dir() => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Removes the first-boot file, and what it held from its place on the disk as far as that is in our hands: a flash disk may keep
    /// what it no longer shows.
    ///
    /// # Errors
    /// The partition is not writable.
    pub fn erase_first_boot(&self) -> Result<(), FileError> {
        let path = self.0.join(FirstBoot::NAME);
        overwrite(&path)
            .and_then(|()| fs::remove_file(&path))
            .and_then(|()| sync(&self.0))
            .map_err(failed("erase", &path))
    }

    /// The kernels that the boot loader finds here.
    ///
    /// # Errors
    /// The partition cannot be read.
    pub fn entries(&self) -> Result<Vec<BootEntry>, FileError> {
        let folder = self.kernels();
        let names = || -> io::Result<Vec<_>> { fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name())).collect() };
        let names = names().map_err(failed("read", &folder))?;
        Ok(names.iter().filter_map(|name| BootEntry::parse(name.to_str()?)).collect())
    }

    /// Has the kernel of `entry` stand as `assessment`.
    ///
    /// # Errors
    /// The partition is not writable, or the kernel is not there any more.
    pub fn assess(&self, entry: &BootEntry, assessment: Assessment) -> Result<(), FileError> {
        let from = self.kernels().join(entry.file_name());
        let to = self.kernels().join(BootEntry { assessment, ..entry.clone() }.file_name());
        fs::rename(&from, to).and_then(|()| sync(&self.kernels())).map_err(failed("rename", &from))
    }

    /// Removes each kernel of ours but that of `version`, and what an update has left.
    ///
    /// # Errors
    /// The partition is not writable.
    pub(crate) fn remove_kernels_except(&self, version: &Version) -> Result<(), FileError> {
        let folder = self.kernels();
        let removed = || {
            for file in fs::read_dir(&folder)? {
                let file = file?;
                let name = file.file_name();
                let other = name.to_str().and_then(BootEntry::parse).is_some_and(|entry| entry.version != *version);
                if other || Path::new(&name).extension().is_some_and(|extension| extension == UNFINISHED) {
                    fs::remove_file(file.path())?;
                }
            }
            sync(&folder)
        };
        removed().map_err(failed("clear", &folder))
    }

    /// A file for the kernel of `entry`, which the boot loader does not see yet.
    ///
    /// # Errors
    /// The partition is not writable.
    pub(crate) fn create_kernel(&self, entry: &BootEntry) -> Result<File, FileError> {
        let path = self.unfinished(entry);
        File::create(&path).map_err(failed("create", &path))
    }

    /// Shows the boot loader the kernel of `entry`, which was written and flushed.
    ///
    /// # Errors
    /// The partition is not writable.
    pub(crate) fn publish_kernel(&self, entry: &BootEntry) -> Result<(), FileError> {
        let (from, to) = (self.unfinished(entry), self.kernels().join(entry.file_name()));
        fs::rename(&from, &to).and_then(|()| sync(&self.kernels())).map_err(failed("rename", &from))
    }

    fn unfinished(&self, entry: &BootEntry) -> PathBuf {
        self.kernels().join(format!("k3s_{}.{UNFINISHED}", entry.version))
    }

    /// Where the boot loader looks for them.
    fn kernels(&self) -> PathBuf {
        self.0.join("EFI/Linux")
    }

    /// What the initrd leaves here before it restarts a machine whose data partition it cannot mend: found again, it replaces the partition.
    ///
    /// # Errors
    /// The partition is not writable.
    pub(crate) fn clear_data_fault(&self) -> Result<(), FileError> {
        k3s_files::remove(&self.0.join(DATA_FAULT)).map(|_| ())
    }

    /// A file of the machine's identity, if it is kept here.
    ///
    /// # Errors
    /// It cannot be read, or is longer than 1 MiB.
    pub(crate) fn identity(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.0.join(IDENTITY).join(name);
        match read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Keeps a file of the machine's identity.
    ///
    /// # Errors
    /// The partition is full or not writable.
    pub(crate) fn keep_identity(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let folder = self.0.join(IDENTITY);
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        replace(&folder.join(name), bytes)
    }

    /// Removes what of the machine's identity is here, as the first-boot file is.
    ///
    /// # Errors
    /// The partition is not writable.
    pub(crate) fn erase_identity(&self) -> Result<(), FileError> {
        let folder = self.0.join(IDENTITY);
        let erased = || match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            files => {
                for file in files? {
                    overwrite(&file?.path())?;
                }
                fs::remove_dir_all(&folder)?;
                sync(&self.0)
            }
        };
        erased().map_err(failed("erase", &folder))
    }

    /// Writes what there is to say, unless it stands there already.
    ///
    /// # Errors
    /// The partition is full or not writable.
    pub fn say(&self, sentence: &str) -> Result<(), FileError> {
        let path = self.0.join(Self::STATUS);
        // Whoever reads it may do so on Windows.
        let text = format!("{sentence}\r\n");
        if read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        replace(&path, text.as_bytes())
    }
}

/// The old contents or the new, never a part, as far as FAT lets it.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let new = path.with_extension("new");
    let written = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync(path.parent().expect("it is in a folder"))
    };
    written().map_err(failed("write", path))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST { Err(io::Error::other("it is longer than 1 MiB")) } else { Ok(bytes) }
}

fn overwrite(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.flush()?;
    file.sync_all()
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_partition_may_lack_the_file_but_not_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Esp::at(folder.path()).first_boot().unwrap(), None);
        let error = Esp::at(folder.path().join("efi")).first_boot().unwrap_err().to_string();
        assert!(error.starts_with("cannot read ") && error.ends_with("/efi/first-boot.yaml"), "{error}");
    }

    #[test]
    fn what_a_taken_file_held_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join(FirstBoot::NAME), folder.path().join("same blocks"));
        fs::write(&path, "token: secret\n").unwrap();
        fs::hard_link(&path, &other).unwrap();
        let esp = Esp::at(folder.path());
        esp.erase_first_boot().unwrap();
        assert_eq!(esp.first_boot().unwrap(), None);
        assert_eq!(fs::read(&other).unwrap(), [0; 14]);
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join(FirstBoot::NAME)).and_then(|file| file.set_len(1 << 40)).unwrap();
        let error = Esp::at(folder.path()).first_boot().unwrap_err();
        assert_eq!(error.source.to_string(), "it is longer than 1 MiB");
    }

    #[test]
    fn what_is_said_again_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let esp = Esp::at(folder.path());
        let inode = || fs::metadata(folder.path().join(Esp::STATUS)).unwrap().ino();
        esp.say("one").unwrap();
        let first = inode();
        esp.say("one").unwrap();
        assert_eq!(inode(), first);
        esp.say("two").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(Esp::STATUS)).unwrap(), "two\r\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
