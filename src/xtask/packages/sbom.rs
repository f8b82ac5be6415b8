//! Bills of materials in CycloneDX's format: of k3s by cargo-cyclonedx, of each component by cyclonedx-gomod, which reads what
//! Go's linker wrote into the program.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    component::{Component, Scratch},
    image::Image,
    process::{cargo, succeed},
    workspace,
};

const CARGO_TOOL: (&str, &str) = ("cargo-cyclonedx", "0.5.9");
const GO_TOOL: &str = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0";

/// Writes `<program>.cdx.json` for each program of `dist` and of the images in it, without times and serial numbers.
pub(super) fn write(dist: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let tools = workspace::cache()?.join("tools");
    of_k3s(&tools, folder)?;
    let gomod = tools.join("cyclonedx-gomod");
    if !gomod.join("cyclonedx-gomod").exists() {
        succeed(Command::new("go").env("GOBIN", &gomod).args(["install", GO_TOOL]))?;
    }
    let images = Image::all()?;
    let is_in = |image: &&Image| dist.join("share/k3s/images").join(image.name()).with_extension("tar").exists();
    let in_images: BTreeSet<_> = images.iter().filter(is_in).flat_map(Image::components).collect();
    let is_shipped = |component: &&Component| component.libexec().is_some() || in_images.contains(component.name());
    for component in Component::all()?.iter().filter(is_shipped) {
        let built = component.build()?.folder;
        for program in component.programs() {
            let bill = folder.join(format!("{program}.cdx.json"));
            let mut tool = Command::new(gomod.join("cyclonedx-gomod"));
            tool.args(["bin", "-json", "-noserial", "-notimestamp", "-output"]).arg(bill).arg(built.join(program));
            succeed(&mut tool)?;
        }
    }
    Ok(())
}

fn of_k3s(tools: &Path, folder: &Path) -> Result<()> {
    let (name, version) = CARGO_TOOL;
    let root = tools.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        let quick = ["--debug", "--config", "profile.dev.debug=0"];
        succeed(
            cargo()
                .args(["install", "--quiet", "--locked", name, "--version", version])
                .args(quick)
                .arg("--root")
                .arg(&root),
        )?;
    }
    // It writes beside each manifest of the workspace, and names its folder in what it writes.
    let scratch = Scratch::create(&workspace::target(), "sbom")?;
    workspace::copy_sources(&scratch.0)?;
    let mut tool = Command::new(program);
    tool.current_dir(&scratch.0).env("SOURCE_DATE_EPOCH", "0");
    succeed(tool.args(["cyclonedx", "--format", "json", "--manifest-path", "src/k3s/Cargo.toml"]))?;
    let bill = fs::read_to_string(scratch.0.join("src/k3s/k3s.cdx.json")).context("cargo-cyclonedx wrote nothing")?;
    fs::write(folder.join("k3s.cdx.json"), bill.replace(&scratch.0.display().to_string(), "/k3s"))?;
    Ok(())
}
