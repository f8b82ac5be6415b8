//! The promises of a datastore, each a story of a real server that meets with an accident.

mod run;

mod crashes;
mod power_cuts;
mod takeover;
