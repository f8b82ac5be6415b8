//! The table of sizes in docs/immutable-systems.md.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::folder;

/// Compression of what is downloaded once and unpacked by machines of any size.
const ZSTD_LEVEL: i32 = 19;

/// `zstd --long=27`: finds what is alike up to 128 MiB apart. Whoever unpacks it needs as much memory.
const LONG_WINDOW_LOG: u32 = 27;

pub(super) fn table(dist: &Path, image: &Path, extensions: &[PathBuf; 2]) -> Result<String> {
    let mut table = "| | MB | as zstd, MB |\n|---|---:|---:|\n".to_owned();
    let mut row = |name: &str, (size, compressed): (u64, u64)| {
        writeln!(table, "| {name} | {} | {} |", megabytes(size), megabytes(compressed))
    };
    row("`bin/k3s`", of_file(&dist.join("bin/k3s"))?)?;
    for program in folder::files(&dist.join("libexec/k3s"))? {
        let path = dist.join("libexec/k3s").join(&program);
        if !path.is_symlink() {
            row(&format!("`libexec/k3s/{}`", program.display()), of_file(&path)?)?;
        }
    }
    let images = dist.join("share/k3s/images");
    for image in folder::files(&images)? {
        row(&format!("`share/k3s/images/{}`", image.display()), of_file(&images.join(&image))?)?;
    }
    row("**the package**", of_tree(dist, None)?)?;
    row("the package, `--long=27`", of_tree(dist, Some(LONG_WINDOW_LOG))?)?;
    row("OCI image", of_file(image)?)?;
    row("sysext (EROFS, lz4hc)", of_file(&extensions[0])?)?;
    row("confext", of_file(&extensions[1])?)?;
    Ok(table)
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10)
}

fn of_file(path: &Path) -> Result<(u64, u64)> {
    let mut file = File::open(path).with_context(|| format!("Cannot read {}", path.display()))?;
    let mut zstd = zstd::Encoder::new(Counter(0), ZSTD_LEVEL)?;
    io::copy(&mut file, &mut zstd)?;
    Ok((fs::metadata(path)?.len(), zstd.finish()?.0))
}

/// A tree counts as one tar, compressed with a longer window if one is given.
fn of_tree(tree: &Path, window_log: Option<u32>) -> Result<(u64, u64)> {
    let mut size = 0;
    let mut zstd = zstd::Encoder::new(Counter(0), ZSTD_LEVEL)?;
    if let Some(log) = window_log {
        zstd.long_distance_matching(true)?;
        zstd.window_log(log)?;
    }
    for file in folder::files(tree)? {
        let path = tree.join(file);
        if !path.is_symlink() {
            size += fs::metadata(&path)?.len();
            io::copy(&mut File::open(&path)?, &mut zstd)?;
        }
    }
    Ok((size, zstd.finish()?.0))
}

struct Counter(u64);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
