//! How a verb shows what it found: as text for a person, or as JSON for a program.

use std::{
    fmt::Display,
    io::{self, Write},
};

use clap::ValueEnum;
use serde::Serialize;

use super::{
    Failure,
    failure::{IO_ERROR, SOFTWARE},
};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// Prints JSON for people too; `what` names it if that fails.
pub(super) fn print_json(what: &str, value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(SOFTWARE, format!("{what} cannot be written: {error}")))?;
    show(format_args!("{json}\n"))
}

/// Prints what was asked for. Whoever reads it may have read enough: that is no failure.
pub(super) fn show(text: impl Display) -> Result<(), Failure> {
    match write!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(IO_ERROR, format!("the output cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints one line of what was asked for.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    show(format_args!("{text}\n"))
}

/// Says something beside what was asked for, on standard error; there is nobody to tell that it cannot be said.
pub(crate) fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Lines of cells, each column as wide as its widest.
pub(super) fn table<const COLUMNS: usize>(rows: impl IntoIterator<Item = [String; COLUMNS]>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [_; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$} ")).collect();
        cells.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
