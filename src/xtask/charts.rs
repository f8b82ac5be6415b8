//! Packing the Helm charts of add-ons: `charts/<name>/` as `<name>-<version>.tgz`, the same bytes each time.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde::Deserialize;
use tar::{EntryType, Header};

use crate::{component::Component, folder, workspace};

const CHART: &str = "Chart.yaml";
/// Beside a chart: which of its files are a component's.
const ELSEWHERE: &str = "files.json";

/// A file that a component brings along.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    component: String,
    file: PathBuf,
}

/// Packs every chart into `to`. Components that they hold files of are built first. Prints one line a chart.
pub(crate) fn pack(to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("Cannot create {}", to.display()))?;
    let charts = folder();
    for name in workspace::declared(&charts, CHART)? {
        let archive = pack_chart(&name, to).with_context(|| format!("Cannot pack the chart {name}"))?;
        println!("{}", archive.file_name().unwrap_or_default().display());
    }
    Ok(())
}

fn folder() -> PathBuf {
    workspace::root().join("charts")
}

fn pack_chart(name: &str, to: &Path) -> Result<PathBuf> {
    let chart = folder().join(name);
    let mut files = BTreeMap::new();
    for file in folder::files(&chart)? {
        let contents = fs::read(chart.join(&file))?;
        if file == Path::new(ELSEWHERE) {
            files.extend(of_components(&contents)?);
        } else {
            files.insert(file, contents);
        }
    }
    let described = fs::read_to_string(chart.join(CHART))?;
    let field = |field| value(&described, field).with_context(|| format!("{CHART} has no {field}"));
    ensure!(field("name")? == name, "{CHART} has another name");
    let archive = to.join(format!("{name}-{}.tgz", field("version")?));
    let file = File::create(&archive).with_context(|| format!("Cannot create {}", archive.display()))?;
    // Without a time and the name of a file.
    let mut tar = tar::Builder::new(GzBuilder::new().write(file, Compression::best()));
    for (path, contents) in &files {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        tar.append_data(&mut header, Path::new(name).join(path), &contents[..])?;
    }
    tar.into_inner()?.finish()?;
    Ok(archive)
}

fn of_components(declaration: &[u8]) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let sources: BTreeMap<PathBuf, Source> =
        serde_json::from_slice(declaration).with_context(|| format!("Wrong declaration {ELSEWHERE}"))?;
    let read = |Source { component, file }: Source| {
        let path = Component::named(&component)?.build()?.folder.join(file);
        fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))
    };
    sources.into_iter().map(|(file, source)| Ok((file, read(source)?))).collect()
}

/// A field of Chart.yaml's outermost level.
fn value<'a>(described: &'a str, field: &str) -> Option<&'a str> {
    described.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_as_their_add_on_names_them() {
        let image = k3s_images::named("traefik").unwrap();
        for name in ["traefik", "traefik-crd"] {
            let described = fs::read_to_string(folder().join(name).join(CHART)).unwrap();
            let [version, program] = ["version", "appVersion"].map(|field| value(&described, field).unwrap());
            let manifest = fs::read_to_string(workspace::root().join("manifests/traefik.yaml")).unwrap();
            assert!(manifest.contains(&format!("/static/charts/{name}-{version}.tgz\n")), "{name} {version}");
            assert_eq!(image.rsplit_once(':').unwrap().1, program, "the chart {name} is of another Traefik");
        }
    }

    #[test]
    fn a_chart_is_the_same_bytes_each_time() {
        let to = tempfile::tempdir().unwrap();
        let archives = ["a", "b"].map(|name| {
            let to = to.path().join(name);
            fs::create_dir(&to).unwrap();
            fs::read(pack_chart("traefik", &to).unwrap()).unwrap()
        });
        assert!(archives[0] == archives[1]);
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&archives[0][..]));
        let paths: Vec<_> = tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(paths.contains(&PathBuf::from("traefik/Chart.yaml")) && paths.is_sorted(), "{paths:?}");
    }
}
