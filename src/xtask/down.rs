//! `cargo xtask down`: takes away everything that `cargo xtask up` put on this machine.
