//! The k3s binary.
fn main() {}
