//! `config` of a first-boot file: k3s' `config.yaml` as it was written, so that values keep their text (`0644` is no number).

use granit_parser::{Event, Parser, Span};

use crate::Wrong;

const KEY: &str = "config";

/// Its text, and where it stands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfigSection {
    text: String,
    /// Of the first key, from 1.
    line: usize,
}

impl ConfigSection {
    /// The section of `text`, which is YAML; an empty one if there is none.
    pub(crate) fn find(text: &str) -> Result<Self, Wrong> {
        let mut depth = 0_usize;
        // What the next event at the depth of the document's keys is.
        let mut awaits = Awaits::Key;
        let mut began = None::<Span>;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                let reason = format!("this is not YAML ({}); correct it", error.info());
                Wrong { line: Some(error.marker().line() as u64), reason }
            })?;
            match (&event, awaits) {
                (Event::MappingStart(..), Awaits::Config) if depth == 1 => {
                    began = Some(span);
                    depth += 1;
                }
                (Event::Scalar(value, ..), Awaits::Config) if depth == 1 && is_null(value) => {
                    return Ok(Self::default());
                }
                (_, Awaits::Config) if depth == 1 && !matches!(event, Event::Comment(..)) => {
                    let reason = "config holds no keys; write k3s' flags below it as `name: value`".to_owned();
                    return Err(Wrong { line: Some(span.start.line() as u64), reason });
                }
                (Event::MappingStart(..) | Event::SequenceStart(..), _) => depth += 1,
                (Event::MappingEnd | Event::SequenceEnd, _) => {
                    depth -= 1;
                    if depth == 1 {
                        if let Some(began) = began {
                            return Ok(Self::between(text, &began, &span));
                        }
                        awaits = awaits.next(None);
                    }
                }
                (Event::Scalar(value, ..), _) if depth == 1 => awaits = awaits.next(Some(value)),
                (Event::Alias(_), _) if depth == 1 => awaits = awaits.next(None),
                _ => {}
            }
        }
        Ok(Self::default())
    }

    fn between(text: &str, first: &Span, last: &Span) -> Self {
        let (begin, end) = (first.start.byte_offset(), last.end.byte_offset());
        let source = begin.zip(end).and_then(|(begin, end)| text.get(begin..end));
        let source = source.expect("a parser of a text knows offsets in it");
        let indent = first.start.col();
        // Lines below the first are that far in, or of something that ignores how far.
        let without = |line: &str| {
            let spaces = line.len() - line.trim_start_matches(' ').len();
            line[spaces.min(indent)..].to_owned()
        };
        let mut lines = source.trim_end().split('\n');
        let first_line = lines.next().unwrap_or_default().to_owned();
        let text = lines.fold(first_line, |text, line| text + "\n" + &without(line)) + "\n";
        Self { text, line: first.start.line() }
    }

    /// As a file of its own.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// As a file in which everything is in its line of the first-boot file, so that what is said of one holds for the other.
    pub(crate) fn in_place(&self) -> String {
        "\n".repeat(self.line.saturating_sub(1)) + &self.text
    }
}

#[derive(Clone, Copy)]
enum Awaits {
    Key,
    Value,
    Config,
}

impl Awaits {
    /// After a whole key or value; a key that is text is given.
    fn next(self, key: Option<&str>) -> Self {
        match self {
            Self::Key if key == Some(KEY) => Self::Config,
            Self::Key => Self::Value,
            Self::Value | Self::Config => Self::Key,
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> ConfigSection {
        ConfigSection::find(text).expect(text)
    }

    #[test]
    fn its_text_is_kept_as_it_was_written() {
        for (text, expected) in [
            (
                "config:\n  write-kubeconfig-mode: 0644\n  disable:\n  - traefik\nrole: server\n",
                "write-kubeconfig-mode: 0644\ndisable:\n- traefik\n",
            ),
            (
                "role: server\nconfig:\n    node-label: # of this site\n        - a=b\n\n    # end\n",
                "node-label: # of this site\n    - a=b\n\n# end\n",
            ),
            ("config: {token: x, disable: [a, b]}\nrole: server\n", "{token: x, disable: [a, b]}\n"),
            ("config:\n  a: |\n    one\n      two\n  b: c\n", "a: |\n  one\n    two\nb: c\n"),
            ("network:\n- {config: no}\nconfig:\n  ü: ö\nhostname: ä\n", "ü: ö\n"),
            ("hostname: config\nrole: config\nconfig:\n  a: b", "a: b\n"),
            ("role: server\n", ""),
            ("config: ~\nrole: server\n", ""),
        ] {
            assert_eq!(section(text).text(), expected, "{text:?}");
        }
    }

    #[test]
    fn in_its_place_it_has_the_lines_of_the_whole_file() {
        let section = section("role: server\n\nconfig:\n  a: b\n  c: d\n");
        assert_eq!(section.in_place(), "\n\n\na: b\nc: d\n");
    }
}
