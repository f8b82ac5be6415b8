//! The last update of a machine: what it was from, and what of the cluster's data goes back with it.
//!
//! ```text
//!  update ──▶ Trial ── k3s os good ──▶ Good ── rollback --with-data ──▶ Leaving
//!               │ it is bad, and the version of before runs               │ the version of before runs
//!               └──────────────────────▶ Returned ◀───────────────────────┘
//! ```
//! Kept on the data partition, so that whichever version is started can tell.

use std::{fmt, path::PathBuf};

use k3s_files::{FileError, failed};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Machine, Outcome, Version};

const UPDATE: &str = "last-update.json";
const WRITER: &str = "data-writer.json";

/// What a version of the system writes the cluster's data with, on servers that have it on their disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Which version.
    pub version: Version,
    /// The minor version of its Kubernetes, `(1, 36)`.
    pub kubernetes: (u32, u32),
    /// The format of its datastore.
    pub format: i64,
}

impl Writer {
    /// Whether it can go on with what `other` has written: Kubernetes and the datastore read what older ones have written, and no newer ones.
    pub fn reads(&self, other: &Self) -> bool {
        self.kubernetes >= other.kubernetes && self.format >= other.format
    }

    fn writes_as(&self, other: &Self) -> bool {
        (self.kubernetes, self.format) == (other.kubernetes, other.format)
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.kubernetes;
        write!(f, "Kubernetes {major}.{minor}, format {}", self.format)
    }
}

/// Where an update has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The new version has not shown that it is good.
    Trial,
    /// It has: what it writes stays.
    Good,
    /// Somebody goes back, with the data.
    Leaving,
    /// The version of before runs.
    Returned,
}

/// An update that this machine has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastUpdate {
    pub(crate) from: Version,
    pub(crate) to: Version,
    /// What had written the cluster's data by then; none where it is not on this machine.
    pub(crate) before: Option<Writer>,
    /// Of the datastore, before.
    pub(crate) snapshot: Option<PathBuf>,
    pub(crate) stage: Stage,
}

/// A machine that runs the version of before again, and does not know it yet.
#[derive(Debug, PartialEq, Eq)]
pub struct WayBack {
    /// What it comes from.
    pub from: Version,
    /// Why, in a sentence's part.
    pub why: String,
    /// What becomes of the cluster's data.
    pub data: Data,
}

/// What becomes of the cluster's data.
#[derive(Debug, PartialEq, Eq)]
pub enum Data {
    /// It stays as it is.
    Stays,
    /// It is to be that of before: this snapshot, if one was taken.
    OfBefore(Option<PathBuf>),
}

impl Machine {
    /// Keeps what an update begins from. `snapshot` is that of the datastore.
    ///
    /// # Errors
    /// This is no edge machine, or the data partition is full or not writable.
    pub fn begin_update(&self, to: &Version, snapshot: Option<PathBuf>) -> Result<(), Error> {
        let from = self.version()?;
        let before = self.writer()?.filter(|writer| writer.version == from);
        // What an earlier trial of the same version came to would be taken for this one's.
        k3s_files::remove(&self.own(Outcome::FILE))?;
        self.keep(UPDATE, &LastUpdate { from, to: to.clone(), before, snapshot, stage: Stage::Trial })
    }

    /// Whether the version of before runs again, by itself or because somebody wants it with the data of before.
    ///
    /// # Errors
    /// This is no edge machine, or its ESP or its data partition cannot be read.
    pub fn way_back(&self) -> Result<Option<WayBack>, Error> {
        let Some(update) = self.last_update()? else { return Ok(None) };
        if update.from != self.version()? {
            return Ok(None);
        }
        let data = match update.stage {
            Stage::Good | Stage::Returned => return Ok(None),
            Stage::Leaving => Data::OfBefore(update.snapshot),
            Stage::Trial if !self.is_bad(&update.to)? => return Ok(None),
            Stage::Trial => {
                let written = self.writer()?.filter(|writer| writer.version == update.to);
                match (&update.before, written) {
                    (Some(before), Some(written)) if !before.writes_as(&written) => Data::OfBefore(update.snapshot),
                    _ => Data::Stays,
                }
            }
        };
        let outcome = Outcome::read(self)?.filter(|outcome| outcome.version == update.to.as_str());
        let why = outcome.and_then(|outcome| outcome.failure).unwrap_or_else(|| "it did not come up".to_owned());
        Ok(Some(WayBack { from: update.to, why, data }))
    }

    /// Keeps that the way back has been gone to its end.
    ///
    /// # Errors
    /// The data partition is full or not writable.
    pub fn end_way_back(&self, way: &WayBack) -> Result<(), Error> {
        Outcome::failed(&way.from, &way.why).write(self)?;
        self.set_stage(Stage::Returned)
    }

    /// What has written the cluster's data last; none if it is not on this machine.
    ///
    /// # Errors
    /// The data partition cannot be read.
    pub fn writer(&self) -> Result<Option<Writer>, FileError> {
        self.kept(WRITER)
    }

    /// Keeps that `writer` is about to write the cluster's data.
    ///
    /// # Errors
    /// The data partition is full or not writable.
    pub fn set_writer(&self, writer: &Writer) -> Result<(), Error> {
        self.keep(WRITER, writer)
    }

    pub(crate) fn last_update(&self) -> Result<Option<LastUpdate>, FileError> {
        self.kept(UPDATE)
    }

    pub(crate) fn set_stage(&self, stage: Stage) -> Result<(), Error> {
        match self.last_update()? {
            Some(update) => self.keep(UPDATE, &LastUpdate { stage, ..update }),
            None => Ok(()),
        }
    }

    fn is_bad(&self, version: &Version) -> Result<bool, Error> {
        let entries = self.esp().entries()?;
        Ok(entries.iter().any(|entry| entry.version == *version && entry.assessment.is_bad()))
    }

    /// A file that is not whole says nothing.
    pub(crate) fn kept<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let bytes = k3s_files::read(&self.own(name))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub(crate) fn keep(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let path = self.own(name);
        let json = serde_json::to_vec(value).map_err(|error| failed("write", &path)(error.into()))?;
        Ok(k3s_files::write(&path, &json, 0o644).map(|_| ())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::BootEntry;

    const SNAPSHOT: &str = "/var/snapshots/before-update-kiosk-7-1";

    /// A machine of which `running` runs, with these kernels.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn runs(&self, running: &str, kernels: &[&str]) -> Machine {
            let root = self.0.path();
            let _ = fs::remove_dir_all(root.join("efi"));
            for folder in ["usr/lib", "efi/EFI/Linux", "var/lib/k3s-os"] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            let release = format!("IMAGE_ID=k3s\nIMAGE_VERSION={running}\n");
            fs::write(root.join("usr/lib/os-release"), release).unwrap();
            for kernel in kernels {
                fs::write(root.join("efi/EFI/Linux").join(kernel), "").unwrap();
            }
            Machine::at(root)
        }

        /// Version 1 has run, and an update to 2 is written.
        fn updated() -> Self {
            let host = Self::new();
            let machine = host.runs("1", &["k3s_1.efi"]);
            machine.set_writer(&writer("1", 36, 1)).unwrap();
            machine.begin_update(&"2".parse().unwrap(), Some(SNAPSHOT.into())).unwrap();
            host
        }
    }

    fn writer(version: &str, kubernetes: u32, format: i64) -> Writer {
        Writer { version: version.parse().unwrap(), kubernetes: (1, kubernetes), format }
    }

    fn data_after(written: Option<Writer>) -> Data {
        let host = Host::updated();
        if let Some(written) = written {
            host.runs("2", &["k3s_1.efi", "k3s_2+0-3.efi"]).set_writer(&written).unwrap();
        }
        host.runs("1", &["k3s_1.efi", "k3s_2+0-3.efi"]).way_back().unwrap().unwrap().data
    }

    #[test]
    fn data_of_another_form_goes_back_with_the_version_that_wrote_it() {
        assert_eq!(data_after(Some(writer("2", 37, 1))), Data::OfBefore(Some(SNAPSHOT.into())));
        assert_eq!(data_after(Some(writer("2", 36, 2))), Data::OfBefore(Some(SNAPSHOT.into())));
        assert_eq!(data_after(Some(writer("2", 36, 1))), Data::Stays, "nothing that was answered is lost for nothing");
        assert_eq!(data_after(None), Data::Stays, "it has written nothing");
    }

    #[test]
    fn a_way_back_is_found_once_and_with_its_reason() {
        let host = Host::updated();
        let both = ["k3s_1.efi", "k3s_2+0-1.efi"];
        assert_eq!(host.runs("1", &["k3s_1.efi", "k3s_2+3.efi"]).way_back().unwrap(), None, "not restarted yet");
        host.runs("2", &["k3s_1.efi", "k3s_2+2-1.efi"]).give_up("k3s does not run").unwrap();
        let machine = host.runs("1", &both);
        let way = machine.way_back().unwrap().unwrap();
        assert_eq!((way.from.as_str(), way.why.as_str()), ("2", "k3s does not run"));
        machine.end_way_back(&way).unwrap();
        assert_eq!(machine.way_back().unwrap(), None);
    }

    #[test]
    fn a_version_that_says_nothing_did_not_come_up() {
        let host = Host::updated();
        let machine = host.runs("1", &["k3s_1.efi", "k3s_2+0-3.efi"]);
        let way = machine.way_back().unwrap().unwrap();
        machine.end_way_back(&way).unwrap();
        let outcome = Outcome::read(&machine).unwrap().unwrap();
        assert_eq!(outcome.to_string(), "2 was given up: it did not come up");
    }

    #[test]
    fn a_good_version_keeps_its_data_until_somebody_wants_that_of_before() {
        let host = Host::updated();
        let machine = host.runs("2", &["k3s_1.efi", "k3s_2+2-1.efi"]);
        machine.set_writer(&writer("2", 37, 1)).unwrap();
        machine.accept().unwrap();
        // Its root has decayed since, and the initrd has made room for the other slot.
        assert_eq!(host.runs("1", &["k3s_1.efi", "k3s_2+0-1.efi"]).way_back().unwrap(), None);

        host.runs("2", &["k3s_1.efi", "k3s_2.efi"]).roll_back(true).unwrap();
        let way = host.runs("1", &["k3s_1+2-1.efi", "k3s_2+0-0.efi"]).way_back().unwrap().unwrap();
        assert_eq!(way.data, Data::OfBefore(Some(SNAPSHOT.into())));
        assert_eq!(way.why, "rolled back to 1");
    }

    #[test]
    fn a_version_that_could_not_read_the_data_is_refused() {
        for (written, refused) in [
            (writer("2", 36, 1), None),
            (writer("2", 37, 1), Some("the cluster's data was written by 2 (Kubernetes 1.37, format 1)")),
            (writer("2", 36, 2), Some("the cluster's data was written by 2 (Kubernetes 1.36, format 2)")),
        ] {
            let host = Host::updated();
            let machine = host.runs("2", &["k3s_1.efi", "k3s_2.efi"]);
            machine.set_writer(&written).unwrap();
            machine.accept().unwrap();
            let said = machine.roll_back(false).map(|_| ()).map_err(|error| error.to_string());
            assert_eq!(said.is_err(), refused.is_some(), "{said:?}");
            if let (Err(said), Some(refused)) = (said, refused) {
                assert_eq!(
                    said,
                    format!(
                        "{refused}, and 1 (Kubernetes 1.36, format 1) cannot read it; --with-data brings back the snapshot of \
                         before the update, without what was written since"
                    )
                );
                let names: Vec<_> = machine.esp().entries().unwrap().iter().map(BootEntry::file_name).collect();
                assert!(names.contains(&"k3s_2.efi".to_owned()), "nothing has changed: {names:?}");
            }
        }
    }

    #[test]
    fn there_is_no_going_back_to_data_that_was_not_saved() {
        let host = Host::new();
        host.runs("1", &["k3s_1.efi"]).begin_update(&"2".parse().unwrap(), None).unwrap();
        let machine = host.runs("2", &["k3s_1.efi", "k3s_2.efi"]);
        assert!(matches!(machine.roll_back(true), Err(Error::NoSnapshot(_))));
    }
}
