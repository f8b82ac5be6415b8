//! Other certificate authorities.

use crate::paths::AUTHORITIES;

/// How those that are brought to [`AUTHORITIES`] are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement {
    /// The ones in use have to vouch for them.
    Vouched,
    /// With what a cluster can live with when whoever trusts the old ones is set up again.
    Forced,
}

impl Replacement {
    /// What is asked for.
    pub fn target(self) -> String {
        format!("{AUTHORITIES}?force={}", self == Self::Forced)
    }

    /// As a query says, whose booleans are Go's.
    pub fn of_query(query: Option<&str>) -> Self {
        let force = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("force="));
        let is_forced = force.is_some_and(|value| ["1", "t", "T", "true", "TRUE", "True"].contains(&value));
        if is_forced { Self::Forced } else { Self::Vouched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_understood() {
        for replacement in [Replacement::Vouched, Replacement::Forced] {
            let target = replacement.target();
            assert_eq!(Replacement::of_query(target.split_once('?').map(|(_, query)| query)), replacement);
        }
        assert_eq!(Replacement::of_query(None), Replacement::Vouched);
        assert_eq!(Replacement::of_query(Some("a=b&force=1")), Replacement::Forced);
    }
}
