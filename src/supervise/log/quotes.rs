//! What a program quotes of the data that it stores, left out of its log: secrets are among it.

use std::borrow::Cow;

/// In the place of what is left out.
const LEFT_OUT: &[u8] = b"(what it quotes is left out) ";
/// A quote within a message in JSON.
const QUOTE: &[u8] = b"\\\"";

/// What of a line is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// A line.
    Whole,
    /// The beginning of one that was too long.
    First,
    /// What follows on that.
    Next,
}

/// Leaves out what is quoted after certain words.
#[derive(Debug, Default)]
pub(super) struct Quotes {
    words: &'static [&'static str],
    /// The line that goes on has had one of them.
    is_quoting: bool,
}

impl Quotes {
    pub(super) fn after(words: &'static [&'static str]) -> Self {
        Self { words, is_quoting: false }
    }

    /// What of it may be read by others: of a line with such words these, and what follows on its last quote. `None` is nothing.
    pub(super) fn leave_out<'a>(&mut self, line: &'a [u8], piece: Piece) -> Option<Cow<'a, [u8]>> {
        if piece == Piece::Next {
            return (!self.is_quoting).then_some(line.into());
        }
        let words = self.words.iter().find_map(|words| Some(find(line, words.as_bytes())? + words.len()));
        self.is_quoting = words.is_some();
        let Some(end) = words else { return Some(line.into()) };
        let (said, quoted) = line.split_at(end);
        let last = quoted.windows(QUOTE.len()).rposition(|window| window == QUOTE);
        let rest = match (piece, last) {
            (Piece::Whole, Some(last)) => &quoted[last + QUOTE.len()..],
            _ => &[],
        };
        Some([said, LEFT_OUT, rest].concat().into())
    }
}

fn find(line: &[u8], words: &[u8]) -> Option<usize> {
    line.windows(words.len()).position(|window| window == words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(pieces: &[(&str, Piece)]) -> Vec<String> {
        let mut quotes = Quotes::after(&["error in txn "]);
        let left = pieces.iter().filter_map(|(line, piece)| quotes.leave_out(line.as_bytes(), *piece));
        left.map(|line| String::from_utf8_lossy(&line).into_owned()).collect()
    }

    #[test]
    fn the_cause_stays_and_the_data_do_not() {
        let line = r#"{"message":"error in txn success:{request_put:{key:\"/registry/secrets/a\" value:\"pass: \\\"word\\\"\"}}: driver: bad connection","severity":"error"}"#;
        assert_eq!(
            left(&[(line, Piece::Whole)]),
            [
                r#"{"message":"error in txn (what it quotes is left out) }}: driver: bad connection","severity":"error"}"#
            ]
        );
        assert_eq!(
            left(&[("error in txn value:secret", Piece::Whole)]),
            ["error in txn (what it quotes is left out) "]
        );
    }

    #[test]
    fn a_line_that_was_cut_leaves_nothing_behind() {
        let pieces = [
            (r#"error in txn value:\"a\" value:\"sec"#, Piece::First),
            ("ret", Piece::Next),
            ("ret\\\"", Piece::Next),
            ("next", Piece::Whole),
        ];
        assert_eq!(left(&pieces), ["error in txn (what it quotes is left out) ", "next"]);
    }

    #[test]
    fn other_lines_stay_as_they_are() {
        let pieces = [("range on \\\"a\\\"", Piece::Whole), ("long", Piece::First), ("er", Piece::Next)];
        assert_eq!(left(&pieces), ["range on \\\"a\\\"", "long", "er"]);
    }
}
