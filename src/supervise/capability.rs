//! What the kernel lets this process do.

use std::{fs, io};

/// The capabilities that running a node depends on; the value is the kernel's number (`include/uapi/linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Interfaces, routes, nftables.
    NetAdmin = 12,
    /// Loading kernel modules.
    SysModule = 16,
    /// Mounts, namespaces, most sysctls.
    SysAdmin = 21,
    /// Lowering an OOM score, raising limits.
    SysResource = 24,
}

/// The effective capabilities of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Those of this process.
    pub fn current() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        Self::parse(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no CapEff line"))
    }

    /// Reads the `CapEff` line of a `/proc/PID/status`.
    pub fn parse(status: &str) -> Option<Self> {
        let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(bits.trim(), 16).ok().map(Self)
    }

    /// Whether `capability` is among them.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_in_a_container_may_lack_some() {
        let some = Capabilities::parse("Name:\tk3s\nCapEff:\t000001fffeffffff\nCapBnd:\t0\n").unwrap();
        assert!(some.has(Capability::SysAdmin) && some.has(Capability::NetAdmin));
        assert!(!some.has(Capability::SysResource));
    }

    #[test]
    fn no_line_is_no_answer() {
        assert_eq!(Capabilities::parse("Name:\tk3s\nCapEff:\tzzz\n"), None);
        assert_eq!(Capabilities::parse(""), None);
    }

    #[test]
    fn the_kernel_writes_what_we_read() {
        Capabilities::current().unwrap();
    }
}
