//! Fuzz targets, all in one program; `cargo xtask fuzz` builds and runs it.
//!
//! A new target is a function of bytes in its room, behind that room's feature `fuzz`, a line in [`TARGETS`], and a folder of
//! seeds, `corpus/NAME`. What a fuzzer finds goes there too, once it is mended.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("requests", k3s_datastore::fuzz::requests),
    ("database", k3s_datastore::fuzz::database),
    ("watches", k3s_datastore::fuzz::watches),
    ("tokens", k3s_identity::fuzz::tokens),
    ("signing-requests", k3s_pki::fuzz::signing_requests),
    ("headers", k3s_supervisor_api::fuzz::headers),
    ("tunnel", k3s_tunnel::fuzz::session),
];

/// The one that `FUZZ_TARGET` names.
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    target.unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}, which is no target")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
