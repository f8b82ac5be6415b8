//! Figures of both sides over all rounds, and the table that they end in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is measured, with its unit. In the table's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quantity {
    EmptyStart,
    EmptyStartCpu,
    Restart,
    RestartCpu,
    Memory,
    Anonymous,
    Cpu,
    Written,
}

impl Quantity {
    fn title(self) -> &'static str {
        match self {
            Self::EmptyStart => "Start on an empty disk, s",
            Self::EmptyStartCpu => "CPU time of it, ms",
            Self::Restart => "Start on existing data, s",
            Self::RestartCpu => "CPU time of it, ms",
            Self::Memory => "Idle: memory (PSS), MiB",
            Self::Anonymous => "Idle: anonymous memory, MiB",
            Self::Cpu => "Idle: CPU time in 30 s, ms",
            Self::Written => "Idle: written to disk in 30 s, kB",
        }
    }
}

/// The columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    K3s,
    Script,
}

/// Every figure that was taken. [`Display`](fmt::Display) writes the medians and the ratio of the sides.
#[derive(Debug, Default)]
pub(super) struct Figures {
    taken: BTreeMap<(Quantity, String, Side), Vec<f64>>,
}

impl Figures {
    pub(super) fn add(&mut self, side: Side, quantity: Quantity, name: &str, figure: f64) {
        self.taken.entry((quantity, name.to_owned(), side)).or_default().push(figure);
    }

    pub(super) fn median(&self, quantity: Quantity, name: &str, side: Side) -> Option<f64> {
        median(self.taken.get(&(quantity, name.to_owned(), side))?.iter().copied())
    }
}

/// The middle one; `None` of none.
pub(super) fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let lower = if figures.len() % 2 == 0 { middle.checked_sub(1)? } else { middle };
    Some(f64::midpoint(figures[lower], figures[middle]))
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"));
        let rows: BTreeSet<_> = self.taken.keys().map(|(quantity, name, _)| (*quantity, name.as_str())).collect();
        let mut section = None;
        for (quantity, name) in rows {
            if section.replace(quantity) != Some(quantity) {
                writeln!(f, "{:<36}{:>10}{:>10}{:>8}", quantity.title(), "k3s", "script", "ratio")?;
            }
            let [k3s, script] = [Side::K3s, Side::Script].map(|side| self.median(quantity, name, side));
            let ratio = k3s.zip(script).filter(|(_, script)| *script > 0.0).map(|(k3s, script)| k3s / script);
            writeln!(f, "  {name:<34}{:>10}{:>10}{:>8}", cell(k3s), cell(script), cell(ratio))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_ratios_and_says_what_one_side_lacks() {
        let mut figures = Figures::default();
        for seconds in [9.0, 4.0, 5.0] {
            figures.add(Side::K3s, Quantity::EmptyStart, "node Ready", seconds);
        }
        for seconds in [4.0, 6.0] {
            figures.add(Side::Script, Quantity::EmptyStart, "node Ready", seconds);
        }
        figures.add(Side::Script, Quantity::Memory, "etcd", 40.0);
        let expected = "\
Start on an empty disk, s                  k3s    script   ratio
  node Ready                              5.00      5.00    1.00
Idle: memory (PSS), MiB                    k3s    script   ratio
  etcd                                       -     40.00       -
";
        assert_eq!(figures.to_string(), expected);
    }
}
