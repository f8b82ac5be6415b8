//! What the kernel reads of files beyond what is wanted.

use std::{fs, path::PathBuf};

/// KiB, as the kernel has it for a disk unless somebody changes it.
const USUAL: &str = "128";

/// Until drop the real machine's disks read ahead as those of devices do. Virtual machines may have a setting of megabytes, and then each page of
/// code that is missing costs as much of a small node's memory.
#[derive(Debug)]
pub struct UsualReadAhead {
    /// Each setting that was higher, and what it was.
    before: Vec<(PathBuf, String)>,
}

impl UsualReadAhead {
    /// Lowers what is higher.
    ///
    /// # Panics
    /// A setting cannot be written.
    pub fn set() -> Self {
        let disks = fs::read_dir("/sys/class/bdi").into_iter().flatten().flatten();
        let settings = disks.map(|disk| disk.path().join("read_ahead_kb"));
        let is_higher = |text: &str| text.trim().parse().is_ok_and(|kib: u64| kib > 128);
        let before: Vec<_> = settings
            .filter_map(|setting| Some((fs::read_to_string(&setting).ok()?, setting)))
            .filter(|(text, _)| is_higher(text))
            .map(|(text, setting)| (setting, text))
            .collect();
        for (setting, _) in &before {
            fs::write(setting, USUAL).expect("root may change what disks read ahead");
        }
        Self { before }
    }
}

impl Drop for UsualReadAhead {
    fn drop(&mut self) {
        for (setting, text) in &self.before {
            // The disk may have gone.
            let _ = fs::write(setting, text);
        }
    }
}
