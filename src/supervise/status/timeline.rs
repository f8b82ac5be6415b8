//! What the start was spent on, from the moments that [`Status`] has: who waited for whom, and who took how long.

use std::fmt;

use super::{Moment, OPEN, Status};
use crate::State;

/// How wide the picture is.
const COLUMNS: u64 = 40;

/// A start as a picture for people: a line each for programs and gates, in the order in which they began.
#[derive(Debug)]
pub struct Timeline {
    spans: Vec<Span>,
}

/// What one of them did until it was ready for the first time, in milliseconds since the supervisor started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    name: String,
    /// Of what it had to wait for, that which came last.
    after: Option<String>,
    /// When its process began, or the work that opens a gate.
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
            let is = |state: State| what == state.as_str();
            let Some(span) = spans.iter_mut().find(|span| span.name == name) else {
                if !is(State::Waiting) {
                    spans.push(Span { name, after: None, began: at_ms, ready: None, failures: 0 });
                }
                continue;
            };
            match span.ready {
                None if is(State::Ready) || what == OPEN => span.ready = Some(at_ms),
                None if is(State::Backoff) => span.failures += 1,
                // A program's first process counts, and for a gate its own work.
                None if is(State::Starting) && span.failures == 0 => span.began = at_ms,
                _ => {}
            }
        }
        let ready_at = |name: &String| spans.iter().find(|span| span.name == *name)?.ready;
        let after: Vec<_> = spans
            .iter()
            .map(|span| {
                let component = self.components.iter().find(|component| component.name == span.name)?;
                component.after.iter().max_by_key(|name| ready_at(name)).cloned()
            })
            .collect();
        spans.iter_mut().zip(after).for_each(|(span, after)| span.after = after);
        spans.sort_by_key(|span| span.began);
        Timeline { spans }
    }
}

impl fmt::Display for Timeline {
    /// Seconds since the supervisor started: when each began, when it was ready, and what was between; the bar shows that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.spans.iter().map(|span| span.ready.unwrap_or(span.began)).max().unwrap_or_default().max(1);
        let longest = |names: &mut dyn Iterator<Item = &String>| names.map(String::len).max().unwrap_or_default();
        let width = longest(&mut self.spans.iter().map(|span| &span.name));
        let after_width = longest(&mut self.spans.iter().filter_map(|span| span.after.as_ref())).max("AFTER".len());
        writeln!(f, "{:width$}  {:after_width$}  {:>6} {:>6} {:>6}", "", "AFTER", "BEGAN", "READY", "TOOK")?;
        for Span { name, after, began, ready, failures } in &self.spans {
            let after = after.as_deref().unwrap_or_default();
            let ready_at = ready.map_or_else(|| "-".to_owned(), seconds);
            let took = ready.map_or_else(|| "-".to_owned(), |ready| seconds(ready - began));
            let column = |at: u64| usize::try_from(at * COLUMNS / end).unwrap_or_default();
            let (from, to) = (column(*began), column(ready.unwrap_or(end)));
            let bar = format!("{}{}", " ".repeat(from), "=".repeat(to.saturating_sub(from).max(1)));
            let failures = if *failures > 0 { format!("  ended before that: {failures}") } else { String::new() };
            let began = seconds(*began);
            writeln!(f, "{name:width$}  {after:after_width$}  {began:>6} {ready_at:>6} {took:>6}  {bar}{failures}")?;
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
    use crate::status::Component;

    fn moment(at_ms: u64, name: &str, what: &str) -> Moment {
        Moment { at_ms, name: name.into(), what: what.into() }
    }

    #[test]
    fn who_waited_and_who_took_long_is_seen() {
        let timeline = vec![
            moment(5, "datastore", "closed"),
            moment(30, "datastore", "open"),
            moment(40, "kube-apiserver", "starting"),
            moment(40, "containerd", "starting"),
            moment(45, "images", "closed"),
            moment(540, "containerd", "backoff"),
            moment(1040, "containerd", "starting"),
            moment(1540, "containerd", "ready"),
            moment(1540, "images", "starting"),
            moment(2040, "kube-apiserver", "ready"),
            moment(2050, "kube-scheduler", "starting"),
            moment(2100, "images", "open"),
            moment(2100, "kubelet", "starting"),
        ];
        let component = |name: &str, after: &[&str]| Component {
            name: name.into(),
            after: after.iter().map(|&name| name.to_owned()).collect(),
            ..Status::example().components.remove(0)
        };
        let components = vec![
            component("kube-apiserver", &["datastore"]),
            component("containerd", &[]),
            component("kube-scheduler", &["kube-apiserver"]),
            component("kubelet", &["images", "containerd"]),
        ];
        let text = Status { timeline, components, ..Status::example() }.into_timeline().to_string();
        let expected = "
                AFTER            BEGAN  READY   TOOK
datastore                         0.00   0.03   0.02  =
kube-apiserver  datastore         0.04   2.04   2.00  ======================================
containerd                        0.04   1.54   1.50  =============================  ended before that: 1
images                            1.54   2.10   0.56                               ===========
kube-scheduler  kube-apiserver    2.05      -      -                                         =
kubelet         images            2.10      -      -                                          =
";
        assert_eq!(format!("\n{text}"), expected);
    }
}
