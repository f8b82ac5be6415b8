//! How a verb shows what it found: as text for a person, or as JSON for a program.

use clap::ValueEnum;
use serde::Serialize;

use super::{Failure, failure::SOFTWARE};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// Prints JSON for people too; `what` names it if that fails.
pub(super) fn print_json(what: &str, value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(SOFTWARE, format!("{what} cannot be written: {error}")))?;
    println!("{json}");
    Ok(())
}
