//! What a machine's slots hold, which of them runs, and what its next start does.

use std::{fmt, process::Command};

use serde::Serialize;

use crate::{Assessment, BootEntry, Error, Machine, Slot, Slots, Version, outcome::Outcome};

/// The system of a machine. [`Display`](fmt::Display) writes it for people.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct SystemStatus {
    /// Which version runs.
    pub version: String,
    /// What dm-verity says of its root: `verified`, or `corrupted` once a block was not what it should be.
    pub root: String,
    /// What there is, the running one first.
    pub slots: Vec<SlotStatus>,
    /// Which version the next start is of.
    pub next: Option<String>,
    /// How the last trial of a version ended.
    pub last_trial: Option<Outcome>,
}

/// One slot.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct SlotStatus {
    /// `a` or `b`.
    pub slot: &'static str,
    /// Whether its root is the one in use.
    pub running: bool,
    /// What is in it; none if it is empty or was not written to the end.
    pub version: Option<String>,
    /// `good`, `trial` or `bad`.
    pub state: Option<&'static str>,
    /// Starts that it has still; none if it is not counted.
    pub tries_left: Option<u32>,
    /// Starts that it had without having shown that it is good.
    pub tries_done: u32,
    #[serde(skip)]
    assessment: Option<Assessment>,
}

impl Machine {
    /// What is in its slots.
    ///
    /// # Errors
    /// This is no edge machine, or its disk or its ESP cannot be read.
    pub fn status(&self) -> Result<SystemStatus, Error> {
        let running = self.version()?;
        let slots = Slots::find(self.root())?;
        let entries = self.esp().entries()?;
        let of_running = entries.iter().find(|entry| entry.version == running);
        // An update removes the kernel of what it overwrites, so that there is one besides.
        let of_free = entries.iter().filter(|entry| entry.version != running).max_by_key(|entry| &entry.version);
        Ok(SystemStatus {
            version: running.to_string(),
            root: verity(),
            slots: vec![
                SlotStatus::new(slots.running, true, Some(&running), of_running),
                SlotStatus::new(slots.running.other(), false, of_free.map(|entry| &entry.version), of_free),
            ],
            next: BootEntry::next(&entries).map(|entry| entry.version.to_string()),
            last_trial: Outcome::read(self)?,
        })
    }
}

impl SlotStatus {
    fn new(slot: Slot, running: bool, version: Option<&Version>, entry: Option<&BootEntry>) -> Self {
        let assessment = entry.map(|entry| entry.assessment);
        Self {
            slot: slot.name(),
            running,
            version: version.map(ToString::to_string),
            state: assessment.map(|assessment| match assessment {
                Assessment::Good => "good",
                Assessment::OnTrial { .. } => "trial",
                Assessment::Bad { .. } => "bad",
            }),
            tries_left: assessment.and_then(|assessment| match assessment {
                Assessment::Good => None,
                Assessment::OnTrial { left, .. } => Some(left),
                Assessment::Bad { .. } => Some(0),
            }),
            tries_done: assessment.map_or(0, Assessment::done),
            assessment,
        }
    }
}

impl fmt::Display for SystemStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in &self.slots {
            write!(f, "Slot {}: {}", slot.slot, slot.version.as_deref().unwrap_or("empty"))?;
            if let Some(assessment) = slot.assessment {
                write!(f, ", {assessment}")?;
            }
            f.write_str(if slot.running { ", running\n" } else { "\n" })?;
        }
        writeln!(f, "Root: {} by dm-verity", self.root)?;
        writeln!(f, "Next start: {}", self.next.as_deref().unwrap_or("nothing: there is no kernel on the ESP"))?;
        if let Some(outcome) = &self.last_trial {
            writeln!(f, "Last trial: {outcome}")?;
        }
        Ok(())
    }
}

/// The kernel tells this by an ioctl only.
fn verity() -> String {
    let shown = Command::new("veritysetup").args(["status", "root"]).output();
    let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let status = shown.lines().find_map(|line| line.trim().strip_prefix("status:"));
    status.map_or("unknown", str::trim).to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::slots::tests::write_sysfs;

    #[test]
    fn each_slot_is_told_with_what_is_known_of_it() {
        let root = tempfile::tempdir().unwrap();
        write_sysfs(root.path(), Slot::B);
        for (name, text) in [
            ("usr/lib/os-release", "IMAGE_ID=k3s\nIMAGE_VERSION=2\n"),
            ("efi/EFI/Linux/k3s_1.efi", ""),
            ("efi/EFI/Linux/k3s_2+2-1.efi", ""),
            ("var/lib/k3s-os/last-trial.json", r#"{"version":"1","failure":null}"#),
        ] {
            fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
            fs::write(root.path().join(name), text).unwrap();
        }
        let status = SystemStatus { root: "verified".into(), ..Machine::at(root.path()).status().unwrap() };
        assert_eq!(
            status.to_string(),
            "Slot b: 2, on trial, try 1, 2 more, running\n\
             Slot a: 1, good\n\
             Root: verified by dm-verity\n\
             Next start: 2\n\
             Last trial: 1 is good\n"
        );
        fs::remove_file(root.path().join("efi/EFI/Linux/k3s_1.efi")).unwrap();
        assert!(Machine::at(root.path()).status().unwrap().to_string().contains("Slot a: empty\n"));
    }
}
