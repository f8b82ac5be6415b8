//! [`Status`] for people.

use std::fmt;

use super::{Component, Status};
use crate::State;

const COLUMNS: usize = 6;
const HEAD: [&str; COLUMNS] = ["COMPONENT", "STATE", "FOR", "PID", "RESTARTS", "MEMORY"];

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline)?;
        for warning in &self.warnings {
            writeln!(f, "Warning: {warning}")?;
        }
        let rows: Vec<_> = self.components.iter().map(|component| (row(component), remark(component))).collect();
        let width =
            |column: usize| rows.iter().map(|(row, _)| row[column].chars().count()).chain([HEAD[column].len()]).max();
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or_default());
        writeln!(f)?;
        write_row(f, &HEAD.map(str::to_owned), widths, "REMARK")?;
        for (row, remark) in &rows {
            write_row(f, row, widths, remark)?;
        }
        let closed: Vec<_> = self.gates.iter().filter(|gate| !gate.open).collect();
        if !closed.is_empty() {
            writeln!(f)?;
        }
        for gate in closed {
            writeln!(
                f,
                "Not yet: {}{}",
                gate.name,
                gate.waiting_for.as_ref().map(|what| format!(" ({what})")).unwrap_or_default()
            )?;
        }
        Ok(())
    }
}

fn row(component: &Component) -> [String; COLUMNS] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        component.name.clone(),
        component.state.as_str().to_owned(),
        age(component.in_state_ms),
        or_dash(component.pid.map(|pid| pid.to_string())),
        component.restarts.to_string(),
        or_dash(component.memory.map(|bytes| format!("{} MiB", bytes.div_ceil(1 << 20)))),
    ]
}

fn remark(component: &Component) -> String {
    match (&component.waiting_for, &component.last_exit) {
        (Some(what), _) if !component.state.is_running() && component.last_exit.is_none() => format!("after {what}"),
        (Some(what), Some(exit)) if component.state == State::Starting => format!("{what}; last time {exit}"),
        (Some(what), _) => what.clone(),
        (None, Some(exit)) if component.state.is_ready() => format!("last time {exit}"),
        (None, Some(exit)) => exit.to_string(),
        (None, None) => String::new(),
    }
}

fn write_row(
    f: &mut fmt::Formatter<'_>,
    row: &[String; COLUMNS],
    widths: [usize; COLUMNS],
    remark: &str,
) -> fmt::Result {
    let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    writeln!(f, "{}", format!("{}  {remark}", cells.join("  ")).trim_end())
}

/// Two units at most, as kubectl shows ages.
fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m{}s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_comes_first_and_columns_line_up() {
        let expected = "\
Degraded: kube-scheduler (exited with 1: E1121 no such file).
Warning: The FORWARD chain's policy is DROP: pods cannot reach other nodes.

COMPONENT       STATE    FOR     PID  RESTARTS  MEMORY   REMARK
kube-apiserver  ready    12m30s  101  1         219 MiB  last time ended by SIGKILL
kube-scheduler  backoff  0s      -    0         -        exited with 1: E1121 no such file
kubelet         waiting  12m34s  -    0         -        after images

Not yet: images (importing coredns.tar)
";
        assert_eq!(Status::example().to_string(), expected);
    }

    #[test]
    fn ages_stay_short() {
        assert_eq!(
            [0, 119, 3600, 90_000, 400_000].map(|seconds| age(seconds * 1000)),
            ["0s", "119s", "60m0s", "25h0m", "4d15h"]
        );
    }
}
