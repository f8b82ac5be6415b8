//! Which cgroups this kernel has and who makes them for pods.

use std::{io, path::Path};

use k3s_components::CgroupDriver;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Whether `/sys/fs/cgroup` is the unified hierarchy; a hybrid one has it in a folder below and counts as v1.
pub(crate) fn is_unified() -> io::Result<bool> {
    Ok(statfs("/sys/fs/cgroup")?.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// systemd where it is the service manager and cgroups are unified, as in k3s; plain directories elsewhere.
pub(crate) fn driver(unified: bool) -> CgroupDriver {
    let booted_by_systemd = Path::new("/run/systemd/system").is_dir();
    if unified && booted_by_systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
}
