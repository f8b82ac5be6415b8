//! The disk as it is flashed.

use std::{
    fs::{self, File, FileTimes},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};

use super::{
    slot::Slot,
    tools::{PLACE, Tools},
    tree::NAME,
};
use crate::{debian, workspace};

/// The boot loader, at its own place and where firmware looks that knows of none.
const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const LOADER_PLACES: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"];
const LOADER_CONFIG: &str = "timeout 0\neditor no\n";
/// The partition's file system is for other systems, too: most take one whose sectors are those of the disk.
const SECTORS: &str = "SYSTEMD_REPART_MKFS_OPTIONS_VFAT=-S 512";
/// What UUIDs of the disk and its partitions are derived from, so that they are the same each time.
const SEED: &str = "a37a5c3e-0f2b-4c1e-9d43-6b1f6b3c3ed9";

pub(super) fn make(tools: &Tools, slot: &Slot, version: &str, work: &Path) -> Result<PathBuf> {
    let esp = work.join("esp");
    for place in LOADER_PLACES {
        put(&tools.file(LOADER), &esp.join(place))?;
    }
    put(&slot.kernel, &esp.join(format!("EFI/Linux/{NAME}_{version}.efi")))?;
    fs::create_dir_all(esp.join("loader"))?;
    fs::write(esp.join("loader/loader.conf"), LOADER_CONFIG)?;
    clamp(&esp)?;

    let definitions = work.join("repart.d");
    fs::create_dir(&definitions)?;
    let filled = |file: &Path| {
        let name = file.file_name().expect("it is a file of the folder of work").display();
        format!("CopyBlocks={PLACE}/{name}\n")
    };
    for (name, more) in [
        ("10-esp.conf", "CopyFiles=/esp:/\n".to_owned()),
        ("20-root-a.conf", filled(&slot.root)),
        ("21-verity-a.conf", filled(&slot.verity)),
        ("30-root-b.conf", String::new()),
        ("31-verity-b.conf", String::new()),
    ] {
        let shared = workspace::root().join("images/edge/repart.d").join(name);
        let text = fs::read_to_string(&shared).with_context(|| format!("Cannot read {}", shared.display()))?;
        fs::write(definitions.join(name), text + &more)?;
    }
    let disk = format!("{NAME}_{version}.disk.raw");
    let (definitions, source) = (format!("--definitions={PLACE}/repart.d"), format!("--copy-source={PLACE}"));
    let (seed, output) = (format!("--seed={SEED}"), format!("{PLACE}/{disk}"));
    let how = ["--empty=create", "--size=auto", "--offline=yes", "--dry-run=no"];
    tools.run(
        work,
        &[&["env", SECTORS, "systemd-repart"], &how[..], &[&definitions, &source, &seed, &output]].concat(),
    )?;
    Ok(work.join(disk))
}

fn put(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().expect("a joined path has a parent"))?;
    fs::copy(from, to).with_context(|| format!("Cannot copy {}", from.display()))?;
    Ok(())
}

/// Gives everything below `folder`, and itself, one time, which FAT can hold.
fn clamp(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { clamp(&path)? } else { set_time(&path)? }
    }
    set_time(folder)
}

fn set_time(path: &Path) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(debian::EPOCH);
    Ok(File::open(path)?.set_times(FileTimes::new().set_accessed(time).set_modified(time))?)
}
