//! A bucket of S3, as far as snapshots need one: files are put into it, listed, taken out and deleted.
//!
//! ```text
//! Bucket ─► client ─► signature (AWS' version 4) ─► connection: proxy, TLS ─► the object, its listing, or a refusal in one sentence
//! ```
//! Requests are made over the HTTP stack of everything else. What a bucket can answer is bounded before it is read, and an object is never
//! in memory as a whole.

#[cfg(test)]
mod against_a_server;
mod bucket;
mod client;
mod connection;
mod error;
mod listing;
mod payload;
mod refusal;
mod signature;
#[cfg(test)]
mod testing;
mod tls;

pub use bucket::{Bucket, Metadata, Object};
pub use error::S3Error;
