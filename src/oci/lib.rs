//! The oci room.
