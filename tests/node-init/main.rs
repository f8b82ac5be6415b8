//! The processes that make and hold a node of the cluster tests; see the `cluster_tests` crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    match cluster_tests::node_init(std::env::args_os()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("node-init: {error:#}.");
            ExitCode::FAILURE
        }
    }
}
