//! What a write-ahead log says about commits that SQLite will not read from it.
//!
//! SQLite reads a log up to the first frame whose checksum is wrong and drops the rest. After a power cut that is right: the rest is a
//! commit that was never acknowledged. It is not right when a frame before an acknowledged commit has rotted. The two
//! can be told apart: with an fsync for each commit (`synchronous=FULL`) nothing is written behind a commit before it is on the disk.
//! So a commit behind the wrong frame that has a frame behind itself was acknowledged. Frames hang together by their checksums, each continuing that of the frame before;
//! frames that an older use of the file left behind do not. The newest commit has nothing behind it: whether that one is lost cannot be known.
//!
//! The format: <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::io::{self, ErrorKind, Read};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// First word of the file; the last bit tells in which byte order checksums are computed.
const MAGIC: u32 = 0x377f_0682;

/// Acknowledged commits of a log that SQLite cannot read; at least so many.
pub(super) fn lost_commits(mut log: impl Read) -> io::Result<usize> {
    let mut header = [0; HEADER];
    if !fill(&mut log, &mut header)? {
        return Ok(0);
    }
    let page_size = word(&header, 8) as usize;
    if word(&header, 0) & !1 != MAGIC || !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
        return Ok(0);
    }
    let big_endian = word(&header, 0) & 1 == 1;
    let salt = &header[16..24];
    // The sum that the frame at hand has to continue, and whether all is well up to there.
    let mut sum = (word(&header, 24), word(&header, 28));
    let mut sound = checksum((0, 0), &header[..24], big_endian) == sum;
    let mut behind_commit = false;
    let mut lost = 0;
    let mut frame = vec![0; FRAME_HEADER + page_size];
    while fill(&mut log, &mut frame)? {
        let (head, page) = frame.split_at(FRAME_HEADER);
        let written = (word(head, 16), word(head, 20));
        let continues =
            head[8..16] == *salt && checksum(checksum(sum, &head[..8], big_endian), page, big_endian) == written;
        sound &= continues;
        if !sound && continues && behind_commit {
            lost += 1;
        }
        // Of a commit before the wrong frame SQLite loses nothing.
        behind_commit = !sound && head[8..16] == *salt && word(head, 4) != 0;
        sum = written;
    }
    Ok(lost)
}

/// Fills the buffer; false at the end of the file.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// SQLite's checksum of a multiple of eight bytes.
fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let word = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(pair)).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    const COMMITS: usize = 5;
    const PAGE: usize = 1024;

    /// A log with some commits of one frame or more, and the number of frames up to the end of each.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let database = Connection::open(&path).unwrap();
        database.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; CREATE TABLE t (v BLOB);").unwrap();
        database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let mut ends = Vec::new();
        for commit in 0..COMMITS {
            database.execute(&format!("INSERT INTO t VALUES (zeroblob({}))", commit * 700), []).unwrap();
            let length = std::fs::read(directory.path().join("state.db-wal")).unwrap().len();
            ends.push((length - HEADER) / (FRAME_HEADER + PAGE));
        }
        let log = std::fs::read(directory.path().join("state.db-wal")).unwrap();
        (log, ends)
    }

    fn lost(log: &[u8]) -> usize {
        lost_commits(log).unwrap()
    }

    #[test]
    fn a_log_may_be_torn_anywhere() {
        let (log, _) = log();
        for length in 0..log.len() {
            assert_eq!(lost(&log[..length]), 0, "the first {length} bytes");
        }
    }

    #[test]
    fn commits_with_something_behind_them_are_missed() {
        let (log, ends) = log();
        for frame in 0..ends[COMMITS - 1] {
            let mut rotten = log.clone();
            rotten[HEADER + frame * (FRAME_HEADER + PAGE) + FRAME_HEADER + 7] ^= 1;
            let commit = ends.partition_point(|end| *end <= frame);
            assert_eq!(lost(&rotten), COMMITS - 1 - commit, "frame {frame} in commit {commit}");
        }
    }

    #[test]
    fn the_rest_of_an_older_use_is_not_missed() {
        let (old, _) = log();
        let (new, ends) = log();
        let end = HEADER + ends[0] * (FRAME_HEADER + PAGE);
        assert_eq!(lost(&[&new[..end], &old[end..]].concat()), 0);
    }
}
