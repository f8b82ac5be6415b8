//! Lists the packaged manifests: each file below `manifests/`, but for the definitions that are applied before all else.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const DEFINITIONS: &str = "crds";

fn main() -> Result<(), Box<dyn Error>> {
    let manifests = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../manifests");
    println!("cargo::rerun-if-changed={}", manifests.display());
    let mut paths = Vec::new();
    list(&manifests, Path::new(""), &mut paths)?;
    // As k3s applies them.
    paths.sort();
    let mut packaged = String::from("&[\n");
    for path in paths {
        let file = manifests.join(&path);
        writeln!(packaged, "    Packaged {{ path: {path:?}, text: include_str!({file:?}) }},")?;
    }
    packaged.push(']');
    Ok(fs::write(PathBuf::from(env::var("OUT_DIR")?).join("packaged.rs"), packaged)?)
}

fn list(manifests: &Path, folder: &Path, paths: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(manifests.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if !entry.file_type()?.is_dir() {
            paths.push(path.into_os_string().into_string().map_err(|path| format!("{} is not UTF-8", path.display()))?);
        } else if path != Path::new(DEFINITIONS) {
            list(manifests, &path, paths)?;
        }
    }
    Ok(())
}
