//! Our own lines in the journal, by its native protocol: a line has its level's priority and each of its fields by name.

use std::{
    fmt::{self, Write as _},
    io,
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Value, Visit},
    span::{Attributes, Id, Record},
};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// What `journalctl -t` finds us by.
const IDENTIFIER: &str = "k3s";
/// Fields are called `K3S_COMPONENT` and so on: names of one word are journald's and syslog's.
const PREFIX: &str = "K3S";

/// Sends lines to journald. Their text holds the fields too, since `journalctl` shows nothing else without being asked.
pub(super) struct Journal(tracing_journald::Layer);

impl Journal {
    /// An error means that journald does not listen at its well-known socket.
    pub(super) fn connect() -> io::Result<Self> {
        let layer = tracing_journald::layer()?
            .with_syslog_identifier(IDENTIFIER.to_owned())
            .with_field_prefix(Some(PREFIX.to_owned()))
            // As syslog's severities are meant; the crate keeps "info" for debugging.
            .with_priority_mappings(PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                trace: Priority::Debug,
                ..PriorityMappings::new()
            });
        Ok(Self(layer))
    }
}

impl<S> Layer<S> for Journal
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let texts = Texts::of(event);
        let fields = event.metadata().fields();
        let message = texts.message(event.metadata());
        let values: Vec<Option<&dyn Value>> = fields
            .iter()
            .zip(&texts.0)
            .map(|(field, text)| {
                if is_message(&field) {
                    Some(&message as &dyn Value)
                } else {
                    text.as_ref().map(|text| text as &dyn Value)
                }
            })
            .collect();
        self.0.on_event(&Event::new(event.metadata(), &fields.value_set_all(&values)), context);
    }
}

/// An event's values as text, by the place of their field.
struct Texts(Vec<Option<String>>);

impl Texts {
    fn of(event: &Event<'_>) -> Self {
        let mut texts = Self(vec![None; event.metadata().fields().len()]);
        event.record(&mut texts);
        texts
    }

    /// The sentence and then `field=value`, as on standard error.
    fn message(&self, metadata: &Metadata<'_>) -> String {
        let mut message = String::new();
        let mut rest = String::new();
        for (field, text) in metadata.fields().iter().zip(&self.0) {
            match text {
                Some(text) if is_message(&field) => message.push_str(text),
                // Writing to a string cannot fail.
                Some(text) => drop(write!(rest, " {}={text}", field.name())),
                None => {}
            }
        }
        message + &rest
    }
}

impl Visit for Texts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0[field.index()] = Some(value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0[field.index()] = Some(format!("{value:?}"));
    }
}

fn is_message(field: &Field) -> bool {
    field.name() == "message"
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixDatagram, thread};

    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    use tracing::{error, info, info_span, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::cli::tell;

    /// Runs `test` with a journal of its own in a mount namespace that goes with its thread.
    fn with_journal(test: impl FnOnce(UnixDatagram) + Send) {
        let run = || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                tell(format_args!("skipped: no mount namespace of our own ({error}); run the test as root"));
                return;
            }
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            fs::create_dir_all("/run/systemd/journal").unwrap();
            test(UnixDatagram::bind("/run/systemd/journal/socket").unwrap());
        };
        thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    /// The next entry, as `NAME=value` (Journal Native Protocol: `NAME=value\n`, or `NAME\n`, length, value, `\n`).
    fn entry(journal: &UnixDatagram) -> Vec<String> {
        let mut datagram = vec![0; 1 << 16];
        let length = loop {
            // The first is empty: whether somebody listens.
            match journal.recv(&mut datagram).unwrap() {
                0 => {}
                length => break length,
            }
        };
        let mut rest = &datagram[..length];
        let mut fields = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = (&rest[..end], &rest[end + 1..]);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            if head.contains(&b'=') {
                fields.push(text(head));
                rest = tail;
            } else {
                let (length, tail) = tail.split_first_chunk::<8>().unwrap();
                let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
                fields.push(format!("{}={}", text(head), text(&tail[..length])));
                rest = &tail[length + 1..];
            }
        }
        fields
    }

    fn has(entry: &[String], fields: &[&str]) {
        for field in fields {
            assert!(entry.iter().any(|found| found == field), "{field} is not in {entry:#?}");
        }
    }

    #[test]
    fn a_line_has_its_priority_its_fields_and_a_text_that_holds_them() {
        with_journal(|journal| {
            let subscriber = tracing_subscriber::registry().with(Journal::connect().unwrap());
            tracing::subscriber::with_default(subscriber, || {
                warn!(component = "kubelet", pid = 7, "The component ended.");
                has(
                    &entry(&journal),
                    &[
                        "PRIORITY=4",
                        "SYSLOG_IDENTIFIER=k3s",
                        "MESSAGE=The component ended. component=kubelet pid=7",
                        "K3S_COMPONENT=kubelet",
                        "K3S_PID=7",
                    ],
                );
                error!("It stops.");
                has(&entry(&journal), &["PRIORITY=3", "MESSAGE=It stops."]);
                let absent = None::<&str>;
                info!(absent, why = %"two\nlines", "Told.");
                let told = entry(&journal);
                has(&told, &["PRIORITY=6", "MESSAGE=Told. why=two\nlines", "K3S_WHY=two\nlines"]);
                assert!(!told.iter().any(|field| field.contains("ABSENT") || field.contains("TIME")));
            });
        });
    }

    #[test]
    fn a_line_in_a_span_has_the_spans_fields() {
        with_journal(|journal| {
            let subscriber = tracing_subscriber::registry().with(Journal::connect().unwrap());
            tracing::subscriber::with_default(subscriber, || {
                info_span!("join", server = "s1").in_scope(|| info!("Joined."));
                has(&entry(&journal), &["SPAN_NAME=join", "K3S_SERVER=s1", "MESSAGE=Joined."]);
            });
        });
    }

    #[test]
    fn a_line_too_long_for_a_datagram_arrives_all_the_same() {
        with_journal(|journal| {
            let subscriber = tracing_subscriber::registry().with(Journal::connect().unwrap());
            tracing::subscriber::with_default(subscriber, || {
                info!(text = "x".repeat(1 << 20), "Long.");
                info!("Next.");
                // The long one comes as a sealed file beside an empty datagram.
                has(&entry(&journal), &["MESSAGE=Next."]);
            });
        });
    }
}
