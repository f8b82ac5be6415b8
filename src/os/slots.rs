//! The two places that a version can be in: a partition for its root and one for the hashes of it, each. They are found by their names, on
//! the disk that the running root is on.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use k3s_files::{FileError, failed};

/// Bytes of a sector in sysfs, whatever the disk's are.
const SECTOR: u64 = 512;
/// What the initrd calls the device that dm-verity makes of the running root.
const ROOT: &str = "root";

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Filled when the disk is made.
    A,
    /// Empty then.
    B,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its device.
    pub device: PathBuf,
    /// Its bytes.
    pub size: u64,
}

/// The partitions of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPartitions {
    /// Of the root.
    pub root: Partition,
    /// Of its hashes.
    pub verity: Partition,
}

/// The slots of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Whose root runs.
    pub running: Slot,
    /// Of the other one.
    pub free: SlotPartitions,
}

/// Why they are not known.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// The root is no device of ours.
    #[error("the root of this system is not checked by dm-verity: was it started from an edge image?")]
    NotVerified,
    /// A partition is missing, or its name was changed.
    #[error("the disk of this system has no partition {0}: its partitions are not those of an edge image")]
    Missing(String),
    /// sysfs cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Slot {
    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// As partitions and people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Slots {
    /// Those of the disk of the running root, of which the kernel tells below `root/sys`.
    ///
    /// # Errors
    /// The disk is not that of an edge image, or sysfs cannot be read.
    pub fn find(root: &Path) -> Result<Self, SlotsError> {
        let blocks = root.join("sys/class/block");
        let is_root = |device: &Path| fs::read_to_string(device.join("dm/name")).is_ok_and(|name| name.trim() == ROOT);
        let device = folders(&blocks)?.into_iter().find(|device| is_root(device)).ok_or(SlotsError::NotVerified)?;
        let lower: Vec<_> = folders(&device.join("slaves"))?;
        let disk = lower.first().and_then(|partition| partition.parent()).ok_or(SlotsError::NotVerified)?;
        let partitions: Vec<_> = folders(disk)?.iter().filter_map(|folder| NamedPartition::read(folder)).collect();
        let named = |label: String| {
            let found = partitions.iter().find(|partition| partition.label == label);
            found.ok_or(SlotsError::Missing(label))
        };
        let runs = |slot: Slot| Ok::<_, SlotsError>(lower.contains(&named(format!("root-{slot}"))?.folder));
        let running = match (runs(Slot::A)?, runs(Slot::B)?) {
            (true, false) => Slot::A,
            (false, true) => Slot::B,
            _ => return Err(SlotsError::NotVerified),
        };
        let free = running.other();
        let partition = |what: &str| named(format!("{what}-{free}")).map(|named| named.partition.clone());
        Ok(Self { running, free: SlotPartitions { root: partition("root")?, verity: partition("verity")? } })
    }
}

struct NamedPartition {
    label: String,
    folder: PathBuf,
    partition: Partition,
}

impl NamedPartition {
    /// What sysfs' folder of a partition says; none if it is one of something else.
    fn read(folder: &Path) -> Option<Self> {
        let uevent = fs::read_to_string(folder.join("uevent")).ok()?;
        let value = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let sectors: u64 = fs::read_to_string(folder.join("size")).ok()?.trim().parse().ok()?;
        let device = Path::new("/dev").join(value("DEVNAME")?);
        let partition = Partition { device, size: sectors.checked_mul(SECTOR)? };
        Some(Self { label: value("PARTNAME")?.to_owned(), folder: folder.to_owned(), partition })
    }
}

/// The folders that are in `folder` or that links there lead to, by their own paths.
fn folders(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder)?.map(|entry| entry?.path().canonicalize());
        // A device may go meanwhile.
        Ok(entries.filter_map(Result::ok).filter(|path| path.is_dir()).collect())
    };
    read().map_err(failed("read", folder))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What the kernel shows of an edge machine's disk whose `running` root is in use.
    pub(crate) fn write_sysfs(root: &Path, running: Slot) {
        let blocks = root.join("sys/class/block");
        let disk = root.join("sys/devices/vda");
        let dm = root.join("sys/devices/dm-0");
        fs::create_dir_all(&blocks).unwrap();
        fs::create_dir_all(dm.join("dm")).unwrap();
        fs::create_dir_all(dm.join("slaves")).unwrap();
        fs::write(dm.join("dm/name"), "root\n").unwrap();
        symlink(&dm, blocks.join("dm-0")).unwrap();
        for (number, label) in (1..).zip(["esp", "root-a", "verity-a", "root-b", "verity-b", "data"]) {
            let partition = disk.join(format!("vda{number}"));
            fs::create_dir_all(&partition).unwrap();
            let uevent = format!("DEVNAME=vda{number}\nDEVTYPE=partition\nPARTN={number}\nPARTNAME={label}\n");
            fs::write(partition.join("uevent"), uevent).unwrap();
            fs::write(partition.join("size"), "16384\n").unwrap();
            symlink(&partition, blocks.join(format!("vda{number}"))).unwrap();
            if label.ends_with(&format!("-{running}")) {
                symlink(&partition, dm.join(format!("slaves/vda{number}"))).unwrap();
            }
        }
    }

    #[test]
    fn the_free_slot_is_the_one_whose_root_does_not_run() {
        for (running, devices) in [(Slot::A, ["/dev/vda4", "/dev/vda5"]), (Slot::B, ["/dev/vda2", "/dev/vda3"])] {
            let root = tempfile::tempdir().unwrap();
            write_sysfs(root.path(), running);
            let slots = Slots::find(root.path()).unwrap();
            assert_eq!(slots.running, running);
            let [root, verity] = devices.map(|device| Partition { device: device.into(), size: 8 << 20 });
            assert_eq!(slots.free, SlotPartitions { root, verity });
        }
    }

    #[test]
    fn another_disk_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/class/block")).unwrap();
        assert!(matches!(Slots::find(root.path()), Err(SlotsError::NotVerified)));
        write_sysfs(root.path(), Slot::A);
        fs::write(root.path().join("sys/devices/vda/vda5/uevent"), "DEVNAME=vda5\nPARTNAME=other\n").unwrap();
        assert_eq!(
            Slots::find(root.path()).unwrap_err().to_string(),
            "the disk of this system has no partition verity-b: its partitions are not those of an edge image"
        );
    }
}
