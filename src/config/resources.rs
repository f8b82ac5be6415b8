//! How much memory a node's programs are set up for (`--resource-profile`). What each profile changes is in `docs/resources.md`.

use std::str::FromStr;

/// Machines with less memory than this get [`Profile::Small`] by themselves. It lies between 1 GiB, of which a kernel, its reserves and a
/// graphics processor leave some 900 MiB, and 2 GiB.
const SMALL_BELOW: u64 = 1536 << 20;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileChoice {
    /// The memory decides.
    Auto,
    /// This one, whatever the memory.
    Fixed(Profile),
}

/// What programs are set up for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// For machines of 512 MiB to 1 GiB. Programs take more processor time for less memory.
    Small,
    /// Upstream's settings, but for what costs next to nothing.
    #[default]
    Standard,
}

impl ProfileChoice {
    /// The profile for a machine with `memory` bytes; `None` where nobody can tell how many there are.
    pub fn decide(self, memory: Option<u64>) -> Profile {
        match (self, memory) {
            (Self::Fixed(profile), _) => profile,
            (Self::Auto, Some(memory)) if memory < SMALL_BELOW => Profile::Small,
            (Self::Auto, _) => Profile::Standard,
        }
    }
}

impl Profile {
    const ALL: [Self; 2] = [Self::Small, Self::Standard];

    /// As `--resource-profile` takes it and `k3s status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Standard => "standard",
        }
    }
}

impl FromStr for ProfileChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fixed = || Profile::ALL.into_iter().find(|profile| profile.name() == text).map(Self::Fixed);
        let found = if text == "auto" { Some(Self::Auto) } else { fixed() };
        found.ok_or_else(|| format!("`{text}` is not a profile; use auto, small or standard"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_decides_unless_the_user_does() {
        for (choice, memory, expected) in [
            ("auto", Some(GIB / 2), Profile::Small),
            ("auto", Some(GIB), Profile::Small),
            ("auto", Some(2 * GIB - (150 << 20)), Profile::Standard),
            ("auto", None, Profile::Standard),
            ("small", Some(64 * GIB), Profile::Small),
            ("standard", Some(GIB / 2), Profile::Standard),
        ] {
            let choice: ProfileChoice = choice.parse().unwrap();
            assert_eq!(choice.decide(memory), expected, "{choice:?} {memory:?}");
        }
    }

    #[test]
    fn what_is_no_profile_is_told() {
        let error = "tiny".parse::<ProfileChoice>().unwrap_err();
        assert_eq!(error, "`tiny` is not a profile; use auto, small or standard");
    }
}
