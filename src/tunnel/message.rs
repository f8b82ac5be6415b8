//! One tunnel message: what a binary websocket message holds.
//!
//! ```text
//! varint id | varint connection | varint type | varint deadline (Data and Connect only) | payload
//! ```
//!
//! Varints are Go's signed ones, zig-zag. The id counts the messages of a sender and the deadline, once milliseconds, is always
//! 15000: remotedialer writes both and reads neither (`message.go`). Types that a peer does not know are ignored by it.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A connection within a session; the side that opens it counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(pub(crate) i64);

/// What a connection is to lead to, in the words of Go's `net.Dial`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `tcp`, in all that k3s asks for.
    pub network: String,
    /// `host:port`.
    pub address: String,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All was said.
    Eof,
    /// It broke off, for this reason.
    Error(String),
}

/// What one side tells the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Bytes of a connection.
    Data { connection: ConnectionId, bytes: Bytes },
    /// Opens a connection; nothing confirms it.
    Connect { connection: ConnectionId, target: Target },
    /// A connection has ended, and takes no more data.
    Error { connection: ConnectionId, ending: Ending },
    /// Another server's client can be reached through this session: between servers, which k3s does not use.
    AddClient { session: String },
    /// The reverse.
    RemoveClient { session: String },
    /// Send no more data for now.
    Pause { connection: ConnectionId },
    /// Send again.
    Resume { connection: ConnectionId },
    /// All connections that the client has.
    SyncConnections { connections: Vec<ConnectionId> },
    /// The sender writes nothing more on a connection, and goes on reading. Ours alone: see [`Dialect`](crate::Dialect).
    CloseWrite { connection: ConnectionId },
    /// Of a later version; to be ignored.
    Unknown { kind: i64 },
}

/// A message that nobody can have meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within its head.
    #[error("the message ends within its head")]
    Short,
    /// A number takes more than 64 bits.
    #[error("a number in the message's head takes more than 64 bits")]
    Overflow,
    /// A Connect without `network/address`, or with more than 266 bytes of it.
    #[error("the target of a Connect is not network/address in at most {CONNECT_LIMIT} bytes")]
    Target,
    /// A SyncConnections that does not consist of 64-bit numbers.
    #[error("the list of connections is not made of 64-bit numbers")]
    Connections,
}

const DATA: i64 = 1;
const CONNECT: i64 = 2;
const ERROR: i64 = 3;
const ADD_CLIENT: i64 = 4;
const REMOVE_CLIENT: i64 = 5;
const PAUSE: i64 = 6;
const RESUME: i64 = 7;
const SYNC_CONNECTIONS: i64 = 8;
/// Far from those that remotedialer may yet add.
const CLOSE_WRITE: i64 = 1001;

/// What stands where deadlines stood.
const DEADLINE: i64 = 15_000;
/// The head of a message at its longest: three varints of 64 bits and the deadline.
const HEAD: usize = 3 * 10 + 3;
/// Bytes of a Connect's target that are read.
const CONNECT_LIMIT: usize = 266;
/// Bytes of an Error's text, and of a session's name, that are read.
const TEXT_LIMIT: usize = 100;
/// The text of an Error that is none.
const EOF: &str = "EOF";

impl Message {
    /// Reads a whole websocket message. Texts are cut where remotedialer cuts them.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let _id = varint(&mut bytes)?;
        let connection = ConnectionId(varint(&mut bytes)?);
        let kind = varint(&mut bytes)?;
        if matches!(kind, DATA | CONNECT) {
            let _deadline = varint(&mut bytes)?;
        }
        Ok(match kind {
            DATA => Self::Data { connection, bytes },
            CONNECT => Self::Connect { connection, target: Target::decode(&bytes)? },
            ERROR => Self::Error { connection, ending: Ending::from(text(&bytes)) },
            ADD_CLIENT => Self::AddClient { session: text(&bytes) },
            REMOVE_CLIENT => Self::RemoveClient { session: text(&bytes) },
            PAUSE => Self::Pause { connection },
            RESUME => Self::Resume { connection },
            SYNC_CONNECTIONS => Self::SyncConnections { connections: connections(&bytes)? },
            CLOSE_WRITE => Self::CloseWrite { connection },
            kind => Self::Unknown { kind },
        })
    }

    /// The websocket message, as the sender's `id`th.
    pub(crate) fn encode(&self, id: i64) -> Bytes {
        match self {
            Self::Data { connection, bytes } => encode_data(id, *connection, bytes),
            Self::Connect { connection, target } => encode(id, *connection, CONNECT, target.to_string().as_bytes()),
            Self::Error { connection, ending } => encode(id, *connection, ERROR, ending.text().as_bytes()),
            Self::AddClient { session } => encode(id, ConnectionId(0), ADD_CLIENT, session.as_bytes()),
            Self::RemoveClient { session } => encode(id, ConnectionId(0), REMOVE_CLIENT, session.as_bytes()),
            Self::Pause { connection } => encode(id, *connection, PAUSE, &[]),
            Self::Resume { connection } => encode(id, *connection, RESUME, &[]),
            Self::SyncConnections { connections } => {
                let payload: Vec<u8> = connections.iter().flat_map(|connection| connection.0.to_le_bytes()).collect();
                encode(id, ConnectionId(0), SYNC_CONNECTIONS, &payload)
            }
            Self::CloseWrite { connection } => encode(id, *connection, CLOSE_WRITE, &[]),
            Self::Unknown { kind } => encode(id, ConnectionId(0), *kind, &[]),
        }
    }
}

/// [`Message::Data`] from borrowed bytes, which are copied once.
pub(crate) fn encode_data(id: i64, connection: ConnectionId, payload: &[u8]) -> Bytes {
    encode(id, connection, DATA, payload)
}

impl Target {
    /// A TCP connection to `address`, `host:port`.
    pub fn tcp(address: impl Into<String>) -> Self {
        Self { network: "tcp".to_owned(), address: address.into() }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = str::from_utf8(bytes).ok().filter(|text| text.len() <= CONNECT_LIMIT);
        let (network, address) = text.and_then(|text| text.split_once('/')).ok_or(Malformed::Target)?;
        Ok(Self { network: network.to_owned(), address: address.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl Ending {
    /// As it is sent: no more than is read.
    fn text(&self) -> &str {
        match self {
            Self::Eof => EOF,
            Self::Error(text) => &text[..text.floor_char_boundary(TEXT_LIMIT)],
        }
    }
}

impl From<String> for Ending {
    fn from(text: String) -> Self {
        if text == EOF { Self::Eof } else { Self::Error(text) }
    }
}

fn encode(id: i64, connection: ConnectionId, kind: i64, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD + payload.len());
    put_varint(&mut bytes, id);
    put_varint(&mut bytes, connection.0);
    put_varint(&mut bytes, kind);
    if matches!(kind, DATA | CONNECT) {
        put_varint(&mut bytes, DEADLINE);
    }
    bytes.put_slice(payload);
    bytes.freeze()
}

fn put_varint(bytes: &mut BytesMut, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest >= 0x80 {
        bytes.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.put_u8(rest as u8);
}

fn varint(bytes: &mut Bytes) -> Result<i64, Malformed> {
    let mut number: u64 = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().map_err(|_| Malformed::Short)?;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(Malformed::Overflow);
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    Err(Malformed::Overflow)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_LIMIT)]).into_owned()
}

fn connections(bytes: &[u8]) -> Result<Vec<ConnectionId>, Malformed> {
    let (numbers, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(Malformed::Connections);
    }
    Ok(numbers.iter().map(|number| ConnectionId(i64::from_le_bytes(*number))).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THIRD: ConnectionId = ConnectionId(3);

    /// A message, and its bytes as remotedialer writes them as the 33rd of a sender.
    fn transcript() -> Vec<(Message, Vec<u8>)> {
        let with = |head: &[u8], payload: &[u8]| [head, payload].concat();
        // 33, 3 and 15000 in zig-zag are 66, 6 and 30000.
        let deadline = [0xb0, 0xea, 0x01];
        let target = Target::tcp("127.0.0.1:10250");
        let session = "worker/4711".to_owned();
        vec![
            (
                Message::Data { connection: THIRD, bytes: Bytes::from_static(b"\x16\x03\x01") },
                with(&[66, 6, 2], &with(&deadline, b"\x16\x03\x01")),
            ),
            (
                Message::Connect { connection: THIRD, target },
                with(&[66, 6, 4], &with(&deadline, b"tcp/127.0.0.1:10250")),
            ),
            (Message::Error { connection: THIRD, ending: Ending::Eof }, with(&[66, 6, 6], b"EOF")),
            (
                Message::Error { connection: THIRD, ending: Ending::Error("dial tcp: refused".to_owned()) },
                with(&[66, 6, 6], b"dial tcp: refused"),
            ),
            (Message::AddClient { session: session.clone() }, with(&[66, 0, 8], b"worker/4711")),
            (Message::RemoveClient { session }, with(&[66, 0, 10], b"worker/4711")),
            (Message::Pause { connection: THIRD }, vec![66, 6, 12]),
            (Message::Resume { connection: THIRD }, vec![66, 6, 14]),
            (
                Message::SyncConnections { connections: vec![ConnectionId(2), ConnectionId(0x0102)] },
                with(&[66, 0, 16], &[2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]),
            ),
            (Message::CloseWrite { connection: THIRD }, vec![66, 6, 0xd2, 0x0f]),
            (Message::Unknown { kind: 9 }, vec![66, 0, 18]),
        ]
    }

    #[test]
    fn each_message_is_these_bytes() {
        for (message, bytes) in transcript() {
            assert_eq!(message.encode(33), bytes, "{message:?}");
            assert_eq!(Message::decode(bytes.into()).unwrap(), message);
        }
    }

    #[test]
    fn a_head_that_ends_early_is_no_message() {
        for (message, bytes) in transcript() {
            let head = if matches!(message, Message::Data { .. } | Message::Connect { .. }) { 6 } else { 3 };
            for length in 0..head {
                let cut = Bytes::copy_from_slice(&bytes[..length]);
                assert_eq!(Message::decode(cut), Err(Malformed::Short), "{message:?} cut to {length}");
            }
        }
    }

    #[test]
    fn numbers_have_64_bits() {
        let id = |id: &[u8]| Message::decode([id, &[6, 12]].concat().into());
        let pause = Ok(Message::Pause { connection: THIRD });
        assert_eq!(id(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), pause);
        assert_eq!(id(&[0x80, 0]), pause, "Go takes numbers that could be shorter");
        assert_eq!(id(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), Err(Malformed::Overflow));
        assert_eq!(id(&[0xff; 11]), Err(Malformed::Overflow));
    }

    #[test]
    fn texts_are_read_as_far_as_remotedialer_reads_them() {
        let error = |text: &str| Message::decode([&[66, 6, 6], text.as_bytes()].concat().into()).unwrap();
        let Message::Error { ending: Ending::Error(text), .. } = error(&"x".repeat(200)) else { panic!("no error") };
        assert_eq!(text.len(), 100);
        assert!(matches!(error("eof"), Message::Error { ending: Ending::Error(_), .. }));

        let long = Message::Error { connection: THIRD, ending: Ending::Error(format!("{}ü", "x".repeat(99))) };
        assert_eq!(long.encode(33).len(), 3 + 99, "and no character is cut in two");
    }

    #[test]
    fn a_target_is_a_network_and_an_address() {
        let connect = |text: &str| Message::decode([&[66, 6, 4, 0], text.as_bytes()].concat().into());
        let target = |network: &str, address: &str| Target { network: network.into(), address: address.into() };
        assert_eq!(
            connect("unix//run/x").unwrap(),
            Message::Connect { connection: THIRD, target: target("unix", "/run/x") }
        );
        for wrong in ["", "tcp", &format!("tcp/{}", "x".repeat(263))] {
            assert_eq!(connect(wrong), Err(Malformed::Target), "{wrong}");
        }
        assert!(connect(&format!("tcp/{}", "x".repeat(262))).is_ok());
    }

    #[test]
    fn a_list_of_connections_is_whole_numbers() {
        assert_eq!(Message::decode(Bytes::from_static(&[66, 0, 16, 1, 2, 3])), Err(Malformed::Connections));
    }

    proptest! {
        #[test]
        fn data_comes_back_as_it_was(id: i64, connection: i64, payload: Vec<u8>) {
            let connection = ConnectionId(connection);
            let decoded = Message::decode(encode_data(id, connection, &payload)).unwrap();
            prop_assert_eq!(decoded, Message::Data { connection, bytes: payload.into() });
        }

        #[test]
        fn whatever_can_be_read_can_be_written(bytes: Vec<u8>) {
            if let Ok(message) = Message::decode(bytes.into()) {
                Message::decode(message.encode(1)).unwrap();
            }
        }
    }
}
