//! Bytes become lines.

use super::quotes::Piece;

/// journald splits what is longer than its `LineMax=`, 48 KiB, and would take the second half for a line without a priority.
const LONGEST: usize = 48 * 1024 - 8;

/// The unfinished line between two reads. Longer ones than [`LONGEST`] are cut into several.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// What is before it of the same line was passed on.
    is_cut: bool,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8], Piece)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..end], &mut line);
            // One long line is no reason to keep its memory.
            let (partial, piece) = (std::mem::take(&mut self.partial), self.last_piece());
            line(partial.strip_suffix(b"\r").unwrap_or(&partial), piece);
            rest = &rest[end + 1..];
        }
        self.extend(rest, &mut line);
    }

    /// The last line may have no end.
    pub(super) fn finish(&mut self, mut line: impl FnMut(&[u8], Piece)) {
        if !self.partial.is_empty() {
            let piece = self.last_piece();
            line(&std::mem::take(&mut self.partial), piece);
        }
    }

    fn last_piece(&mut self) -> Piece {
        if std::mem::take(&mut self.is_cut) { Piece::Next } else { Piece::Whole }
    }

    fn extend(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&[u8], Piece)) {
        while self.partial.len() + bytes.len() > LONGEST {
            let (now, later) = bytes.split_at(LONGEST - self.partial.len());
            self.partial.extend_from_slice(now);
            let piece = if std::mem::replace(&mut self.is_cut, true) { Piece::Next } else { Piece::First };
            line(&std::mem::take(&mut self.partial), piece);
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |line, _| seen.push(String::from_utf8_lossy(line).into_owned()));
        }
        lines.finish(|line, _| seen.push(String::from_utf8_lossy(line).into_owned()));
        seen
    }

    #[test]
    fn lines_may_come_in_pieces_and_without_an_end() {
        assert_eq!(split(&[b"on", b"e\n\ntw", b"o\r\nthree"]), ["one", "", "two", "three"]);
        assert_eq!(split(&[b""]), [""; 0]);
    }

    #[test]
    fn too_long_ones_are_cut() {
        let long = vec![b'x'; 2 * LONGEST + 1];
        let lengths: Vec<_> = split(&[&long, b"\n"]).iter().map(String::len).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 1]);
        let mut pieces = Vec::new();
        Lines::default().push(&[&long[..], b"\n\n"].concat(), |_, piece| pieces.push(piece));
        assert_eq!(pieces, [Piece::First, Piece::Next, Piece::Next, Piece::Whole]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[a\n]{0,60}", cut in 0_usize..60) {
            let cut = cut.min(text.len());
            let (left, right) = text.as_bytes().split_at(cut);
            prop_assert_eq!(split(&[left, right]), split(&[text.as_bytes()]));
        }
    }
}
