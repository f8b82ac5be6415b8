//! The disk under the store, as SQLite sees it: one that forgets what it was told to keep, or that fails once.
//!
//! It is SQLite's own VFS with three of its calls exchanged: `xWrite`, `xSync`, `xTruncate`.

// SQLite takes a VFS as C tables of functions; rusqlite has no safe way to register one.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    fmt,
    io::{self, Write as _},
    ptr,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rusqlite::ffi;

/// What the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Everything that it promises.
    Honest,
    /// It answers a sync at once and does nothing: a store with `synchronous=OFF`.
    Forgetful,
    /// The `nth` call of the failure's kind fails, counted from one over all files; the others succeed.
    Failing {
        /// Which call fails, and how.
        failure: Failure,
        /// Counted from one.
        nth: u64,
    },
}

/// A call that fails, with the code that SQLite's own VFS gives then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A write of nothing: `SQLITE_IOERR_WRITE`.
    Write,
    /// A write that finds no room: `SQLITE_FULL`.
    WriteFull,
    /// A write that finds room for its first half: `SQLITE_FULL`.
    WriteHalf,
    /// A sync: `SQLITE_IOERR_FSYNC`.
    Sync,
    /// A truncation: `SQLITE_IOERR_TRUNCATE`.
    Truncate,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Write, Self::WriteFull, Self::WriteHalf, Self::Sync, Self::Truncate];

    const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::WriteFull => "write-full",
            Self::WriteHalf => "write-half",
            Self::Sync => "sync",
            Self::Truncate => "truncate",
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Honest => f.write_str("honest"),
            Self::Forgetful => f.write_str("forgetful"),
            Self::Failing { failure, nth } => write!(f, "{}:{nth}", failure.name()),
        }
    }
}

impl FromStr for Disk {
    type Err = anyhow::Error;

    /// `honest`, `forgetful`, or a failure and its number, as in `write-half:17`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, nth) = match text {
            "honest" => return Ok(Self::Honest),
            "forgetful" => return Ok(Self::Forgetful),
            _ => text.split_once(':').with_context(|| format!("no disk is called {text:?}"))?,
        };
        let failure = Failure::ALL.into_iter().find(|failure| failure.name() == name);
        let failure = failure.with_context(|| format!("no failure is called {name:?}"))?;
        Ok(Self::Failing { failure, nth: nth.parse().with_context(|| format!("{nth:?} is no number"))? })
    }
}

/// What the process prints when its disk fails.
pub const DISK_FAILED: &str = "the disk has failed";

/// Name of the VFS in SQLite.
const NAME: &std::ffi::CStr = c"test-disk";

/// Registers the disk with SQLite and returns its name; nothing for an honest one. A process has one disk.
///
/// # Errors
/// A second disk, or SQLite's refusal.
pub fn register(disk: Disk) -> Result<Option<String>> {
    if disk == Disk::Honest {
        return Ok(None);
    }
    // SAFETY: a null name asks for the default VFS, which is never freed.
    let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()).as_ref() }.context("SQLite has no VFS")?;
    let shim = Shim { disk, calls: AtomicU64::new(0), open: default.xOpen.context("SQLite's VFS opens nothing")? };
    SHIM.set(shim).map_err(|_| anyhow!("the process has a disk already"))?;
    // SQLite keeps the pointer for the life of the process.
    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        zName: NAME.as_ptr(),
        pNext: ptr::null_mut(),
        xOpen: Some(open),
        ..*default
    }));
    // SAFETY: the table is complete, since it is a copy of a registered one, and lives for ever.
    let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
    ensure!(code == ffi::SQLITE_OK, "SQLite refuses the disk with code {code}");
    Ok(Some(NAME.to_str()?.to_owned()))
}

type Open = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    ffi::sqlite3_filename,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;

/// A static, since SQLite calls functions and not closures, and the VFS that we copy needs its `pAppData` itself.
static SHIM: OnceLock<Shim> = OnceLock::new();

struct Shim {
    disk: Disk,
    /// Of the kind that is to fail.
    calls: AtomicU64,
    /// The default VFS's.
    open: Open,
}

/// Calls of an open file, ours first: a pointer to them is one to the whole.
#[repr(C)]
struct Calls {
    ours: ffi::sqlite3_io_methods,
    base: &'static ffi::sqlite3_io_methods,
}

impl Shim {
    /// Whether this call is the one that fails.
    fn fails(&self, calls: &[Failure]) -> Option<Failure> {
        let Disk::Failing { failure, nth } = self.disk else { return None };
        if !calls.contains(&failure) || self.calls.fetch_add(1, Ordering::Relaxed) + 1 != nth {
            return None;
        }
        // Whoever listened may have gone.
        let _ = writeln!(io::stdout(), "{DISK_FAILED}");
        Some(failure)
    }
}

fn shim() -> &'static Shim {
    SHIM.get().expect("set before the VFS is registered")
}

/// The calls below ours.
///
/// # Safety
/// The file must have been opened by [`open`].
unsafe fn below(file: *mut ffi::sqlite3_file) -> &'static ffi::sqlite3_io_methods {
    // SAFETY: `open` has set the table to one inside a `Calls`, which lives for ever.
    unsafe { (*(*file).pMethods.cast::<Calls>()).base }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's own arguments, handed on; our VFS is a copy of the one that this function belongs to.
    let code = unsafe { (shim().open)(vfs, name, file, flags, out) };
    // SAFETY: SQLite gives a file of `szOsFile` bytes, and the default VFS sets its table to a static one, or to null.
    if let Some(base) = unsafe { (*file).pMethods.as_ref() } {
        let ours =
            ffi::sqlite3_io_methods { xWrite: Some(write), xSync: Some(sync), xTruncate: Some(truncate), ..*base };
        // A few hundred bytes a file; SQLite does not say when it needs them no more.
        let calls: &Calls = Box::leak(Box::new(Calls { ours, base }));
        // SAFETY: as above.
        unsafe { (*file).pMethods = ptr::from_ref(calls).cast() };
    }
    code
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, bytes: c_int, at: i64) -> c_int {
    // SAFETY: SQLite calls this for files that our VFS has opened.
    let (shim, base) = (shim(), unsafe { below(file) });
    let write = |bytes| match base.xWrite {
        // SAFETY: SQLite's own arguments, of which at most `bytes` shrinks.
        Some(write) => unsafe { write(file, data, bytes, at) },
        None => ffi::SQLITE_IOERR_WRITE,
    };
    match shim.fails(&[Failure::Write, Failure::WriteFull, Failure::WriteHalf]) {
        None => write(bytes),
        Some(Failure::WriteFull) => ffi::SQLITE_FULL,
        Some(Failure::WriteHalf) => {
            write(bytes / 2);
            ffi::SQLITE_FULL
        }
        Some(_) => ffi::SQLITE_IOERR_WRITE,
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite calls this for files that our VFS has opened.
    let (shim, base) = (shim(), unsafe { below(file) });
    match (shim.disk, shim.fails(&[Failure::Sync]), base.xSync) {
        (Disk::Forgetful, ..) => ffi::SQLITE_OK,
        // SAFETY: SQLite's own arguments, handed on.
        (_, None, Some(sync)) => unsafe { sync(file, flags) },
        _ => ffi::SQLITE_IOERR_FSYNC,
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: SQLite calls this for files that our VFS has opened.
    let (shim, base) = (shim(), unsafe { below(file) });
    match (shim.fails(&[Failure::Truncate]), base.xTruncate) {
        // SAFETY: SQLite's own arguments, handed on.
        (None, Some(truncate)) => unsafe { truncate(file, size) },
        _ => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn disks_have_names() {
        let failing = Failure::ALL.map(|failure| Disk::Failing { failure, nth: 7 });
        for disk in [Disk::Honest, Disk::Forgetful].into_iter().chain(failing) {
            assert_eq!(disk.to_string().parse::<Disk>().unwrap(), disk);
        }
        for wrong in ["", "broken", "sink:1", "sync:x"] {
            assert!(wrong.parse::<Disk>().is_err(), "{wrong}");
        }
    }

    /// One test for all, since a process has one disk.
    #[test]
    fn only_the_chosen_call_fails() {
        let directory = tempfile::tempdir().unwrap();
        let vfs = register("sync:9".parse().unwrap()).unwrap().unwrap();
        assert!(register(Disk::Forgetful).is_err(), "a second disk");
        let flags = rusqlite::OpenFlags::default();
        let database = Connection::open_with_flags_and_vfs(directory.path().join("db"), flags, vfs.as_str()).unwrap();
        database.execute_batch("PRAGMA synchronous = EXTRA; CREATE TABLE t (n)").unwrap();
        let inserted: Vec<_> = (0..5).map(|n| database.execute("INSERT INTO t VALUES (?1)", [n])).collect();
        let failed: Vec<_> = inserted.iter().filter_map(|result| result.as_ref().err()).collect();
        let [rusqlite::Error::SqliteFailure(error, _)] = failed[..] else { panic!("one should fail: {failed:?}") };
        assert_eq!(error.extended_code, ffi::SQLITE_IOERR_FSYNC);
        let kept: i64 = database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 4);
    }
}
