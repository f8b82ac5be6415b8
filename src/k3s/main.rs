//! `k3s`: one program that turns a machine into a Kubernetes server or worker.

mod cli;
mod version;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("k3s: {failure}");
            failure.code()
        }
    }
}
