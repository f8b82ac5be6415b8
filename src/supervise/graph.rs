//! Who is after whom.

use std::collections::{BTreeMap, BTreeSet};

use crate::program::Program;

/// Why programs cannot be started together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// Names are file names: of cgroup leaves and sockets.
    #[error("{name:?} cannot name a program or gate: it has to be a file name other than \"supervisor\"")]
    Name {
        /// The name.
        name: String,
    },
    /// Two things would answer to one name.
    #[error("{name} is there already: each program and gate needs a name of its own")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Nothing by this name was declared before or together with the program.
    #[error("{program} is after {name}, which is neither a program nor a gate")]
    Unknown {
        /// The program that refers to it.
        program: String,
        /// What it refers to.
        name: String,
    },
    /// Programs that would wait for each other for ever.
    #[error("programs wait for each other: {}", path.join(" after "))]
    Cycle {
        /// The way around; the first is the last.
        path: Vec<String>,
    },
    /// The supervisor stops: nothing starts any more.
    #[error("the supervisor is stopping: nothing is started any more")]
    Stopping,
}

/// Programs and gates by name.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    gates: BTreeSet<String>,
    after: BTreeMap<String, Vec<String>>,
}

impl Graph {
    /// Adds a gate; one that is there already stays.
    pub(crate) fn add_gate(&mut self, name: &str) -> Result<(), GraphError> {
        check_name(name)?;
        if self.after.contains_key(name) {
            return Err(GraphError::Duplicate { name: name.to_owned() });
        }
        self.gates.insert(name.to_owned());
        Ok(())
    }

    /// Adds all of `programs` or, on an error, none.
    pub(crate) fn add(&mut self, programs: &[Program]) -> Result<(), GraphError> {
        let mut after = self.after.clone();
        for program in programs {
            check_name(&program.name)?;
            if self.gates.contains(&program.name) || after.insert(program.name.clone(), program.after.clone()).is_some()
            {
                return Err(GraphError::Duplicate { name: program.name.clone() });
            }
        }
        for program in programs {
            if let Some(name) =
                program.after.iter().find(|name| !self.gates.contains(*name) && !after.contains_key(*name))
            {
                return Err(GraphError::Unknown { program: program.name.clone(), name: name.clone() });
            }
        }
        for program in programs {
            if let Some(path) = cycle_through(&program.name, &after) {
                return Err(GraphError::Cycle { path });
            }
        }
        self.after = after;
        Ok(())
    }

    /// The programs that may be asked to stop: everything that is after them has stopped.
    pub(crate) fn free_to_stop(&self, is_stopped: impl Fn(&str) -> bool) -> Vec<&str> {
        let needed: BTreeSet<&str> = self
            .after
            .iter()
            .filter(|(name, _)| !is_stopped(name))
            .flat_map(|(_, after)| after.iter().map(String::as_str))
            .collect();
        self.after.keys().map(String::as_str).filter(|name| !needed.contains(name)).collect()
    }
}

fn check_name(name: &str) -> Result<(), GraphError> {
    let is_file_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0', '\n']);
    // The leaf that the supervisor itself lives in.
    if is_file_name && name != "supervisor" { Ok(()) } else { Err(GraphError::Name { name: name.to_owned() }) }
}

/// A way from `start` back to itself.
fn cycle_through(start: &str, after: &BTreeMap<String, Vec<String>>) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut paths = vec![vec![start.to_owned()]];
    while let Some(path) = paths.pop() {
        let last = path.last().map(String::as_str).unwrap_or_default();
        for next in after.get(last).into_iter().flatten() {
            let longer = || path.iter().chain([next]).cloned().collect::<Vec<_>>();
            if next == start {
                return Some(longer());
            }
            if seen.insert(next) {
                paths.push(longer());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    fn program(name: &str, after: &[&str]) -> Program {
        Program { after: after.iter().map(ToString::to_string).collect(), ..Program::example(name, "true") }
    }

    fn control_plane() -> Graph {
        let mut graph = Graph::default();
        graph.add_gate("datastore").unwrap();
        graph
            .add(&[
                program("kube-scheduler", &["kube-apiserver"]),
                program("kube-apiserver", &["datastore"]),
                program("kubelet", &["containerd", "kube-apiserver"]),
                program("containerd", &[]),
            ])
            .unwrap();
        graph
    }

    #[test]
    fn a_program_stops_before_what_it_is_after() {
        let graph = control_plane();
        assert_eq!(graph.free_to_stop(|_| false), ["kube-scheduler", "kubelet"]);
        assert_eq!(graph.free_to_stop(|name| name == "kubelet"), ["containerd", "kube-scheduler", "kubelet"]);
        assert_eq!(graph.free_to_stop(|_| true).len(), 4);
    }

    #[test]
    fn a_later_program_may_be_after_an_earlier_one() {
        let mut graph = control_plane();
        graph.add(&[program("kube-proxy", &["kubelet"])]).unwrap();
        assert_eq!(graph.free_to_stop(|_| false), ["kube-proxy", "kube-scheduler"]);
    }

    #[test]
    fn what_makes_no_order_is_refused_and_changes_nothing() {
        let mut graph = control_plane();
        let refused = [
            (
                vec![program("a", &["b"]), program("b", &["c"]), program("c", &["a"])],
                "programs wait for each other: a after b after c after a",
            ),
            (vec![program("a", &["a"])], "programs wait for each other: a after a"),
            (vec![program("a", &["nothing"])], "a is after nothing, which is neither a program nor a gate"),
            (vec![program("kubelet", &[])], "kubelet is there already: each program and gate needs a name of its own"),
            (
                vec![program("datastore", &[])],
                "datastore is there already: each program and gate needs a name of its own",
            ),
            (
                vec![program("../x", &[])],
                "\"../x\" cannot name a program or gate: it has to be a file name other than \"supervisor\"",
            ),
        ];
        for (programs, sentence) in refused {
            assert_eq!(graph.add(&programs).unwrap_err().to_string(), sentence);
        }
        assert_eq!(graph.free_to_stop(|_| false), ["kube-scheduler", "kubelet"]);
        assert_eq!(graph.add_gate("kubelet"), Err(GraphError::Duplicate { name: "kubelet".into() }));
    }
}
