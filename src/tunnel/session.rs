//! One websocket's connections: messages in, messages out, no I/O.
//!
//! The side that serves the websocket opens connections, the client's side dials for them. Nothing confirms a connection: data may
//! follow its Connect at once, and an Error tells that it failed. Messages of a connection stay in order; Pause and Resume overtake
//! data, as the sooner they arrive the less has to be kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{
    connection::{Connection, Flow, Received},
    message::{ConnectionId, Ending, Malformed, Message, Target, encode_data},
};

/// Bytes of one Data message at most: as much as remotedialer's copies send.
const DATA_LIMIT: usize = 32 << 10;
/// Messages that may wait to be sent beside data before the peer counts as one that does not read.
const BACKLOG: usize = 1 << 14;

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
    /// `<client key>/<session key>`: for texts.
    name: String,
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
    /// Bytes of data in it.
    data: usize,
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
    /// A session without connections. `name` is how the other side finds it in our texts.
    pub(crate) fn new(role: Role, name: String) -> Self {
        Self {
            role,
            name,
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
        self.enqueue(Message::Connect { connection, target });
        connection
    }

    /// What the connection has for its reader.
    pub(crate) fn unread(&self, connection: ConnectionId) -> Unread<'_> {
        let Some(known) = self.connections.get(&connection) else { return Unread::Ended(&Ending::Eof) };
        match (known.unread(), known.ending()) {
            ([], Some(ending)) => Unread::Ended(ending),
            ([], None) => Unread::Nothing,
            (bytes, _) => Unread::Bytes(bytes),
        }
    }

    /// `count` bytes of [`unread`](Self::unread) were read.
    pub(crate) fn consume(&mut self, connection: ConnectionId, count: usize) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        if known.consume(count) && known.is_open() {
            self.urge(Message::Resume { connection });
        }
    }

    /// Writes as much of `bytes` as may be sent now.
    pub(crate) fn write(&mut self, connection: ConnectionId, bytes: &[u8]) -> Written {
        let Some(known) = self.connections.get_mut(&connection) else { return Written::Ended(Ending::Eof) };
        if let Some(ending) = known.ending() {
            return Written::Ended(ending.clone());
        }
        if !known.may_write() {
            return Written::Blocked;
        }
        let taken = &bytes[..bytes.len().min(DATA_LIMIT)];
        known.wrote(taken.len());
        let bytes = encode_data(self.next_message(), connection, taken);
        self.queue.push_back(Queued { connection, bytes, data: taken.len() });
        Written::Taken(taken.len())
    }

    /// Ends the connection from our side. The peer hears of it after all that was written; what it sent can still be read.
    pub(crate) fn close(&mut self, connection: ConnectionId, ending: Ending) {
        let Some(known) = self.connections.get_mut(&connection).filter(|known| known.is_open()) else { return };
        known.end(ending.clone());
        self.enqueue(Message::Error { connection, ending });
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
            Message::AddClient { .. } | Message::RemoveClient { .. } | Message::Unknown { .. } => None,
        })
    }

    /// The next message to send.
    pub(crate) fn transmit(&mut self) -> Option<Transmit> {
        if let Some(bytes) = self.urgent.pop_front() {
            return Some(Transmit { bytes, writable: None });
        }
        let Queued { connection, bytes, data } = self.queue.pop_front()?;
        let known = self.connections.get_mut(&connection);
        let writable = known.filter(|_| data > 0).and_then(|known| {
            known.sent(data);
            known.may_write().then_some(connection)
        });
        Some(Transmit { bytes, writable })
    }

    /// Whether [`transmit`](Self::transmit) has something.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.urgent.is_empty() || !self.queue.is_empty()
    }

    fn receive_data(&mut self, connection: ConnectionId, bytes: &[u8]) -> Result<Option<Event>, Violation> {
        let Some(known) = self.open(connection) else {
            if self.queue.len() > BACKLOG {
                return Err(Violation::Backlog);
            }
            let text = format!("connection not found {}/{}", self.name, connection.0);
            self.enqueue(Message::Error { connection, ending: Ending::Error(text) });
            return Ok(None);
        };
        match known.receive(bytes) {
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
        self.open(connection)?.end(ending);
        self.discard(connection);
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

    /// The connection that the peer speaks of, if it is open.
    fn open(&mut self, connection: ConnectionId) -> Option<&mut Connection> {
        let known = self.connections.get_mut(&connection).filter(|known| known.is_open())?;
        known.confirmed = true;
        Some(known)
    }

    /// Drops what waits to be sent on a connection that the peer has ended.
    fn discard(&mut self, connection: ConnectionId) {
        self.queue.retain(|queued| queued.connection != connection);
    }

    fn enqueue(&mut self, message: Message) {
        let connection = match message {
            Message::Connect { connection, .. } | Message::Error { connection, .. } => connection,
            _ => ConnectionId(0),
        };
        let bytes = message.encode(self.next_message());
        self.queue.push_back(Queued { connection, bytes, data: 0 });
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
