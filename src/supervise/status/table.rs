//! [`Status`] for people.

use std::fmt;

use super::{Component, Decision, Status};
use crate::{ObjectStatus, State, TaskState, TaskStatus};

const COMPONENTS: [&str; 6] = ["COMPONENT", "STATE", "FOR", "PID", "RESTARTS", "MEMORY"];
const TASKS: [&str; 4] = ["TASK", "STATE", "FOR", "RESTARTS"];
const OBJECTS: [&str; 3] = ["OBJECT", "TASK", "STATE"];
const PROBLEMS: [&str; 2] = ["PROBLEM", "TASK"];

/// [`Status`] for people who want to read all of what is wrong.
#[derive(Debug)]
pub struct WithProblems(Status);

impl Status {
    /// With every problem in a table of its own.
    pub fn with_problems(self) -> WithProblems {
        WithProblems(self)
    }
}

impl fmt::Display for WithProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let of_task = |task: &TaskStatus| {
            let row = |problem: &crate::Problem| ([problem.object.clone(), task.name.clone()], problem.why.clone());
            task.problems.iter().map(row).collect::<Vec<_>>()
        };
        let problems: Vec<_> = self.0.tasks.iter().flat_map(of_task).collect();
        if !problems.is_empty() {
            write_table(f, PROBLEMS, problems)?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline)?;
        for warning in &self.warnings {
            writeln!(f, "Warning: {warning}")?;
        }
        for Decision { name, value, why } in &self.decisions {
            writeln!(f, "{name}: {value} ({why})")?;
        }
        let components = self.components.iter().map(|component| (row(component), remark(component)));
        write_table(f, COMPONENTS, components.collect())?;
        if !self.tasks.is_empty() {
            write_table(f, TASKS, self.tasks.iter().map(|task| (task_row(task), task_remark(task))).collect())?;
        }
        let objects = self.tasks.iter().flat_map(|task| task.objects.iter().map(|object| object_row(task, object)));
        let objects: Vec<_> = objects.collect();
        if !objects.is_empty() {
            write_table(f, OBJECTS, objects)?;
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

fn row(component: &Component) -> [String; COMPONENTS.len()] {
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

fn task_row(task: &TaskStatus) -> [String; TASKS.len()] {
    [task.name.clone(), task.state.as_str().to_owned(), age(task.in_state_ms), task.restarts.to_string()]
}

fn object_row(task: &TaskStatus, object: &ObjectStatus) -> ([String; OBJECTS.len()], String) {
    let row = [object.object.clone(), task.name.clone(), object.state.clone()];
    (row, object.why.clone().unwrap_or_default())
}

fn task_remark(task: &TaskStatus) -> String {
    match (&task.last_failure, &task.line) {
        (Some(failure), _) if task.state == TaskState::Backoff => failure.why.clone(),
        (_, Some(line)) => line.clone(),
        (Some(failure), None) => format!("last time {}", failure.why),
        (None, None) => String::new(),
    }
}

/// A line of heads and one a row, after an empty line; each column as wide as its widest cell.
fn write_table<const COLUMNS: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [&str; COLUMNS],
    rows: Vec<([String; COLUMNS], String)>,
) -> fmt::Result {
    let width =
        |column: usize| rows.iter().map(|(row, _)| row[column].chars().count()).chain([head[column].len()]).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or_default());
    writeln!(f)?;
    let head = (head.map(str::to_owned), "REMARK".to_owned());
    for (row, remark) in [head].iter().chain(&rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(f, "{}", format!("{}  {remark}", cells.join("  ")).trim_end())?;
    }
    Ok(())
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
resource-profile: small (the machine has 512 MiB)

COMPONENT       STATE    FOR     PID  RESTARTS  MEMORY   REMARK
kube-apiserver  ready    12m30s  101  1         219 MiB  last time ended by SIGKILL
kube-scheduler  backoff  0s      -    0         -        exited with 1: E1121 no such file
kubelet         waiting  12m34s  -    0         -        after images

TASK        STATE    FOR     RESTARTS  REMARK
addons      running  12m30s  0         1 of 2 manifests is applied
node-hosts  backoff  1s      3         it panicked: index out of bounds

OBJECT        TASK    STATE    REMARK
coredns.yaml  addons  applied
mine.yaml     addons  waits    it is not YAML

Not yet: images (importing coredns.tar)
";
        assert_eq!(Status::example().to_string(), expected);
    }

    #[test]
    fn every_problem_has_a_line_where_somebody_asks_for_all() {
        let mut status = Status::example();
        status.tasks[0].problems = [("mine.yaml", "it is not YAML"), ("yours.yaml", "it cannot be read")]
            .map(|(object, why)| crate::Problem { object: object.into(), why: why.into() })
            .into();
        let text = status.with_problems().to_string();
        let table =
            "\nPROBLEM     TASK    REMARK\nmine.yaml   addons  it is not YAML\nyours.yaml  addons  it cannot be read\n";
        assert!(text.starts_with("Degraded") && text.ends_with(table), "{text}");
    }

    #[test]
    fn ages_stay_short() {
        assert_eq!(
            [0, 119, 3600, 90_000, 400_000].map(|seconds| age(seconds * 1000)),
            ["0s", "119s", "60m0s", "25h0m", "4d15h"]
        );
    }
}
