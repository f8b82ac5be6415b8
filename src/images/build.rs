//! Reads the names of images from their declarations.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..");
    let images = root.join("images");
    println!("cargo::rerun-if-changed=build.rs");
    let mut names = Vec::new();
    for entry in fs::read_dir(&images)? {
        let entry = entry?;
        // The declarations alone, not the folder: cargo would look at all that is below it, the edge image's files too.
        let declaration = entry.path().join("image.json");
        if declaration.exists() {
            println!("cargo::rerun-if-changed={}", declaration.display());
            names.push(entry.file_name().into_string().map_err(|name| format!("{} is not UTF-8", name.display()))?);
        }
    }
    names.sort();
    let (mut constants, mut list) = (String::new(), String::new());
    for name in names {
        let image = image(&root, &name).map_err(|error| format!("images/{name}/image.json: {error}"))?;
        let constant = name.to_uppercase().replace('-', "_");
        writeln!(constants, "/// The image `{name}`.\npub const {constant}: &str = {image:?};")?;
        writeln!(list, "    ({name:?}, {constant}),")?;
    }
    let declared = format!("{constants}\nconst DECLARED: &[(&str, &str)] = &[\n{list}];\n");
    Ok(fs::write(PathBuf::from(env::var("OUT_DIR")?).join("declared.rs"), declared)?)
}

fn image(root: &Path, name: &str) -> Outcome<String> {
    let declaration = read_json(&root.join("images").join(name).join("image.json"))?;
    let tag = text(&declaration, "tag")?;
    let tag = match tag.strip_prefix('{').and_then(|tag| tag.strip_suffix('}')) {
        Some("k3s") => env::var("CARGO_PKG_VERSION")?,
        Some(component) => version(&root.join("nix/components").join(component))?,
        None => tag.to_owned(),
    };
    Ok(format!("{}:{tag}", text(&declaration, "repository")?))
}

/// What the component's go.mod requires of its module, without the `v`.
fn version(component: &Path) -> Outcome<String> {
    let (declaration, go_mod) = (component.join("component.json"), component.join("go.mod"));
    for file in [&declaration, &go_mod] {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let declaration = read_json(&declaration)?;
    let module = text(&declaration, "module")?;
    let required = fs::read_to_string(&go_mod).map_err(|error| format!("{}: {error}", go_mod.display()))?;
    let version = required.lines().find_map(|line| {
        let mut words = line.trim().strip_prefix("require ").unwrap_or(line).split_whitespace();
        (words.next() == Some(module)).then(|| words.next()?.strip_prefix('v')).flatten()
    });
    Ok(version.ok_or_else(|| format!("{} requires no version of {module}", go_mod.display()))?.to_owned())
}

fn read_json(path: &Path) -> Outcome<Value> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn text<'a>(declaration: &'a Value, key: &str) -> Outcome<&'a str> {
    Ok(declaration[key].as_str().ok_or_else(|| format!("it has no {key}"))?)
}
