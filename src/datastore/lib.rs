//! The datastore room.
