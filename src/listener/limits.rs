//! How many connections a listener holds.

use nix::sys::resource::{Resource, getrlimit};

/// Connections of strangers, at most: each is some ten KiB of memory before it has shown anything.
const STRANGERS: usize = 4096;
/// Of these from one source: a host, or a network behind one address, whose clients all connect at once.
const STRANGERS_OF_SOURCE: usize = 512;
/// All connections, at most, however many descriptors there may be.
const CONNECTIONS: usize = 64 << 10;

/// How many connections a listener holds. What strangers cannot have is for clients that have shown credentials, and for loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of strangers, loopback's aside.
    pub strangers: usize,
    /// Of strangers from one source; loopback is one.
    pub strangers_of_source: usize,
    /// Of clients that have shown credentials.
    pub authenticated: usize,
    /// Of these from one source.
    pub authenticated_of_source: usize,
}

impl Limits {
    /// For a process that may open so many files: half of them are for connections, since many of these lead on to another one.
    pub fn of_descriptors(descriptors: u64) -> Self {
        let connections = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).clamp(16, CONNECTIONS);
        let strangers = (connections / 4).min(STRANGERS);
        let strangers_of_source = (strangers / 4).min(STRANGERS_OF_SOURCE);
        let authenticated = connections - strangers - strangers_of_source;
        Self { strangers, strangers_of_source, authenticated, authenticated_of_source: authenticated / 2 }
    }

    /// For this process.
    pub fn of_process() -> Self {
        // The least that POSIX allows a system to give.
        Self::of_descriptors(getrlimit(Resource::RLIMIT_NOFILE).map_or(20, |(now, _)| now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_have_a_part_of_what_there_is() {
        let limits = |strangers, strangers_of_source, authenticated| Limits {
            strangers,
            strangers_of_source,
            authenticated,
            authenticated_of_source: authenticated / 2,
        };
        assert_eq!(Limits::of_descriptors(1024), limits(128, 32, 352));
        assert_eq!(Limits::of_descriptors(20_000), limits(2500, 512, 6988));
        assert_eq!(Limits::of_descriptors(u64::MAX), limits(4096, 512, 60_928));
        assert_eq!(Limits::of_descriptors(0), limits(4, 1, 11));
        assert!(Limits::of_process().authenticated > 0);
    }
}
