//! What a connection may keep unread: all that a peer can have sent when it is asked to pause.

use std::fs;

use crate::connection::PAUSE_ABOVE;

/// At least, bytes. TCP's buffers long held 10 MiB of a connection by default; some machines allow more than three times as much.
pub(crate) const LEAST: usize = 16 << 20;
/// At most, whatever buffers this machine allows: a peer that does not heed Pause is given up some day.
const MOST: usize = 64 << 20;
/// What lies elsewhere than in TCP's buffers: with TLS, the websocket and the peer's writers.
const ELSEWHERE: usize = 2 << 20;

/// Bytes that a connection keeps unread before it is given up. An end that stood still for a moment finds all of TCP's buffers full when it
/// goes on; the peer's are taken to be as this machine's.
pub(crate) fn of_a_connection() -> usize {
    let sizes = |buffer: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{buffer}")).unwrap_or_default();
    of_buffers([&sizes("tcp_rmem"), &sizes("tcp_wmem")])
}

fn of_buffers(sizes: [&str; 2]) -> usize {
    let buffers = sizes.into_iter().filter_map(most).fold(0, usize::saturating_add);
    buffers.saturating_add(PAUSE_ABOVE + ELSEWHERE).clamp(LEAST, MOST)
}

/// The last of the three sizes that the kernel tells of a buffer: least, default and most.
fn most(sizes: &str) -> Option<usize> {
    sizes.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_the_buffers_of_a_connection_do() {
        assert_eq!(of_buffers(["4096\t131072\t6291456\n", "4096\t16384\t4194304\n"]), 16 << 20);
        assert_eq!(of_buffers(["4096\t131072\t33554432\n", "4096\t16384\t4194304\n"]), 40 << 20);
        assert_eq!(of_buffers(["4096\t131072\t1073741824\n", "what is this"]), 64 << 20);
        assert_eq!(of_buffers(["", ""]), 16 << 20);
    }
}
