//! Which manifest is next, and which of them go on at the same time.
//!
//! ```text
//! look ──► what is due, by path ──► read, one after the other ──► several at once ──► settled
//!             ▲                                                   │
//!             └── a few that come while others wait               └── alone: what later files may stand on
//! ```

use std::collections::{HashSet, VecDeque};

use super::{
    folder::{ManifestFile, addon_name},
    manifest::ManifestObject,
};

/// Files on their way at the same time: more of them wait for the same store, and a small device has little memory.
const AT_ONCE: usize = 8;
/// Of those together, in bytes; a larger file goes alone.
const TOGETHER: u64 = 16 << 20;
/// So many files that come while others wait are somebody's change, who waits for it; more of them are another folder full.
const FEW: usize = 16;

/// Kinds, each with its group, by which the API judges other objects as these come, or which others are known by: what comes in a later
/// file may stand on them.
const FOUNDATIONS: [(&str, &str); 17] = [
    ("", "Namespace"),
    ("", "ServiceAccount"),
    ("", "LimitRange"),
    ("", "ResourceQuota"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("node.k8s.io", "RuntimeClass"),
    ("storage.k8s.io", "StorageClass"),
    ("networking.k8s.io", "IngressClass"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    // A chart that comes after its configuration is installed once.
    ("helm.cattle.io", "HelmChartConfig"),
];

/// Whether other objects may need this one to be there first.
pub(super) fn is_foundation(found: &ManifestObject) -> bool {
    let types = found.object.types.as_ref();
    types.is_some_and(|types| {
        let (group, _) = types.api_version.split_once('/').unwrap_or_default();
        FOUNDATIONS.contains(&(group, &types.kind))
    })
}

/// What is due, and has not been begun.
#[derive(Debug, Default)]
pub(super) struct Backlog(VecDeque<ManifestFile>);

impl Backlog {
    /// Takes what is `due` at a new look, in its order. A few files that were not due at the look before come before all that wait.
    pub(super) fn replace(&mut self, due: Vec<ManifestFile>) {
        let known: HashSet<_> = self.0.drain(..).collect();
        let (waiting, new): (Vec<_>, Vec<_>) = due.into_iter().partition(|file| known.contains(file));
        if new.len() <= FEW {
            self.0 = new.into_iter().chain(waiting).collect();
        } else {
            let mut all: Vec<_> = waiting.into_iter().chain(new).collect();
            all.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
            self.0 = all.into();
        }
    }

    pub(super) fn next(&mut self) -> Option<ManifestFile> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a file takes while it is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    addon: String,
    bytes: u64,
    /// Whether nothing else goes on meanwhile.
    alone: bool,
}

impl Share {
    /// That of a file that is applied.
    pub(super) fn of(file: &ManifestFile, objects: &[ManifestObject]) -> Self {
        let bytes = file.fingerprint.size;
        Self { addon: addon_name(&file.path), bytes, alone: bytes > TOGETHER || objects.iter().any(is_foundation) }
    }

    /// That of one whose objects are deleted: others may have taken them over.
    pub(super) fn alone(file: &ManifestFile) -> Self {
        Self { addon: addon_name(&file.path), bytes: file.fingerprint.size, alone: true }
    }

    /// Whether it may begin beside these.
    pub(super) fn fits<'a>(&self, running: impl IntoIterator<Item = &'a Self>) -> bool {
        let (mut count, mut together) = (0, self.bytes);
        for share in running {
            if self.alone || share.alone || share.addon == self.addon {
                return false;
            }
            (count, together) = (count + 1, together + share.bytes);
        }
        count == 0 || (count < AT_ONCE && together <= TOGETHER)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::addons::{folder, manifest};

    fn files(base: &Path, names: impl IntoIterator<Item = String>) -> Vec<ManifestFile> {
        for name in names {
            fs::write(base.join(name), "").unwrap();
        }
        folder::scan(base, &BTreeSet::new()).wanted
    }

    fn drain(backlog: &mut Backlog) -> Vec<String> {
        std::iter::from_fn(|| backlog.next()).map(|file| file.name).collect()
    }

    #[test]
    fn a_change_does_not_wait_for_thousands_and_a_folder_full_does() {
        let base = tempfile::tempdir().unwrap();
        let mut backlog = Backlog::default();
        let all = files(base.path(), (1000..3000).map(|number| format!("{number}.yaml")));
        backlog.replace(all.clone());
        assert_eq!(backlog.next().unwrap().name, "1000.yaml");
        let more = files(base.path(), ["zz.yaml".to_owned(), "0.yaml".to_owned()]);
        backlog.replace(more.into_iter().filter(|file| file.name != "1000.yaml").collect());
        let order = drain(&mut backlog);
        assert_eq!((&*order[0], &*order[1], &*order[2], order.len()), ("0.yaml", "zz.yaml", "1001.yaml", 2001));

        backlog.replace(all);
        let copied = files(base.path(), (0..100).map(|number| format!("2000-{number:02}.yaml")));
        backlog.replace(copied);
        let order = drain(&mut backlog);
        assert!(order.is_sorted() && order.len() == 2102, "in the order of their paths");
    }

    #[test]
    fn what_others_stand_on_goes_alone_and_the_rest_within_bounds() {
        let base = tempfile::tempdir().unwrap();
        let all = files(base.path(), (0..20).map(|number| format!("{number}.yaml")));
        let objects = |kind: &str| {
            manifest::parse(format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: a}}\n").as_bytes()).unwrap()
        };
        let share = |index: usize, kind: &str| Share::of(&all[index], &objects(kind));
        let running: Vec<_> = (0..AT_ONCE).map(|index| share(index, "ConfigMap")).collect();
        assert!(share(10, "ConfigMap").fits(&running[1..]) && !share(10, "ConfigMap").fits(&running));
        assert!(!share(1, "ConfigMap").fits(&running[1..2]), "one at a time of an AddOn");
        assert!(!share(10, "Namespace").fits(&running[..1]) && share(10, "Namespace").fits(&[]));
        assert!(!share(10, "ConfigMap").fits(&[share(11, "Namespace")]));
        assert!(!share(10, "ConfigMap").fits(&[Share::alone(&all[11])]));
        let large = |bytes: u64| Share { bytes, ..share(12, "ConfigMap") };
        assert!(
            large(TOGETHER).fits(&running[..1])
                && !large(TOGETHER + 1).fits(&running[..1])
                && large(TOGETHER + 1).fits(&[])
        );
    }
}
