//! Tables as documents hold them.

use std::fmt;

/// A table with figures in all columns but the first.
#[derive(Debug)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(title: &str, columns: impl IntoIterator<Item = String>) -> Self {
        Self { head: [title.to_owned()].into_iter().chain(columns).collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, title: &str, cells: impl IntoIterator<Item = String>) {
        self.rows.push([title.to_owned()].into_iter().chain(cells).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.head.join(" | "))?;
        writeln!(f, "|---|{}", "---:|".repeat(self.head.len() - 1))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// A figure with about three digits; groups of thousands are set apart.
pub(super) fn figure(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => {
            let digits = format!("{value:.0}");
            let group = |(index, digit): (usize, char)| {
                let apart = index > 0 && (digits.len() - index) % 3 == 0;
                apart.then_some(' ').into_iter().chain([digit])
            };
            digits.chars().enumerate().flat_map(group).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("what", ["k3s".into(), "etcd".into()]);
        table.row("get", ["1".into(), "2".into()]);
        assert_eq!(table.to_string(), "| what | k3s | etcd |\n|---|---:|---:|\n| get | 1 | 2 |\n");
    }

    #[test]
    fn figures_have_as_many_digits_as_they_are_worth() {
        let figures = [0.1234, 12.34, 123.4, 1234.0, 1_234_567.0, f64::NAN].map(figure);
        assert_eq!(figures, ["0.12", "12.3", "123", "1 234", "1 234 567", "–"]);
    }
}
