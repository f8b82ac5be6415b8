//! Wrong configurations.
