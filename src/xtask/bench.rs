//! `cargo xtask bench`: what the product costs, beside the same programs started by hand.
