//! The resource profile, by the memory that there is.

use k3s_config::resources::{Profile, ProfileChoice};
use k3s_supervise::{Supervisor, cgroup::AvailableMemory, status::Decision};
use tracing::info;

/// A profile, and what it was chosen by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledProfile {
    /// The profile.
    pub profile: Profile,
    /// The memory that there is, and whether somebody has asked for the profile.
    pub why: String,
}

impl SettledProfile {
    /// What is gone by where `choice` is asked for on this machine.
    pub fn of(choice: ProfileChoice) -> Self {
        Self::with(choice, AvailableMemory::of_process())
    }

    fn with(choice: ProfileChoice, memory: Option<AvailableMemory>) -> Self {
        let profile = choice.decide(memory.map(|memory| memory.bytes));
        let memory = memory.map_or_else(|| "nothing tells how much memory there is".to_owned(), |it| it.to_string());
        let why = match choice {
            ProfileChoice::Auto => memory,
            ProfileChoice::Fixed(_) => format!("as asked for; {memory}"),
        };
        Self { profile, why }
    }

    /// Tells it in the status and the log.
    pub fn tell(&self, supervisor: &Supervisor) {
        let Self { profile, why } = self;
        info!(profile = profile.name(), why, "The resource profile is settled.");
        let value = profile.name().to_owned();
        supervisor.decided(Decision { name: "resource-profile".to_owned(), value, why: why.clone() });
    }
}

#[cfg(test)]
mod tests {
    use k3s_supervise::cgroup::MemoryBound;

    use super::*;

    #[test]
    fn the_memory_is_told_whoever_chose() {
        let memory = AvailableMemory { bytes: 512 << 20, bound_by: MemoryBound::Cgroup };
        for (choice, memory, expected) in [
            (ProfileChoice::Auto, Some(memory), ("small", "the cgroup may have 512 MiB")),
            (
                ProfileChoice::Fixed(Profile::Standard),
                Some(memory),
                ("standard", "as asked for; the cgroup may have 512 MiB"),
            ),
            (ProfileChoice::Auto, None, ("standard", "nothing tells how much memory there is")),
        ] {
            let SettledProfile { profile, why } = SettledProfile::with(choice, memory);
            assert_eq!((profile.name(), &*why), expected);
        }
    }
}
