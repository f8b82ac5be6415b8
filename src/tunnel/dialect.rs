//! Which messages both ends of a tunnel know.

use http::{HeaderMap, HeaderName, HeaderValue};

/// In the websocket's handshake: a node offers, its server accepts by the same header. remotedialer passes over it.
const HEADER: HeaderName = HeaderName::from_static("k3s-tunnel-dialect");
const HALF_CLOSE: HeaderValue = HeaderValue::from_static("half-close");

/// How a tunnel's connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// As in remotedialer: an Error ends both directions. Whoever sends it still takes what comes until the peer's own Error.
    #[default]
    Remotedialer,
    /// Between two ends of ours each direction ends by itself, with a CloseWrite; an Error ends both.
    HalfClose,
}

impl Dialect {
    /// What the head of a request or of its answer speaks of.
    pub fn of(headers: &HeaderMap) -> Self {
        if headers.get(HEADER).is_some_and(|value| value == HALF_CLOSE) { Self::HalfClose } else { Self::Remotedialer }
    }

    /// Says so in a head.
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        match self {
            Self::Remotedialer => {}
            Self::HalfClose => drop(headers.insert(HEADER, HALF_CLOSE)),
        }
    }
}
