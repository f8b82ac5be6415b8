//! Files that are read whole: no configuration is so long that it could take the machine's memory.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// Bytes of a configuration file, and of the values that it sets.
pub(crate) const LONGEST: usize = 1 << 20;

/// The contents of a file that has to be there.
///
/// # Errors
/// If it cannot be read, or is longer than [`LONGEST`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > LONGEST {
        let problem = format!("it is longer than {} MiB", LONGEST >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(bytes)
}
