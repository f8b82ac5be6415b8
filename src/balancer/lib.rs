//! A node's way to the servers: a TCP forwarder on loopback that sticks to one healthy server and remembers the others.
