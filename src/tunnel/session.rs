//! One websocket's connections: messages in, messages out, no I/O.
//!
//! The side that serves the websocket opens connections, the client's side dials for them. Nothing confirms a connection: data may
//! follow its Connect at once, and an Error tells that it failed. Messages of a connection stay in order; Pause and Resume overtake
//! data, as the sooner they arrive the less has to be kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{
    connection::{Connection, Flow, Received},
    dialect::Dialect,
    message::{ConnectionId, Ending, Malformed, Message, Target, encode_data},
};

/// Bytes of one Data message at most: as much as remotedialer's copies send.
const DATA_LIMIT: usize = 32 << 10;
/// Messages that may wait beside those in a connection's order before the peer counts as one that does not read.
const BACKLOG: usize = 1 << 14;
/// What a message that waits takes beside its bytes: who writes a byte at a time has to wait as well.
const OVERHEAD: usize = 64;

/// Which side of the websocket this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It opens connections.
    Server,
    /// It dials for them.
    Client,
}

/// All connections of one websocket.
#[derive(Debug)]
pub(crate) struct Session {
    role: Role,
    dialect: Dialect,
    /// `<client key>/<session key>`: for texts.
    name: String,
    /// Bytes that a connection may keep unread.
    room: usize,
    connections: BTreeMap<ConnectionId, Connection>,
    urgent: VecDeque<Bytes>,
    queue: VecDeque<Queued>,
    last_message: i64,
    last_connection: ConnectionId,
}

/// A message in its connection's order.
#[derive(Debug)]
struct Queued {
    connection: ConnectionId,
    bytes: Bytes,
    /// What it counts against its connection's writers: data does, the rest does not.
    cost: usize,
}

/// What a message changes for those who use the connections.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The server wants a connection; it counts as open.
    Asked { connection: ConnectionId, target: Target },
    /// There is more to read.
    Readable(ConnectionId),
    /// Writing goes on.
    Writable(ConnectionId),
    /// These have ended.
    Ended(Vec<ConnectionId>),
}

/// A message to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transmit {
    pub(crate) bytes: Bytes,
    /// The connection that may be written to again.
    pub(crate) writable: Option<ConnectionId>,
}

/// What there is to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unread<'a> {
    /// These bytes, never none.
    Bytes(&'a [u8]),
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    Ended(&'a Ending),
}

/// What became of bytes that were written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// So many were taken.
    Taken(usize),
    /// None for now: [`Event::Writable`] or [`Transmit::writable`] tell when to try again.
    Blocked,
    /// None ever again.
    Ended(Ending),
}

/// What a peer may not do; it ends the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Its message cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Clients open no connections.
    #[error("the client asked for a connection to {0}, which only servers may")]
    ClientConnects(Target),
    /// The server used a connection's number twice.
    #[error("the server opened connection {0} twice")]
    Reopened(i64),
    /// It sends, but does not read the answers.
    #[error("the peer does not read what it is told")]
    Backlog,
}

impl Session {
    /// A session without connections, each of which may keep `room` bytes unread. `name` is how the other side finds it in our texts.
    pub(crate) fn new(role: Role, dialect: Dialect, name: String, room: usize) -> Self {
        Self {
            role,
            dialect,
            name,
            room,
            connections: BTreeMap::new(),
            urgent: VecDeque::new(),
            queue: VecDeque::new(),
            last_message: 0,
            // remotedialer counts before it uses: the first is 2.
            last_connection: ConnectionId(1),
        }
    }

    /// Which side this is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Opens a connection.
    pub(crate) fn connect(&mut self, target: Target) -> ConnectionId {
        self.last_connection.0 += 1;
        let connection = self.last_connection;
        self.connections.insert(connection, Connection::default());
        self.enqueue(connection, &Message::Connect { connection, target });
        connection
    }

    /// What the connection has for its reader.
    pub(crate) fn unread(&self, connection: ConnectionId) -> Unread<'_> {
        let Some(known) = self.connections.get(&connection) else { return Unread::Ended(&Ending::Eof) };
        match (known.unread(), known.incoming_ending()) {
            ([], Some(ending)) => Unread::Ended(ending),
            ([], None) => Unread::Nothing,
            (bytes, _) => Unread::Bytes(bytes),
        }
    }

    /// `count` bytes of [`unread`](Self::unread) were read.
    pub(crate) fn consume(&mut self, connection: ConnectionId, count: usize) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        if known.consume(count) && known.incoming_ending().is_none() {
            self.urge(Message::Resume { connection });
        }
    }

    /// Writes as much of `bytes` as may be sent now.
    pub(crate) fn write(&mut self, connection: ConnectionId, bytes: &[u8]) -> Written {
        let Some(known) = self.connections.get_mut(&connection) else { return Written::Ended(Ending::Eof) };
        if let Some(ending) = known.outgoing_ending() {
            return Written::Ended(ending.clone());
        }
        if !known.may_write() {
            return Written::Blocked;
        }
        let taken = &bytes[..bytes.len().min(DATA_LIMIT)];
        let cost = taken.len() + OVERHEAD;
        known.wrote(cost);
        let bytes = encode_data(self.next_message(), connection, taken);
        self.queue.push_back(Queued { connection, bytes, cost });
        Written::Taken(taken.len())
    }

    /// Nothing more is written. The peer hears of it after all that was; what it sends can still be read.
    pub(crate) fn close_write(&mut self, connection: ConnectionId) {
        let known = self.connections.get_mut(&connection).filter(|known| known.outgoing_ending().is_none());
        let Some(known) = known else { return };
        known.end_outgoing();
        let message = match self.dialect {
            Dialect::HalfClose => Message::CloseWrite { connection },
            Dialect::Remotedialer => Message::Error { connection, ending: Ending::Eof },
        };
        self.enqueue(connection, &message);
    }

    /// Ends the connection from our side. The peer hears of it after all that was written.
    pub(crate) fn close(&mut self, connection: ConnectionId, ending: Ending) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        let knows = match self.dialect {
            Dialect::HalfClose => !known.is_open(),
            // It was told when our side ended, or told us.
            Dialect::Remotedialer => known.outgoing_ending().is_some(),
        };
        known.end(ending.clone());
        if !knows {
            self.enqueue(connection, &Message::Error { connection, ending });
        }
    }

    /// Forgets the connection: nobody uses it any more.
    pub(crate) fn release(&mut self, connection: ConnectionId) {
        self.close(connection, Ending::Eof);
        self.connections.remove(&connection);
    }

    /// Tells the server which connections there are: it forgets the others.
    pub(crate) fn sync(&mut self) {
        let open = self.connections.iter().filter(|(_, known)| known.is_open());
        let connections = open.map(|(connection, _)| *connection).collect();
        self.urge(Message::SyncConnections { connections });
    }

    /// The websocket is gone, and with it every connection.
    pub(crate) fn end(&mut self, ending: &Ending) {
        self.urgent.clear();
        self.queue.clear();
        self.connections.values_mut().for_each(|known| known.end(ending.clone()));
    }

    /// Takes a message of the peer's.
    pub(crate) fn receive(&mut self, bytes: Bytes) -> Result<Option<Event>, Violation> {
        Ok(match Message::decode(bytes)? {
            Message::Data { connection, bytes } => self.receive_data(connection, &bytes)?,
            Message::Connect { connection, target } => Some(self.receive_connect(connection, target)?),
            Message::Error { connection, ending } => self.receive_ending(connection, ending),
            Message::Pause { connection } => {
                self.set_writing(connection, Flow::Paused);
                None
            }
            Message::Resume { connection } => {
                self.set_writing(connection, Flow::Running);
                Some(Event::Writable(connection))
            }
            Message::SyncConnections { connections } => self.sweep(&connections),
            Message::CloseWrite { connection } if self.dialect == Dialect::HalfClose => {
                self.open(connection).map(|known| {
                    known.end_incoming();
                    Event::Readable(connection)
                })
            }
            Message::CloseWrite { .. } => None,
            Message::AddClient { .. } | Message::RemoveClient { .. } | Message::Unknown { .. } => None,
        })
    }

    /// The next message to send.
    pub(crate) fn transmit(&mut self) -> Option<Transmit> {
        if let Some(bytes) = self.urgent.pop_front() {
            return Some(Transmit { bytes, writable: None });
        }
        let Queued { connection, bytes, cost } = self.queue.pop_front()?;
        let known = self.connections.get_mut(&connection);
        let writable = known.filter(|_| cost > 0).and_then(|known| {
            known.sent(cost);
            known.may_write().then_some(connection)
        });
        Some(Transmit { bytes, writable })
    }

    /// Whether [`transmit`](Self::transmit) has something.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.urgent.is_empty() || !self.queue.is_empty()
    }

    fn receive_data(&mut self, connection: ConnectionId, bytes: &[u8]) -> Result<Option<Event>, Violation> {
        let room = self.room;
        let known = self.open(connection).filter(|known| known.incoming_ending().is_none());
        let Some(known) = known else { return self.answer_stray(connection).map(|()| None) };
        match known.receive(bytes, room) {
            Received::Kept => {}
            Received::Pause => self.urge(Message::Pause { connection }),
            Received::Excess => {
                self.discard(connection);
                self.close(connection, Ending::Error("the peer sends on after it was asked to pause".to_owned()));
                return Ok(Some(Event::Ended(vec![connection])));
            }
        }
        Ok(Some(Event::Readable(connection)))
    }

    /// Answers data of a connection that is not there.
    fn answer_stray(&mut self, connection: ConnectionId) -> Result<(), Violation> {
        // Its own end is on the way, after its data, which must not be lost.
        if self.queue.iter().any(|queued| queued.connection == connection) {
            return Ok(());
        }
        if self.urgent.len() > BACKLOG {
            return Err(Violation::Backlog);
        }
        let text = format!("connection not found {}/{}", self.name, connection.0);
        self.urge(Message::Error { connection, ending: Ending::Error(text) });
        Ok(())
    }

    fn receive_connect(&mut self, connection: ConnectionId, target: Target) -> Result<Event, Violation> {
        if self.role == Role::Server {
            return Err(Violation::ClientConnects(target));
        }
        if self.connections.contains_key(&connection) {
            return Err(Violation::Reopened(connection.0));
        }
        self.connections.insert(connection, Connection::default());
        Ok(Event::Asked { connection, target })
    }

    fn receive_ending(&mut self, connection: ConnectionId, ending: Ending) -> Option<Event> {
        let known = self.open(connection)?;
        let has_ended = known.outgoing_ending().is_some();
        known.end(ending);
        let was_told = !self.discard(connection) && has_ended;
        if !was_told && self.dialect == Dialect::Remotedialer {
            // As remotedialer does: the peer may read until then.
            self.enqueue(connection, &Message::Error { connection, ending: Ending::Eof });
        }
        Some(Event::Ended(vec![connection]))
    }

    fn set_writing(&mut self, connection: ConnectionId, flow: Flow) {
        if let Some(known) = self.open(connection) {
            known.set_writing(flow);
        }
    }

    /// Ends what the client does not have. Silently: it would only answer that it knows no such connection.
    ///
    /// A connection that was opened while the client made its list is not in it yet. So one that the client has never
    /// spoken of ends with the second list that lacks it; remotedialer ends it with the first.
    fn sweep(&mut self, listed: &[ConnectionId]) -> Option<Event> {
        if self.role == Role::Client {
            return None;
        }
        let listed: BTreeSet<_> = listed.iter().copied().collect();
        let mut ended = Vec::new();
        for (connection, known) in self.connections.iter_mut().filter(|(_, known)| known.is_open()) {
            if listed.contains(connection) {
                known.confirmed = true;
            } else if known.confirmed || known.listed {
                known.end(Ending::Error("the node does not know this connection any more".to_owned()));
                ended.push(*connection);
            }
            known.listed = true;
        }
        for connection in &ended {
            self.discard(*connection);
        }
        (!ended.is_empty()).then_some(Event::Ended(ended))
    }

    /// The connection that the peer speaks of, if it has not ended.
    fn open(&mut self, connection: ConnectionId) -> Option<&mut Connection> {
        let known = self.connections.get_mut(&connection).filter(|known| known.is_open())?;
        known.confirmed = true;
        Some(known)
    }

    /// Drops what waits to be sent on a connection that the peer has ended. Returns whether there was any.
    fn discard(&mut self, connection: ConnectionId) -> bool {
        let waiting = self.queue.len();
        self.queue.retain(|queued| queued.connection != connection);
        self.queue.len() < waiting
    }

    fn enqueue(&mut self, connection: ConnectionId, message: &Message) {
        let bytes = message.encode(self.next_message());
        self.queue.push_back(Queued { connection, bytes, cost: 0 });
    }

    fn urge(&mut self, message: Message) {
        let bytes = message.encode(self.next_message());
        self.urgent.push_back(bytes);
    }

    fn next_message(&mut self) -> i64 {
        self.last_message += 1;
        self.last_message
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::room::LEAST as ROOM;

    const SECOND: ConnectionId = ConnectionId(2);

    fn server() -> Session {
        Session::new(Role::Server, Dialect::HalfClose, "worker/1".to_owned(), ROOM)
    }

    fn client() -> Session {
        Session::new(Role::Client, Dialect::HalfClose, "client/0".to_owned(), ROOM)
    }

    fn receive(session: &mut Session, message: &Message) -> Result<Option<Event>, Violation> {
        session.receive(message.encode(1))
    }

    /// All that a session sends.
    fn sent(session: &mut Session) -> Vec<Message> {
        std::iter::from_fn(|| session.transmit()).map(|sent| Message::decode(sent.bytes).unwrap()).collect()
    }

    fn error(connection: ConnectionId, text: &str) -> Message {
        Message::Error { connection, ending: Ending::Error(text.to_owned()) }
    }

    fn eof(connection: ConnectionId) -> Message {
        Message::Error { connection, ending: Ending::Eof }
    }

    fn data(connection: ConnectionId, bytes: &'static [u8]) -> Message {
        Message::Data { connection, bytes: Bytes::from_static(bytes) }
    }

    /// A server with a connection of which the client knows.
    fn connected() -> Session {
        connected_by(Dialect::HalfClose)
    }

    fn connected_by(dialect: Dialect) -> Session {
        let mut server = Session::new(Role::Server, dialect, "worker/1".to_owned(), ROOM);
        server.connect(Target::tcp("127.0.0.1:10250"));
        sent(&mut server);
        server
    }

    #[test]
    fn a_server_connects_from_2_on_and_writes_at_once() {
        let mut server = server();
        let target = Target::tcp("127.0.0.1:10250");
        let connections = [server.connect(target.clone()), server.connect(target.clone())];
        assert_eq!(connections, [SECOND, ConnectionId(3)]);
        assert_eq!(server.write(SECOND, b"hello"), Written::Taken(5));
        assert_eq!(
            sent(&mut server),
            [
                Message::Connect { connection: SECOND, target: target.clone() },
                Message::Connect { connection: ConnectionId(3), target },
                data(SECOND, b"hello"),
            ]
        );
    }

    #[test]
    fn a_client_is_asked_and_answers() {
        let mut client = client();
        let target = Target::tcp("127.0.0.1:10250");
        let connect = Message::Connect { connection: SECOND, target: target.clone() };
        assert_eq!(receive(&mut client, &connect), Ok(Some(Event::Asked { connection: SECOND, target })));
        assert_eq!(receive(&mut client, &connect), Err(Violation::Reopened(2)));
        assert_eq!(receive(&mut client, &data(SECOND, b"hello")), Ok(Some(Event::Readable(SECOND))));
        assert_eq!(client.unread(SECOND), Unread::Bytes(b"hello"));
        client.consume(SECOND, 5);
        assert_eq!(client.unread(SECOND), Unread::Nothing);
        client.close(SECOND, Ending::Error("dial tcp: refused".to_owned()));
        client.release(SECOND);
        assert_eq!(sent(&mut client), [error(SECOND, "dial tcp: refused")], "told once");
    }

    #[test]
    fn clients_may_not_connect() {
        let target = Target::tcp("127.0.0.1:6443");
        let connect = Message::Connect { connection: SECOND, target: target.clone() };
        assert_eq!(receive(&mut server(), &connect), Err(Violation::ClientConnects(target)));
    }

    #[test]
    fn what_came_before_an_error_is_read_first() {
        for (ending, text) in [(Ending::Eof, "EOF"), (Ending::Error("reset".to_owned()), "reset")] {
            let mut server = connected();
            receive(&mut server, &data(SECOND, b"last")).unwrap();
            let ended = receive(&mut server, &error(SECOND, text)).unwrap();
            assert_eq!(ended, Some(Event::Ended(vec![SECOND])));
            assert_eq!(server.unread(SECOND), Unread::Bytes(b"last"));
            server.consume(SECOND, 4);
            assert_eq!(server.unread(SECOND), Unread::Ended(&ending));
            assert_eq!(server.write(SECOND, b"more"), Written::Ended(ending));
            assert_eq!(sent(&mut server), []);
        }
    }

    #[test]
    fn what_was_written_comes_before_our_error() {
        let mut server = connected();
        server.write(SECOND, b"last");
        server.release(SECOND);
        assert_eq!(sent(&mut server), [data(SECOND, b"last"), eof(SECOND)]);
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let close_write = Message::CloseWrite { connection: SECOND };
        let mut server = connected();
        server.write(SECOND, b"last");
        server.close_write(SECOND);
        assert_eq!(server.write(SECOND, b"x"), Written::Ended(Ending::Eof));
        assert_eq!(sent(&mut server), [data(SECOND, b"last"), close_write.clone()]);
        receive(&mut server, &data(SECOND, b"answer")).unwrap();
        assert_eq!(receive(&mut server, &close_write), Ok(Some(Event::Readable(SECOND))));
        assert_eq!(server.unread(SECOND), Unread::Bytes(b"answer"));
        server.consume(SECOND, 6);
        assert_eq!(server.unread(SECOND), Unread::Ended(&Ending::Eof));
        server.release(SECOND);
        assert_eq!(sent(&mut server), [], "the peer knows");

        let mut server = connected();
        receive(&mut server, &close_write).unwrap();
        assert_eq!(server.write(SECOND, b"answer"), Written::Taken(6));
        server.release(SECOND);
        assert_eq!(sent(&mut server), [data(SECOND, b"answer"), eof(SECOND)]);
    }

    #[test]
    fn a_connection_of_which_one_direction_has_ended_stays_listed() {
        let mut server = connected();
        server.close_write(SECOND);
        let list = Message::SyncConnections { connections: vec![SECOND] };
        assert_eq!(receive(&mut server, &list), Ok(None));
        assert_eq!(server.unread(SECOND), Unread::Nothing);

        let mut client = client();
        receive(&mut client, &Message::Connect { connection: SECOND, target: Target::tcp("x:1") }).unwrap();
        client.close_write(SECOND);
        sent(&mut client);
        client.sync();
        assert_eq!(sent(&mut client), [list]);
    }

    #[test]
    fn remotedialer_hears_an_error_and_is_read_until_its_own() {
        let mut server = connected_by(Dialect::Remotedialer);
        server.write(SECOND, b"last");
        server.close_write(SECOND);
        assert_eq!(sent(&mut server), [data(SECOND, b"last"), eof(SECOND)]);
        receive(&mut server, &data(SECOND, b"before it heard")).unwrap();
        assert_eq!(server.unread(SECOND), Unread::Bytes(b"before it heard"));
        receive(&mut server, &eof(SECOND)).unwrap();
        server.consume(SECOND, 15);
        assert_eq!(server.unread(SECOND), Unread::Ended(&Ending::Eof));
        server.release(SECOND);
        assert_eq!(sent(&mut server), []);

        let mut server = connected_by(Dialect::Remotedialer);
        receive(&mut server, &Message::CloseWrite { connection: SECOND }).unwrap();
        assert_eq!(server.unread(SECOND), Unread::Nothing, "not one of its messages");
        receive(&mut server, &eof(SECOND)).unwrap();
        assert_eq!(sent(&mut server), [eof(SECOND)], "as it answers itself");
    }

    #[test]
    fn data_of_a_connection_that_is_gone_is_answered() {
        let mut server = connected();
        server.release(SECOND);
        sent(&mut server);
        assert_eq!(receive(&mut server, &data(SECOND, b"late")), Ok(None));
        assert_eq!(sent(&mut server), [error(SECOND, "connection not found worker/1/2")]);
        for message in [
            Message::Pause { connection: SECOND },
            Message::Resume { connection: SECOND },
            error(SECOND, "EOF"),
            Message::Unknown { kind: 77 },
            Message::AddClient { session: "a/1".to_owned() },
        ] {
            receive(&mut server, &message).unwrap();
        }
        assert_eq!(sent(&mut server), [], "nothing else is");
    }

    #[test]
    fn data_that_crosses_our_end_is_not_answered_before_it() {
        let mut server = connected();
        server.write(SECOND, b"last");
        server.release(SECOND);
        receive(&mut server, &data(SECOND, b"late")).unwrap();
        assert_eq!(sent(&mut server), [data(SECOND, b"last"), eof(SECOND)]);
    }

    #[test]
    fn who_writes_a_byte_at_a_time_waits_as_well() {
        let mut server = connected();
        let taken = (0..).take_while(|_| server.write(SECOND, b"x") == Written::Taken(1)).count();
        assert!(taken < 1100, "{taken}");
    }

    #[test]
    fn a_peer_that_never_reads_our_answers_is_left() {
        let mut server = server();
        let ended = (0..).find_map(|_| receive(&mut server, &data(SECOND, b"x")).err());
        assert_eq!(ended, Some(Violation::Backlog));
    }

    #[test]
    fn a_writer_waits_for_room_and_while_it_is_paused() {
        let mut server = connected();
        let chunk = [0; 40 << 10];
        assert_eq!(server.write(SECOND, &chunk), Written::Taken(32 << 10));
        assert_eq!(server.write(SECOND, &chunk), Written::Taken(32 << 10));
        assert_eq!(server.write(SECOND, &chunk), Written::Blocked);
        receive(&mut server, &Message::Pause { connection: SECOND }).unwrap();
        assert_eq!(server.transmit().unwrap().writable, None, "paused");
        assert_eq!(server.write(SECOND, &chunk), Written::Blocked);
        let resumed = receive(&mut server, &Message::Resume { connection: SECOND });
        assert_eq!(resumed, Ok(Some(Event::Writable(SECOND))));
        assert_eq!(server.write(SECOND, &chunk), Written::Taken(32 << 10));
        assert_eq!(server.write(SECOND, &chunk), Written::Blocked);
        assert_eq!(server.transmit().unwrap().writable, Some(SECOND), "there is room");
    }

    #[test]
    fn pause_and_resume_overtake_data() {
        let mut server = connected();
        server.write(SECOND, b"data");
        let chunk = [0; 32 << 10];
        for _ in 0..65 {
            receive(&mut server, &Message::Data { connection: SECOND, bytes: Bytes::copy_from_slice(&chunk) }).unwrap();
        }
        while let Unread::Bytes(bytes) = server.unread(SECOND) {
            let count = bytes.len();
            server.consume(SECOND, count);
        }
        let pause = Message::Pause { connection: SECOND };
        assert_eq!(sent(&mut server), [pause, Message::Resume { connection: SECOND }, data(SECOND, b"data")]);
    }

    #[test]
    fn excess_ends_a_connection_and_no_other() {
        let mut server = connected();
        let other = server.connect(Target::tcp("127.0.0.1:10250"));
        sent(&mut server);
        let flood = Message::Data { connection: SECOND, bytes: Bytes::from(vec![0; 1 << 20]) };
        let ended = (0..17).find_map(|_| match receive(&mut server, &flood).unwrap() {
            Some(Event::Ended(ended)) => Some(ended),
            _ => None,
        });
        assert_eq!(ended, Some(vec![SECOND]));
        let pause = Message::Pause { connection: SECOND };
        assert_eq!(sent(&mut server), [pause, error(SECOND, "the peer sends on after it was asked to pause")]);
        assert_eq!(server.write(other, b"x"), Written::Taken(1));
    }

    #[test]
    fn a_clients_list_ends_what_is_not_on_it() {
        let mut server = connected();
        let fresh = server.connect(Target::tcp("127.0.0.1:10250"));
        let heard = server.connect(Target::tcp("127.0.0.1:10250"));
        sent(&mut server);
        receive(&mut server, &data(heard, b"x")).unwrap();
        let list = |connections| Message::SyncConnections { connections };
        assert_eq!(receive(&mut server, &list(vec![SECOND])), Ok(Some(Event::Ended(vec![heard]))));
        assert_eq!(
            receive(&mut server, &list(vec![SECOND])),
            Ok(Some(Event::Ended(vec![fresh]))),
            "at the second list"
        );
        assert_eq!(receive(&mut server, &list(vec![])), Ok(Some(Event::Ended(vec![SECOND]))));
        assert_eq!(sent(&mut server), [], "silently");
    }

    #[test]
    fn a_client_lists_what_is_open() {
        let mut client = client();
        for connection in [2, 3, 5].map(ConnectionId) {
            let target = Target::tcp("127.0.0.1:10250");
            receive(&mut client, &Message::Connect { connection, target }).unwrap();
        }
        client.release(ConnectionId(3));
        receive(&mut client, &error(ConnectionId(5), "EOF")).unwrap();
        sent(&mut client);
        client.sync();
        assert_eq!(sent(&mut client), [Message::SyncConnections { connections: vec![SECOND] }]);
    }

    #[test]
    fn when_the_websocket_is_gone_so_are_its_connections() {
        let mut server = connected();
        receive(&mut server, &data(SECOND, b"last")).unwrap();
        server.end(&Ending::Error("tunnel disconnect".to_owned()));
        assert_eq!(server.unread(SECOND), Unread::Bytes(b"last"));
        assert!(matches!(server.write(SECOND, b"x"), Written::Ended(Ending::Error(_))));
        assert_eq!(sent(&mut server), []);
    }

    /// What one of two sides does next.
    #[derive(Debug, Clone)]
    enum Step {
        Write {
            server: bool,
            length: usize,
        },
        Read {
            server: bool,
            length: usize,
        },
        /// Moves that many messages to the other side.
        Move {
            server: bool,
            messages: usize,
        },
        /// Writes no more.
        CloseWrite {
            server: bool,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let length = 1..100_000_usize;
        prop_oneof![
            (any::<bool>(), length.clone()).prop_map(|(server, length)| Step::Write { server, length }),
            (any::<bool>(), length).prop_map(|(server, length)| Step::Read { server, length }),
            (any::<bool>(), 1..4_usize).prop_map(|(server, messages)| Step::Move { server, messages }),
            any::<bool>().prop_map(|server| Step::CloseWrite { server }),
        ]
    }

    /// One side of a connection: what it wrote and what it read.
    struct Side {
        session: Session,
        wrote: u64,
        read: u64,
    }

    impl Side {
        /// Writes bytes that tell where they belong.
        fn write(&mut self, length: usize) {
            let bytes: Vec<u8> =
                (self.wrote..self.wrote + length as u64).map(|position| (position % 251) as u8).collect();
            if let Written::Taken(count) = self.session.write(SECOND, &bytes) {
                self.wrote += count as u64;
            }
        }

        fn read(&mut self, length: usize) {
            let Unread::Bytes(bytes) = self.session.unread(SECOND) else { return };
            let bytes = &bytes[..bytes.len().min(length)];
            for byte in bytes {
                assert_eq!(u64::from(*byte), self.read % 251);
                self.read += 1;
            }
            let count = bytes.len();
            self.session.consume(SECOND, count);
        }

        fn move_up_to(&mut self, messages: usize, other: &mut Self) {
            for _ in 0..messages {
                self.move_to(other);
            }
        }

        /// Returns whether there was a message to move.
        fn move_to(&mut self, other: &mut Self) -> bool {
            let Some(transmit) = self.session.transmit() else { return false };
            other.session.receive(transmit.bytes).unwrap();
            true
        }

        fn has_read_all(&self) -> bool {
            matches!(self.session.unread(SECOND), Unread::Ended(Ending::Eof))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever the order of things: what was written is read, in order, once all has been moved, and then its end.
        ///
        /// remotedialer has no half-closed connections: what a side wrote is read unless the other closed.
        #[test]
        fn nothing_is_lost_or_reordered(steps in prop::collection::vec(step(), 0..200), halves: bool) {
            let dialect = if halves { Dialect::HalfClose } else { Dialect::Remotedialer };
            let mut sides = [(Role::Server, "worker/1"), (Role::Client, "client/0")].map(|(role, name)| {
                Side { session: Session::new(role, dialect, name.to_owned(), ROOM), wrote: 0, read: 0 }
            });
            let mut closed = Vec::new();
            sides[0].session.connect(Target::tcp("127.0.0.1:10250"));
            let [server, client] = &mut sides;
            server.move_to(client);
            for step in steps {
                match step {
                    Step::Write { server: true, length } => server.write(length),
                    Step::Write { server: false, length } => client.write(length),
                    Step::Read { server: true, length } => server.read(length),
                    Step::Read { server: false, length } => client.read(length),
                    Step::Move { server: true, messages } => server.move_up_to(messages, client),
                    Step::Move { server: false, messages } => client.move_up_to(messages, server),
                    Step::CloseWrite { server: true } => {
                        server.session.close_write(SECOND);
                        closed.push(Role::Server);
                    }
                    Step::CloseWrite { server: false } => {
                        client.session.close_write(SECOND);
                        closed.push(Role::Client);
                    }
                }
            }
            while server.move_to(client) | client.move_to(server) {}
            for _ in 0..1000 {
                server.read(usize::MAX);
                client.read(usize::MAX);
            }
            while server.move_to(client) | client.move_to(server) {}
            let is_whole = |role| halves || closed.iter().all(|closed| *closed == role);
            prop_assert!(server.wrote == client.read || !is_whole(Role::Server));
            prop_assert!(client.wrote == server.read || !is_whole(Role::Client));
            for (role, writer, reader) in [(Role::Server, 0, 1), (Role::Client, 1, 0)] {
                if closed.contains(&role) || !halves && !closed.is_empty() {
                    prop_assert!(sides[reader].has_read_all());
                } else {
                    let written = sides[writer].session.write(SECOND, b"x");
                    prop_assert_eq!(written, Written::Taken(1), "nobody waits for ever");
                }
            }
        }

        /// Whatever a peer sends, a session stays within bounds.
        #[test]
        fn anything_may_come(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..100), as_client: bool) {
            let mut session = if as_client { client() } else { connected() };
            for message in messages {
                let _ = session.receive(message.into());
                session.transmit();
            }
        }
    }
}
