//! A session that is sent anything, as a function of arbitrary bytes. It panics where a session breaks a promise.
//!
//! `cargo xtask fuzz` feeds it. What bytes mean here may change freely: the seeds in `tests/fuzz/corpus` are only where a fuzzer
//! starts from.

use bytes::{Buf as _, Bytes};

use crate::{
    connection::WRITE_AHEAD,
    dialect::Dialect,
    message::{ConnectionId, Ending, Message, Target},
    room::LEAST as ROOM,
    session::{Event, Role, Session, Unread, Written},
};

/// What is read at most of a connection in a step.
const READ: usize = 64 << 10;

/// Steps, each led by a byte that says what: messages of the peer's, prefixed by their length, and uses of connections.
pub fn session(data: &[u8]) {
    let mut bytes = Bytes::copy_from_slice(data);
    let Ok(first) = bytes.try_get_u8() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let dialect = if first & 2 == 0 { Dialect::Remotedialer } else { Dialect::HalfClose };
    let mut session = Session::new(role, dialect, "fuzz/1".to_owned(), ROOM);
    let mut connections = vec![ConnectionId(2)];
    while let (Ok(step), Ok(argument)) = (bytes.try_get_u8(), bytes.try_get_u8()) {
        let connection = connections[usize::from(argument) % connections.len()];
        match step % 8 {
            0 | 1 => {
                let message = bytes.split_to(usize::from(argument).min(bytes.len()));
                match session.receive(message.clone()) {
                    Ok(Some(Event::Asked { connection, .. })) => connections.push(connection),
                    Ok(_) => {}
                    // The session is over.
                    Err(_) => return session.end(&Ending::Eof),
                }
                if let Ok(message) = Message::decode(message) {
                    Message::decode(message.encode(1)).expect("what was read can be written and read");
                }
            }
            2 if role == Role::Server => {
                connections.push(session.connect(Target::tcp("127.0.0.1:10250")));
            }
            3 => {
                let mut written = 0;
                while let Written::Taken(count) = session.write(connection, &data[..data.len().min(4096)]) {
                    written += count;
                    assert!(written <= WRITE_AHEAD + data.len(), "a writer has to wait");
                }
            }
            4 => {
                if let Unread::Bytes(unread) = session.unread(connection) {
                    assert!(!unread.is_empty() && unread.len() <= ROOM);
                    let count = unread.len().min(READ);
                    session.consume(connection, count);
                }
            }
            5 if argument & 1 == 0 => session.close_write(connection),
            5 => session.close(connection, Ending::Error("closed".to_owned())),
            6 => {
                session.release(connection);
                assert_eq!(session.unread(connection), Unread::Ended(&Ending::Eof));
            }
            _ => {
                for _ in 0..argument {
                    let Some(sent) = session.transmit() else { break };
                    Message::decode(sent.bytes).expect("what is sent can be read");
                }
                if role == Role::Client {
                    session.sync();
                }
            }
        }
    }
}
