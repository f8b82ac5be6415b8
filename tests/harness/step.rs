//! A scenario's steps, told as they go.

use std::time::Instant;

/// Runs one step of a scenario and prints its name and how long it took: the last name is where a failed scenario stood.
pub fn step<T>(name: &str, run: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    println!("- {name}");
    let value = run();
    println!("  {:.1} s", started.elapsed().as_secs_f64());
    value
}
