//! `k3s`: one program that turns a machine into a Kubernetes server or worker.
// Whoever reads the output may have gone, and these macros panic then: `cli/output.rs` has what to use.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod init;
mod version;

use std::process::ExitCode;

use k3s_supervise::log::Target;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Err(error) = cli::hide_secrets(&args) {
        cli::tell(format_args!(
            "k3s: other users of this machine can read the token on the command line, give it by a file instead: {error}"
        ));
    }
    match init::run_if_first(&args) {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(error) => {
            cli::tell(format_args!(
                "k3s: as the first process of a container it cannot run itself as a child: {error}"
            ));
            return ExitCode::FAILURE;
        }
    }
    match cli::run(args) {
        Ok(code) => code,
        Err(failure) => {
            // As journald reads the priority of a line (sd-daemon(3)); by then the log may not have begun.
            let priority = if matches!(Target::detect(), Target::Journal { .. }) { "<3>" } else { "" };
            cli::tell(format_args!("{priority}k3s: {failure}"));
            failure.code()
        }
    }
}
