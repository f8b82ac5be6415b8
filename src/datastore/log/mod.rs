//! The log: one row, one revision, in a table that kine can read and go on with.

pub(crate) mod kine;
pub(crate) mod sqlite;
