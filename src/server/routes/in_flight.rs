//! How many nodes are served at the same time.

use http::Method;
use k3s_http::Status;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Requests that only read.
const READING: usize = 20;
/// Requests that have something signed.
const CHANGING: usize = 10;

/// k3s' limits: they bound how many agents join at once. Those beyond are told to come again, which they do.
#[derive(Debug)]
pub(super) struct InFlight {
    reading: Semaphore,
    changing: Semaphore,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self { reading: Semaphore::new(READING), changing: Semaphore::new(CHANGING) }
    }

    /// A place, kept until the request is answered.
    pub(super) fn begin(&self, method: &Method) -> Result<SemaphorePermit<'_>, Status> {
        let places = if *method == Method::GET || *method == Method::HEAD { &self.reading } else { &self.changing };
        places.try_acquire().map_err(|_| Status::too_many_requests("Too many requests, please try again later."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_writers_have_places_of_their_own() {
        let limit = InFlight::new();
        let mut writing: Vec<_> = (0..10).map(|_| limit.begin(&Method::POST).unwrap()).collect();
        assert!(limit.begin(&Method::POST).is_err());
        let _reading: Vec<_> = (0..20).map(|_| limit.begin(&Method::GET).unwrap()).collect();
        assert!(limit.begin(&Method::GET).is_err());
        writing.pop();
        assert!(limit.begin(&Method::POST).is_ok());
    }
}
