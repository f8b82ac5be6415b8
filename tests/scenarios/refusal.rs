//! How `k3s` refuses: an exit code, and one sentence at the end of what it prints.

use cluster_tests::Finished;

// From sysexits.h.
pub(crate) const USAGE: i32 = 64;
pub(crate) const DATA_ERROR: i32 = 65;
pub(crate) const NO_INPUT: i32 = 66;
pub(crate) const UNAVAILABLE: i32 = 69;
pub(crate) const CANNOT_CREATE: i32 = 73;
pub(crate) const IO_ERROR: i32 = 74;
pub(crate) const IN_USE: i32 = 75;
pub(crate) const CONFIGURATION: i32 = 78;

/// One sentence that says this ends what was printed, and the exit code is this one.
#[track_caller]
pub(crate) fn refused(finished: &Finished, code: i32, sentence: &str) {
    assert_eq!(finished.code, code, "{finished}");
    let told = last_line(finished);
    assert!(told.starts_with("k3s: ") && told.contains(sentence), "\"{sentence}\" is not in \"{told}\"");
    assert!(!told.contains("secret"), "{told}");
}

pub(crate) fn last_line(finished: &Finished) -> &str {
    finished.stderr.lines().last().unwrap_or_default()
}
