//! An update: what a set holds goes into the slot that does not run, and counts once its kernel has its name.
//!
//! ```text
//! the set is signed, for this machine and newer
//!   └▶ the free slot's kernel is removed       from here on the machine has one version
//!       └▶ root and hashes are written to the free slot, flushed, read again
//!           └▶ the kernel is written beside the others as k3s_VERSION.new
//!               └▶ k3s_VERSION+3.efi           the next start is of the new version
//! ```
//! Nothing here writes to the running slot or to the partition table. A cut anywhere leaves a slot without a kernel, which nobody looks at.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use data_encoding::HEXLOWER;
use k3s_files::failed;
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc::O_EXCL,
};
use sha2::{Digest as _, Sha256};
use tar::Archive;

use crate::{
    Assessment, BootEntry, Error, Esp, Machine, Manifest, Part, Partition, SetError, Slots, TRIES, UpdateKey,
    UpdateSet, Version,
};

/// Bytes that wait in memory to be written: more would hold up what the datastore writes.
const UNFLUSHED: u64 = 8 << 20;

/// Why an update was not made. What ran goes on, and is what the next start is of.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// About the machine.
    #[error(transparent)]
    Machine(#[from] Error),
    /// About the set.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Nobody's sets are taken.
    #[error("this image takes no updates, as it was made without a key ({}): flash it anew", UpdateKey::PATH)]
    NoKey,
    /// There would be no version to go back to.
    #[error("{0} is on trial itself: wait until `k3s os status` calls it good, or go back by `k3s os rollback`")]
    OnTrial(Version),
    /// There would be none at all.
    #[error("the kernel of {0}, which runs, is not on the ESP: an update that breaks off would leave nothing to start")]
    NoKernel(Version),
    /// Another update runs.
    #[error("another update is under way: wait until it has ended")]
    UnderWay,
    /// The partition is too small.
    #[error("{part} has {size} bytes, and the partition for it, {}, has {}: flash the machine anew", partition.device.display(), partition.size)]
    NoRoom {
        /// What does not fit.
        part: Part,
        /// Its bytes.
        size: u64,
        /// Where it was to go.
        partition: Partition,
    },
    /// The disk does not keep what was written to it.
    #[error("{part} reads otherwise from {} than it was written: the disk is failing", device.display())]
    NotKept {
        /// What was written.
        part: Part,
        /// Where.
        device: PathBuf,
    },
}

/// A version that is in its slot, and does not count yet.
#[derive(Debug)]
#[must_use = "it does not count before `commit`"]
pub struct Installed {
    esp: Esp,
    entry: BootEntry,
    _lock: File,
}

impl Machine {
    /// Writes the set that `source` gives into the free slot. `progress` is called with each part and its bytes so far.
    ///
    /// # Errors
    /// The set is not for this machine, not as it was signed, or cannot be read or written.
    pub fn install(&self, source: impl Read, mut progress: impl FnMut(Part, u64)) -> Result<Installed, UpdateError> {
        let running = self.version()?;
        let key = k3s_files::read(&self.root().join(&UpdateKey::PATH[1..])).map_err(Error::File)?;
        let key = key.ok_or(UpdateError::NoKey)?;
        let key = UpdateKey::parse(&String::from_utf8_lossy(&key)).map_err(SetError::Manifest)?;
        let lock = self.lock_update()?;
        self.require_way_back()?;
        let slots = Slots::find(self.root()).map_err(Error::Slots)?;

        let mut archive = Archive::new(source);
        let mut set = UpdateSet::open(&mut archive, &key)?;
        set.manifest().check(std::env::consts::ARCH, &running).map_err(SetError::Manifest)?;
        require_room(set.manifest(), &slots)?;

        self.esp().remove_kernels_except(&running).map_err(Error::File)?;
        for (part, partition) in [(Part::Root, &slots.free.root), (Part::Verity, &slots.free.verity)] {
            let device = self.root().join(partition.device.strip_prefix("/").unwrap_or(&partition.device));
            let mut written = Flushing::open(device, part)?;
            set.copy(part, &mut written, |bytes| progress(part, bytes))?;
            written.finish(set.manifest())?;
        }
        let entry = BootEntry {
            version: set.manifest().version.clone(),
            assessment: Assessment::OnTrial { left: TRIES, done: 0 },
        };
        let mut file = self.esp().create_kernel(&entry).map_err(Error::File)?;
        set.copy(Part::Kernel, &mut file, |bytes| progress(Part::Kernel, bytes))?;
        file.sync_all().map_err(|source| SetError::Write { part: Part::Kernel, source })?;
        Ok(Installed { esp: self.esp().clone(), entry, _lock: lock })
    }

    fn lock_update(&self) -> Result<File, UpdateError> {
        let path = self.root().join("run/k3s-os/update.lock");
        let folder = path.parent().expect("it is in a folder");
        k3s_files::create_directory(folder, 0o700).map_err(Error::File)?;
        let lock = File::create(&path).map_err(failed("create", &path)).map_err(Error::File)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(std::fs::TryLockError::WouldBlock) => Err(UpdateError::UnderWay),
            Err(std::fs::TryLockError::Error(error)) => Err(Error::File(failed("lock", &path)(error)).into()),
        }
    }

    /// The other version is about to go.
    fn require_way_back(&self) -> Result<(), UpdateError> {
        match self.running_entry()? {
            None => Err(UpdateError::NoKernel(self.version()?)),
            Some(BootEntry { assessment: Assessment::Good, .. }) => Ok(()),
            Some(entry) => Err(UpdateError::OnTrial(entry.version)),
        }
    }
}

impl Installed {
    /// What it is.
    pub fn version(&self) -> &Version {
        &self.entry.version
    }

    /// Has the next start be of it, and returns what it is.
    ///
    /// # Errors
    /// The ESP is not writable.
    pub fn commit(self) -> Result<Version, UpdateError> {
        self.esp.publish_kernel(&self.entry).map_err(Error::File)?;
        Ok(self.entry.version)
    }
}

fn require_room(manifest: &Manifest, slots: &Slots) -> Result<(), UpdateError> {
    for (part, partition) in [(Part::Root, &slots.free.root), (Part::Verity, &slots.free.verity)] {
        let size = manifest.content(part).size;
        if size > partition.size {
            return Err(UpdateError::NoRoom { part, size, partition: partition.clone() });
        }
    }
    Ok(())
}

/// A partition that is written from its beginning, and flushed on the way.
struct Flushing {
    file: File,
    device: PathBuf,
    part: Part,
    unflushed: u64,
}

impl Flushing {
    fn open(device: PathBuf, part: Part) -> Result<Self, UpdateError> {
        // Refused while it is mounted or is the root's.
        let opened = OpenOptions::new().read(true).write(true).custom_flags(O_EXCL).open(&device);
        let file = opened.map_err(failed("open", &device)).map_err(Error::File)?;
        Ok(Self { file, device, part, unflushed: 0 })
    }

    /// Compares what was written with what the disk gives.
    fn finish(self, manifest: &Manifest) -> Result<(), UpdateError> {
        let content = manifest.content(self.part);
        let kept = self.digest(content.size).map_err(failed("read", &self.device)).map_err(Error::File)?;
        if kept == content.sha256 { Ok(()) } else { Err(UpdateError::NotKept { part: self.part, device: self.device }) }
    }

    fn digest(&self, size: u64) -> io::Result<String> {
        self.file.sync_all()?;
        // What is in memory proves nothing.
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let (mut hash, mut file) = (Hashing(Sha256::new()), &self.file);
        file.rewind()?;
        io::copy(&mut file.take(size), &mut hash)?;
        Ok(HEXLOWER.encode(&hash.0.finalize()))
    }
}

impl Write for Flushing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unflushed += written as u64;
        if self.unflushed >= UNFLUSHED {
            self.file.sync_data()?;
            self.unflushed = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        Slot,
        manifest::tests::KEY,
        slots::tests::write_sysfs,
        update_set::tests::{archive, files},
    };

    struct Host(tempfile::TempDir);

    impl Host {
        /// A machine whose slot A runs version 1, with the kernel of an older version besides.
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            write_sysfs(host.0.path(), Slot::A);
            host.write("usr/lib/os-release", b"IMAGE_ID=k3s\nIMAGE_VERSION=1\n");
            host.write("usr/share/k3s/update.pub", KEY.as_bytes());
            host.write("efi/EFI/Linux/k3s_1.efi", b"kernel of 1");
            host.write("efi/EFI/Linux/k3s_0.9.efi", b"kernel of 0.9");
            for (number, size) in [(2, 64), (3, 64), (4, 64), (5, 64)] {
                host.write(&format!("dev/vda{number}"), &vec![b'-'; size]);
            }
            host
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn read(&self, name: &str) -> Vec<u8> {
            fs::read(self.0.path().join(name)).unwrap()
        }

        fn kernels(&self) -> Vec<String> {
            let names = fs::read_dir(self.0.path().join("efi/EFI/Linux")).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn install(&self, set: &[u8]) -> Result<Installed, UpdateError> {
            Machine::at(self.0.path()).install(set, |_, _| {})
        }

        fn refused(&self, set: &[u8]) -> String {
            self.install(set).expect_err("it is refused").to_string()
        }

        fn next(&self) -> String {
            let entries = Machine::at(self.0.path()).esp().entries().unwrap();
            BootEntry::next(&entries).unwrap().version.to_string()
        }
    }

    #[test]
    fn a_version_counts_from_its_commit_on() {
        let host = Host::new();
        let installed = host.install(&archive(&files())).unwrap();
        assert!(host.read("dev/vda4").starts_with(b"root of 2-"));
        assert!(host.read("dev/vda5").starts_with(b"hashes-"));
        assert_eq!(host.kernels(), ["k3s_1.efi", "k3s_2.new"], "what the slot held before is not started any more");
        assert_eq!(host.next(), "1");
        installed.commit().unwrap();
        assert_eq!(host.kernels(), ["k3s_1.efi", "k3s_2+3.efi"]);
        assert_eq!(host.read("efi/EFI/Linux/k3s_2+3.efi"), b"kernel");
        assert_eq!(host.next(), "2");
        for of_running in ["dev/vda2", "dev/vda3"] {
            assert_eq!(host.read(of_running), [b'-'; 64], "{of_running}");
        }
    }

    #[test]
    fn a_set_that_breaks_off_at_any_byte_leaves_what_runs() {
        let set = archive(&files());
        let end = set.windows(6).rposition(|bytes| bytes == b"kernel").unwrap();
        for length in (0..=end).step_by(131) {
            let host = Host::new();
            host.refused(&set[..length]);
            assert_eq!(host.next(), "1", "{length} bytes");
            assert_eq!(host.read("dev/vda2"), [b'-'; 64], "{length} bytes");
            assert_eq!(host.read("efi/EFI/Linux/k3s_1.efi"), b"kernel of 1", "{length} bytes");
            // It is made again.
            host.install(&set).unwrap().commit().unwrap();
            assert_eq!(host.kernels(), ["k3s_1.efi", "k3s_2+3.efi"], "{length} bytes");
        }
    }

    #[test]
    fn what_cannot_be_an_update_changes_nothing() {
        let set = archive(&files());
        let unchanged = |host: &Host| {
            assert_eq!(host.kernels(), ["k3s_0.9.efi", "k3s_1.efi"]);
            assert_eq!(host.read("dev/vda4"), [b'-'; 64]);
        };
        let host = Host::new();
        host.write("usr/lib/os-release", b"IMAGE_ID=k3s\nIMAGE_VERSION=1\n");
        fs::remove_file(host.0.path().join("usr/share/k3s/update.pub")).unwrap();
        assert!(host.refused(&set).starts_with("this image takes no updates, as it was made without a key"));
        unchanged(&host);

        let host = Host::new();
        fs::write(host.0.path().join("sys/devices/vda/vda5/size"), "0\n").unwrap();
        assert!(host.refused(&set).starts_with("verity.raw has 6 bytes, and the partition for it, /dev/vda5, has 0: "));
        unchanged(&host);

        let host = Host::new();
        let other = host.install(&set).unwrap();
        assert_eq!(host.refused(&set), "another update is under way: wait until it has ended");
        drop(other);
        assert!(host.install(&set).is_ok());
    }

    #[test]
    fn a_version_on_trial_keeps_the_one_of_before() {
        let host = Host::new();
        let kernels = host.0.path().join("efi/EFI/Linux");
        fs::rename(kernels.join("k3s_1.efi"), kernels.join("k3s_1+2-1.efi")).unwrap();
        assert!(host.refused(&archive(&files())).starts_with("1 is on trial itself: "));
        assert_eq!(host.kernels(), ["k3s_0.9.efi", "k3s_1+2-1.efi"]);
        fs::remove_file(kernels.join("k3s_1+2-1.efi")).unwrap();
        assert!(host.refused(&archive(&files())).starts_with("the kernel of 1, which runs, is not on the ESP: "));
    }
}
