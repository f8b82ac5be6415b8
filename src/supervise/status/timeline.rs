//! What the start was spent on, from the moments that [`Status`] has: who waited for whom, and who took how long.

use std::fmt;

use super::{Moment, Status};
use crate::State;

/// How wide the picture is.
const COLUMNS: u64 = 50;

/// A start as a picture for people: a line each for programs and gates, in the order in which they began.
#[derive(Debug)]
pub struct Timeline {
    spans: Vec<Span>,
}

/// What one of them did until it was ready for the first time, in milliseconds since the supervisor started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    name: String,
    /// When its process began; when it opened, for a gate.
    began: u64,
    /// When it was ready; `None` if it is not yet.
    ready: Option<u64>,
    /// How often it ended before that.
    failures: usize,
}

impl Status {
    /// What the start was spent on.
    pub fn into_timeline(self) -> Timeline {
        let mut spans = Vec::<Span>::new();
        for Moment { at_ms, name, what } in self.timeline {
            let known = spans.iter_mut().find(|span| span.name == name);
            let is = |state: State| what == state.as_str();
            match known {
                None if is(State::Waiting) => {}
                None => {
                    let ready = (!is(State::Starting)).then_some(at_ms);
                    spans.push(Span { name, began: at_ms, ready, failures: 0 });
                }
                Some(span) if is(State::Ready) => span.ready = span.ready.or(Some(at_ms)),
                Some(span) if is(State::Backoff) => span.failures += 1,
                Some(_) => {}
            }
        }
        spans.sort_by_key(|span| span.began);
        Timeline { spans }
    }
}

impl fmt::Display for Timeline {
    /// Seconds since the supervisor started: when each began, when it was ready, and what was between; the bar shows that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.spans.iter().map(|span| span.ready.unwrap_or(span.began)).max().unwrap_or_default().max(1);
        let width = self.spans.iter().map(|span| span.name.len()).max().unwrap_or_default();
        writeln!(f, "{:width$}  {:>7} {:>7} {:>7}", "", "BEGAN", "READY", "TOOK")?;
        for Span { name, began, ready, failures } in &self.spans {
            let ready_at = ready.map_or_else(|| "-".to_owned(), seconds);
            let took = ready.map_or_else(|| "-".to_owned(), |ready| seconds(ready - began));
            let column = |at: u64| usize::try_from(at * COLUMNS / end).unwrap_or_default();
            let (from, to) = (column(*began), column(ready.unwrap_or(end)));
            let bar = format!("{}{}", " ".repeat(from), "=".repeat(to.saturating_sub(from).max(1)));
            let failures = if *failures > 0 { format!("  ended before that: {failures}") } else { String::new() };
            writeln!(f, "{name:width$}  {:>7} {ready_at:>7} {took:>7}  {bar}{failures}", seconds(*began))?;
        }
        Ok(())
    }
}

/// With two digits, as the bars are no finer.
fn seconds(ms: u64) -> String {
    format!("{}.{:02}", ms / 1000, ms % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(at_ms: u64, name: &str, what: &str) -> Moment {
        Moment { at_ms, name: name.into(), what: what.into() }
    }

    #[test]
    fn who_waited_and_who_took_long_is_seen() {
        let timeline = vec![
            moment(30, "datastore", "open"),
            moment(40, "kube-apiserver", "starting"),
            moment(40, "containerd", "starting"),
            moment(540, "containerd", "backoff"),
            moment(1040, "containerd", "starting"),
            moment(1540, "containerd", "ready"),
            moment(2040, "kube-apiserver", "ready"),
            moment(2050, "kube-scheduler", "starting"),
        ];
        let text = Status { timeline, ..Status::example() }.into_timeline().to_string();
        let expected = "
                  BEGAN   READY    TOOK
datastore          0.03    0.03    0.00  =
kube-apiserver     0.04    2.04    2.00  =================================================
containerd         0.04    1.54    1.50  =====================================  ended before that: 1
kube-scheduler     2.05       -       -                                                    =
";
        assert_eq!(format!("\n{text}"), expected);
    }
}
