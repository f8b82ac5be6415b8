//! `cargo xtask up`: a single-node cluster on this machine, built from this tree, with a demo pod.
