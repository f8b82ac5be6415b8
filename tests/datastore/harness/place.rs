//! Where a datastore keeps its files: a folder, or a disk of its own whose power can be cut.
//!
//! The disk is a loop device that writes to its backing file without a cache. What the file holds at an instant is what
//! a disk would hold that lost its power then. The file system is mounted in a mount namespace that only the server
//! has: it goes with the server, however that ends, and the loop device with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// Bytes of a disk.
const DISK: u64 = 256 << 20;
/// `$0` is the disk, `$1` the folder to mount it on, the rest the program. The journal is committed by the server's syncs, not by the
/// clock, so that a copy of the disk is of one moment.
const MOUNTED: &str = r#"
    device=$(losetup --direct-io=on --find --show "$0")
    mount -o commit=600 "$device" "$1"
    losetup --detach "$device"
    test "$(losetup --noheadings --output DIO "$device")" -eq 1 || { echo "no direct I/O below $0"; exit 1; }
    shift
    exec "$@"
"#;

/// Where a datastore keeps its files.
#[derive(Debug)]
pub enum Place {
    /// A folder of the machine's own file system.
    Folder(PathBuf),
    /// An ext4 file system in a file. Needs root.
    Disk {
        /// The backing file.
        image: PathBuf,
        /// Where the server sees it.
        mount: PathBuf,
    },
}

impl Place {
    /// An empty folder below `scratch`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(scratch: &Path) -> Result<Self> {
        let folder = scratch.join("data");
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self::Folder(folder))
    }

    /// An empty disk whose backing file is below `scratch`.
    ///
    /// # Errors
    /// It cannot be made or formatted.
    pub async fn disk(scratch: &Path) -> Result<Self> {
        let (image, mount) = (scratch.join("disk-0"), scratch.join("mount"));
        fs::create_dir(&mount).with_context(|| format!("cannot make {}", mount.display()))?;
        fs::File::create(&image)?.set_len(DISK).with_context(|| format!("cannot make {}", image.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)).await?;
        Ok(Self::Disk { image, mount })
    }

    /// The folder as the server sees it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Disk { mount, .. } => mount,
        }
    }

    /// A command that runs `program` where the place is to be seen. It dies with the thread that starts it.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Self::Disk { image, mount } = self {
            command.args(["unshare", "--mount", "sh", "-ec", MOUNTED]).arg(image).arg(mount);
        }
        command.arg(program);
        command
    }

    /// The disk as it is at this moment, to go on with; the old one is dropped. The server has to stand still.
    ///
    /// # Errors
    /// It is no disk, or cannot be copied.
    pub async fn cut_power(&mut self, scratch: &Path, cut: u64) -> Result<()> {
        let Self::Disk { image, .. } = self else { anyhow::bail!("only a disk of its own loses its power") };
        let copy = scratch.join(format!("disk-{cut}"));
        run(Command::new("cp").arg("--sparse=always").arg(&image).arg(&copy)).await?;
        fs::remove_file(&image).with_context(|| format!("cannot remove {}", image.display()))?;
        *image = copy;
        Ok(())
    }
}

async fn run(command: &mut Command) -> Result<()> {
    let output = command.output().await.with_context(|| format!("cannot run {:?}", command.as_std()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {} {said}", command.as_std(), output.status);
    Ok(())
}
