//! Tests written in Go: runs them, shows what failed, and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::counts::Counts;
use crate::process::stdout;

/// A test that takes longer has hung.
const TIMEOUT: &str = "-test.timeout=10m";

/// Runs the tests of a compiled test binary that match the regular expression, without the one named `except`. A test
/// that it has and that does not finish has failed.
pub(crate) fn run_binary(
    binary: &Path,
    tests: &str,
    except: &str,
    configure: impl Fn(&mut Command) -> &mut Command,
) -> Result<Counts> {
    let listed = stdout(Command::new(binary).args(["-test.list", tests]))?;
    let listed = String::from_utf8(listed).with_context(|| format!("{} lists no tests", binary.display()))?;
    let names = listed.lines().filter(|name| name.starts_with("Test") && *name != except).map(str::to_owned).collect();
    let mut command = Command::new("go");
    command.args(["tool", "test2json", "-t"]).arg(binary).args(["-test.v=test2json", TIMEOUT, "-test.run", tests]);
    command.arg("-test.skip").arg(format!("^{except}$"));
    run(configure(&mut command), Run { unfinished: names, ..Run::default() })
}

/// Runs `go test` with `-json` among its arguments.
pub(crate) fn run_packages(go_test: &mut Command) -> Result<Counts> {
    run(go_test, Run::default())
}

fn run(command: &mut Command, mut run: Run) -> Result<Counts> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot run go: install it, or put it on PATH")?;
    let report = child.stdout.take().expect("it was piped");
    for line in BufReader::new(report).lines() {
        let line = line.context("Cannot read the report of Go's tests")?;
        let event =
            serde_json::from_str(&line).with_context(|| format!("Go's tests report what is no event: {line}"))?;
        if let Some(failure) = run.observe(event) {
            eprint!("{failure}");
        }
    }
    let status = child.wait()?;
    let (counts, rest) = run.finish();
    if !status.success() {
        eprint!("{rest}");
        ensure!(counts.failed > 0, "Go's tests failed outside of any test: {status}");
    }
    Ok(counts)
}

/// A line of `go test -json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    action: String,
    /// `Test/subtest`; none if it is about a package.
    test: Option<String>,
    output: Option<String>,
}

/// What is known of a run. Subtests belong to the test that they are in.
#[derive(Debug, Default)]
struct Run {
    unfinished: BTreeSet<String>,
    /// What tests printed that are not over, and under no name what belongs to none.
    output: BTreeMap<String, String>,
    counts: Counts,
}

impl Run {
    /// Takes the next event. Returns the output of the test that failed by it.
    fn observe(&mut self, event: Event) -> Option<String> {
        let name = event.test.unwrap_or_default();
        let (test, subtest) = name.split_once('/').map_or((name.as_str(), None), |(test, rest)| (test, Some(rest)));
        if let Some(output) = event.output {
            self.output.entry(test.to_owned()).or_default().push_str(&output);
        }
        if test.is_empty() || subtest.is_some() {
            return None;
        }
        match event.action.as_str() {
            "run" => drop(self.unfinished.insert(test.to_owned())),
            "pass" => self.end(test).passed += 1,
            "skip" => self.end(test).skipped += 1,
            "fail" => {
                let output = self.output.remove(test);
                self.end(test).failed += 1;
                return output;
            }
            _ => {}
        }
        None
    }

    fn end(&mut self, test: &str) -> &mut Counts {
        self.unfinished.remove(test);
        self.output.remove(test);
        &mut self.counts
    }

    /// The counts, and what was printed beside tests that are over.
    fn finish(mut self) -> (Counts, String) {
        let mut rest: String = self.output.into_values().collect();
        for test in &self.unfinished {
            rest.push_str(&format!("{test} did not finish.\n"));
        }
        self.counts.failed += self.unfinished.len() as u64;
        (self.counts, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"
        {"Action":"start"}
        {"Action":"run","Test":"TestA"}
        {"Action":"output","Test":"TestA","Output":"fine\n"}
        {"Action":"run","Test":"TestA/one"}
        {"Action":"fail","Test":"TestA/one","Elapsed":0.1}
        {"Action":"pass","Test":"TestA","Elapsed":0.2}
        {"Action":"run","Test":"TestB"}
        {"Action":"output","Test":"TestB/two","Output":"not fine\n"}
        {"Action":"fail","Test":"TestB"}
        {"Action":"skip","Test":"TestC"}
        {"Action":"run","Test":"TestD"}
        {"Action":"output","Test":"TestD","Output":"panic: oh\n"}
        {"Action":"fail"}
    "#;

    #[test]
    fn top_level_tests_are_counted_and_those_that_never_ended_have_failed() {
        let mut run = Run { unfinished: ["TestA", "TestE"].map(str::to_owned).into(), ..Run::default() };
        let lines = REPORT.lines().map(str::trim).filter(|line| !line.is_empty());
        let shown: Vec<_> = lines.filter_map(|line| run.observe(serde_json::from_str(line).unwrap())).collect();
        assert_eq!(shown, ["not fine\n"]);
        let (counts, rest) = run.finish();
        assert_eq!(counts, Counts { passed: 1, failed: 3, skipped: 1 });
        assert_eq!(rest, "panic: oh\nTestD did not finish.\nTestE did not finish.\n");
    }
}
