//! How much memory a process takes.

use std::fs;

/// A process' proportional share of the memory it uses, in bytes: components share one binary's pages, so that sums of PSS are true
/// where sums of RSS are not. `None` once it has ended or where the kernel does not tell us.
pub(crate) fn memory_of(pid: u32) -> Option<u64> {
    pss(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn pss(smaps_rollup: &str) -> Option<u64> {
    let kib = smaps_rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_read() {
        let text = "55d0c0a00000-7ffd0d1f5000 ---p 00000000 00:00 0    [rollup]\nRss:      9128 kB\nPss:      4041 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(pss(text), Some(4041 * 1024));
        assert_eq!(pss("Rss: 1 kB\n"), None);
        assert!(memory_of(std::process::id()).unwrap() > 0);
    }
}
