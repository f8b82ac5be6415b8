//! How a verb fails: one sentence and an exit code from sysexits.h.

use std::{error::Error, fmt, process::ExitCode};

use sysexits::ExitCode as Sysexit;

/// The command line was wrong.
pub(crate) const USAGE: Sysexit = Sysexit::Usage;
/// What was given is not what it should be.
pub(crate) const DATA_ERROR: Sysexit = Sysexit::DataErr;
/// What was named is not there.
pub(crate) const NO_INPUT: Sysexit = Sysexit::NoInput;
/// A service or program that is needed is not there.
pub(crate) const UNAVAILABLE: Sysexit = Sysexit::Unavailable;
/// Something that should not happen did.
pub(crate) const SOFTWARE: Sysexit = Sysexit::Software;
/// The operating system said no.
pub(crate) const OS_ERROR: Sysexit = Sysexit::OsErr;
/// This user may not do it.
pub(crate) const NO_PERMISSION: Sysexit = Sysexit::NoPerm;
/// What should be made is there already.
pub(crate) const CANNOT_CREATE: Sysexit = Sysexit::CantCreat;
/// Reading or writing failed.
pub(crate) const IO_ERROR: Sysexit = Sysexit::IoErr;
/// Later it may be possible.
pub(crate) const TEMPORARY: Sysexit = Sysexit::TempFail;
/// A configuration file does not say what it has to.
pub(crate) const CONFIGURATION: Sysexit = Sysexit::Config;

/// What went wrong and what to do, for a person, and a number for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Sysexit,
    sentence: String,
}

impl Failure {
    pub(crate) fn new(code: Sysexit, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }

    /// An error with its causes, each once: a cause that its parent's text already tells is left out.
    pub(crate) fn from_error(code: Sysexit, error: &dyn Error) -> Self {
        let mut sentence = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !sentence.contains(&text) {
                sentence = format!("{sentence}: {text}");
            }
            cause = error.source();
        }
        Self { code, sentence }
    }

    /// Help and version are no failures; everything else is shortened to its first sentence.
    pub(crate) fn from_clap(error: &clap::Error) -> Result<ExitCode, Self> {
        if error.exit_code() == 0 || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // Nothing to do for a reader that closed the pipe.
            let _ = error.print();
            return if error.exit_code() == 0 { Ok(ExitCode::SUCCESS) } else { Ok(USAGE.into()) };
        }
        let text = error.to_string();
        // What is missing is listed below the first line, up to an empty one.
        let told: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let line = told.join(" ");
        let line = line.trim_start_matches("error: ");
        Err(Self::new(USAGE, format!("{line}; see k3s --help")))
    }

    pub(crate) fn code(&self) -> ExitCode {
        self.code.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}
