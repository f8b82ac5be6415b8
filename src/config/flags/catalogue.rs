//! The table of flags as data, for tools that check configurations before a machine has them.

use super::{Flag, FlagSupport, Kind, Refusal, Role};

/// One flag, as the NixOS module knows it.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueEntry {
    /// The long name, which is the key in `config.yaml` too.
    pub name: &'static str,
    /// `switch`, `text` or `list`.
    pub kind: &'static str,
    /// The line of the help.
    pub help: &'static str,
    /// Whether the value may hold a secret.
    pub secret: bool,
    /// The value if none is given.
    pub default: Option<&'static str>,
    /// The environment variable that stands for the flag.
    pub variable: Option<&'static str>,
    /// The values that are refused; none means all but the default, if there is a refusal.
    pub refused_values: &'static [&'static str],
    /// Why they are.
    pub refusal: Option<Refusal>,
}

/// Every flag of `role`, in the order of the help.
pub fn catalogue(role: Role) -> impl Iterator<Item = CatalogueEntry> {
    Flag::of(role).map(|flag| {
        let (refused_values, refusal) = match flag.support {
            FlagSupport::Unserved(refusal) => (&[][..], Some(refusal)),
            FlagSupport::UnservedValues(values, refusal) => (values, Some(refusal)),
            FlagSupport::Served
            | FlagSupport::Accepted(_)
            | FlagSupport::Renamed(_)
            | FlagSupport::Synonym(_)
            | FlagSupport::Deprecated(_) => (&[][..], None),
        };
        let kind = match flag.kind {
            Kind::Switch => "switch",
            Kind::Text => "text",
            Kind::List => "list",
        };
        let Flag { name, help, secret, default, variable, .. } = *flag;
        CatalogueEntry { name, kind, help, secret, default, variable, refused_values, refusal }
    })
}
