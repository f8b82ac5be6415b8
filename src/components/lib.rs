//! The components room.
