//! All servers, and which of them a client gets: pure, the time is an argument.
//!
//! Nothing here ticks. What only time changes is settled when somebody asks or something happens.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use tokio_util::sync::CancellationToken;

use crate::{
    Address,
    server::{Health, Server, State, Success},
};

/// A fail-over list: clients stick to one server as long as it is well.
#[derive(Debug)]
pub struct Pool {
    /// The registration address: never forgotten, as servers may come and go while the node is off. `None` for a node that learns of
    /// servers by another way.
    default: Option<Address>,
    /// By falling preference.
    servers: Vec<Server>,
}

/// A connection to a server, counted until [`Pool::ended`].
#[derive(Debug, Clone)]
pub struct Connection {
    address: Address,
    /// This host's end of it.
    source: IpAddr,
    over: CancellationToken,
}

/// What metrics tell of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The server.
    pub address: Address,
    /// What is known of it.
    pub state: State,
    /// How many connections lead to it.
    pub connections: usize,
}

impl Connection {
    /// Cancelled when the client should connect anew.
    pub fn over(&self) -> &CancellationToken {
        &self.over
    }
}

impl Pool {
    /// A pool with a registration address, where there is one, and the servers known from earlier.
    pub fn new(default: Option<Address>, known: BTreeSet<Address>, now: Instant) -> Self {
        let standby = default.iter().map(|default| Server::new(default.clone(), State::Standby, now));
        let mut pool = Self { servers: standby.collect(), default };
        pool.set_servers(known, now);
        pool
    }

    /// Makes these the listed servers; says whether that changes anything. An empty list says nothing about servers, as in k3s.
    pub fn set_servers(&mut self, listed: BTreeSet<Address>, now: Instant) -> bool {
        if listed.is_empty() || listed.iter().eq(&self.listed()) {
            return false;
        }
        for server in &mut self.servers {
            match (listed.contains(&server.address), server.state) {
                (true, State::Standby) => server.enter(State::Unchecked, now),
                (true, _) | (false, State::Standby) => {}
                (false, _) => {
                    server.enter(State::Standby, now);
                    server.close();
                }
            }
        }
        self.servers.retain(|server| server.state != State::Standby || self.default.as_ref() == Some(&server.address));
        for address in listed {
            if self.find(&address).is_none() {
                self.servers.push(Server::new(address, State::Unchecked, now));
            }
        }
        self.sort();
        true
    }

    /// The listed servers.
    pub fn listed(&self) -> BTreeSet<Address> {
        self.servers
            .iter()
            .filter(|server| server.state != State::Standby)
            .map(|server| server.address.clone())
            .collect()
    }

    /// Every server, in the order in which they are to be dialled.
    pub fn candidates(&mut self, now: Instant) -> Vec<Address> {
        self.promote_healthy(now);
        self.servers.iter().map(|server| server.address.clone()).collect()
    }

    /// A server was dialled from one of this host's addresses; `None` if it has been taken off the list meanwhile.
    pub fn dialled(&mut self, address: &Address, source: IpAddr, now: Instant) -> Option<Connection> {
        let at = self.find(address)?;
        // Before its connections are closed for another server's sake, should that come of it.
        let over = self.servers[at].opened(source);
        let connection = Connection { address: address.clone(), source, over };
        self.succeed(address, Success::Dial, now);
        self.promote_healthy(now);
        Some(connection)
    }

    /// A server could not be dialled.
    pub fn dial_failed(&mut self, address: &Address, now: Instant) {
        if let Some(at) = self.find(address) {
            self.servers[at].fail(true, now);
        }
        self.promote_healthy(now);
    }

    /// A connection has ended.
    pub fn ended(&mut self, connection: &Connection) {
        // Those that were closed are not counted any more.
        if !connection.over.is_cancelled()
            && let Some(at) = self.find(&connection.address)
        {
            self.servers[at].ended(connection.source);
            self.sort();
        }
    }

    /// This host has lost an address: connections from it would hang until somebody's patience ends. Returns how many are closed. What is
    /// known of the servers stays.
    pub fn lost_address(&mut self, address: IpAddr) -> usize {
        let closed = self.servers.iter_mut().map(|server| server.close_from(address)).sum();
        self.sort();
        closed
    }

    /// A server's tunnel connected or broke.
    pub fn set_health(&mut self, address: &Address, health: Health, now: Instant) {
        if let Some(at) = self.find(address) {
            self.servers[at].health = health;
            if health == Health::Failed {
                self.servers[at].fail(false, now);
            }
        }
        self.promote_healthy(now);
    }

    /// Every server as it is now.
    pub fn snapshot(&mut self, now: Instant) -> Vec<Snapshot> {
        self.promote_healthy(now);
        let snapshot = |server: &Server| Snapshot {
            address: server.address.clone(),
            state: server.state,
            connections: server.connections(),
        };
        self.servers.iter().map(snapshot).collect()
    }

    /// Draws the conclusions of what is known of servers' health and of the time that has passed.
    fn promote_healthy(&mut self, now: Instant) {
        let healthy = |server: &&Server| server.health == Health::Ok;
        let healthy: Vec<Address> = self.servers.iter().filter(healthy).map(|server| server.address.clone()).collect();
        for address in healthy {
            while self.succeed(&address, Success::Health, now) {}
        }
        self.sort();
    }

    fn succeed(&mut self, address: &Address, success: Success, now: Instant) -> bool {
        let Some(at) = self.find(address) else { return false };
        let Some(state) = self.servers[at].after(success, now) else { return false };
        let state = if state == State::Active { self.make_room(at, now) } else { state };
        self.servers[at].enter(state, now);
        true
    }

    /// Brings clients together on the server at `at`, or, where another one that is in use has more of them, there.
    fn make_room(&mut self, at: usize, now: Instant) -> State {
        let connections = self.servers[at].connections();
        let busier = |server: &Server| server.state == State::Active && server.connections() > connections;
        let stays = self.servers.iter().any(busier);
        for (_, other) in self.servers.iter_mut().enumerate().filter(|(i, _)| *i != at) {
            if other.state.yields() {
                other.close();
            } else if other.state == State::Active && !stays {
                other.enter(State::Preferred, now);
                other.close();
            }
        }
        if stays {
            self.servers[at].close();
            State::Preferred
        } else {
            State::Active
        }
    }

    fn find(&self, address: &Address) -> Option<usize> {
        self.servers.iter().position(|server| server.address == *address)
    }

    fn sort(&mut self) {
        // Stable: equals stay as they are, so that clients do not wander.
        self.servers.sort_by_key(|server| std::cmp::Reverse((server.state, server.connections())));
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use proptest::{collection, prelude::*, sample};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

    fn address(name: &str) -> Address {
        Address::new(name, 6443)
    }

    fn listed(names: &[&str]) -> BTreeSet<Address> {
        names.iter().map(|name| address(name)).collect()
    }

    fn pool(names: &[&str], now: Instant) -> Pool {
        Pool::new(Some(address("fixed")), listed(names), now)
    }

    fn states(pool: &mut Pool, now: Instant) -> Vec<(String, State)> {
        pool.snapshot(now).into_iter().map(|server| (server.address.host().to_owned(), server.state)).collect()
    }

    fn state(pool: &mut Pool, name: &str, now: Instant) -> State {
        states(pool, now).into_iter().find(|(host, _)| host == name).expect("the server is there").1
    }

    #[test]
    fn the_registration_address_is_all_there_is_at_first_and_the_last_resort_later() {
        let now = Instant::now();
        let mut pool = pool(&[], now);
        assert_eq!(pool.candidates(now), [address("fixed")]);
        assert!(pool.set_servers(listed(&["a", "b"]), now));
        assert!(!pool.set_servers(listed(&["b", "a"]), now));
        assert!(!pool.set_servers(BTreeSet::new(), now));
        assert_eq!(pool.candidates(now), [address("a"), address("b"), address("fixed")]);
        assert_eq!(pool.listed(), listed(&["a", "b"]));
        pool.set_servers(listed(&["fixed", "b"]), now);
        assert_eq!(state(&mut pool, "fixed", now), State::Unchecked);
    }

    #[test]
    fn without_a_registration_address_only_listed_servers_are_dialled() {
        let now = Instant::now();
        let mut pool = Pool::new(None, BTreeSet::new(), now);
        assert_eq!(pool.candidates(now), []);
        pool.set_servers(listed(&["a", "b"]), now);
        assert_eq!(pool.candidates(now), [address("a"), address("b")]);
        pool.set_servers(listed(&["b"]), now);
        assert_eq!(pool.candidates(now), [address("b")]);
    }

    #[test]
    fn a_server_in_use_gets_active_by_its_tunnel_and_keeps_its_clients_until_it_breaks() {
        let now = Instant::now();
        let mut pool = pool(&["a", "b"], now);
        let first = pool.dialled(&address("a"), HERE, now).unwrap();
        assert_eq!(state(&mut pool, "a", now), State::Recovering);
        pool.set_health(&address("a"), Health::Ok, now);
        pool.set_health(&address("b"), Health::Ok, now);
        assert_eq!(states(&mut pool, now)[..2], [("a".into(), State::Active), ("b".into(), State::Preferred)]);

        pool.set_health(&address("a"), Health::Failed, now);
        assert!(first.over().is_cancelled());
        assert_eq!(pool.candidates(now), [address("b"), address("fixed"), address("a")]);
        let second = pool.dialled(&address("b"), HERE, now).unwrap();
        assert_eq!(state(&mut pool, "b", now), State::Active);

        pool.set_health(&address("a"), Health::Ok, now + Duration::from_secs(5));
        assert_eq!(pool.candidates(now)[0], address("b"), "clients do not go back");
        assert!(!second.over().is_cancelled());
    }

    #[test]
    fn the_registration_address_lets_its_clients_go_once_a_server_is_in_use() {
        let now = Instant::now();
        let mut pool = pool(&[], now);
        let early = pool.dialled(&address("fixed"), HERE, now).unwrap();
        pool.set_servers(listed(&["a"]), now);
        pool.set_health(&address("a"), Health::Ok, now);
        assert!(!early.over().is_cancelled());
        pool.dialled(&address("a"), HERE, now).unwrap();
        assert!(early.over().is_cancelled());
    }

    #[test]
    fn a_server_that_cannot_be_dialled_is_left_alone_for_a_second_although_its_tunnel_stands() {
        let now = Instant::now();
        let mut pool = pool(&["a", "b"], now);
        for name in ["a", "b"] {
            pool.set_health(&address(name), Health::Ok, now);
        }
        pool.dial_failed(&address("a"), now);
        assert_eq!(state(&mut pool, "a", now), State::Failed);
        assert_eq!(state(&mut pool, "a", now + Duration::from_secs(1)), State::Preferred);
    }

    #[test]
    fn preference_fades() {
        let now = Instant::now();
        let mut pool = pool(&["a"], now);
        pool.set_health(&address("a"), Health::Ok, now);
        assert_eq!(state(&mut pool, "a", now + Duration::from_secs(60)), State::Preferred);
        assert_eq!(state(&mut pool, "a", now + Duration::from_secs(61)), State::Healthy);
    }

    #[test]
    fn of_two_in_use_the_busier_one_stays() {
        let now = Instant::now();
        let mut pool = pool(&["a", "b"], now);
        let one = pool.dialled(&address("a"), HERE, now).unwrap();
        let others = [(); 2].map(|()| pool.dialled(&address("b"), HERE, now).unwrap());
        pool.set_health(&address("b"), Health::Ok, now);
        assert!(one.over().is_cancelled(), "clients come together where the tunnel is");
        let one = pool.dialled(&address("a"), HERE, now).unwrap();
        pool.set_health(&address("a"), Health::Ok, now);
        assert!(one.over().is_cancelled());
        assert!(others.iter().all(|other| !other.over().is_cancelled()));
        assert_eq!(states(&mut pool, now)[..2], [("b".into(), State::Active), ("a".into(), State::Preferred)]);
    }

    #[test]
    fn a_server_that_is_taken_off_the_list_lets_its_clients_go() {
        let now = Instant::now();
        let mut pool = pool(&["a", "b"], now);
        let connection = pool.dialled(&address("a"), HERE, now).unwrap();
        pool.set_servers(listed(&["b"]), now);
        assert!(connection.over().is_cancelled());
        assert!(pool.dialled(&address("a"), HERE, now).is_none());
        pool.ended(&connection);
        assert_eq!(pool.candidates(now), [address("b"), address("fixed")]);
    }

    #[test]
    fn connections_from_a_lost_address_are_over_and_their_server_is_no_worse_for_it() {
        let now = Instant::now();
        let mut pool = pool(&["a"], now);
        pool.set_health(&address("a"), Health::Ok, now);
        let [gone, stays] = [[127, 0, 0, 2], [127, 0, 0, 3]].map(IpAddr::from);
        let [lost, kept] = [gone, stays].map(|source| pool.dialled(&address("a"), source, now).unwrap());
        assert_eq!(pool.lost_address(gone), 1);
        assert_eq!((lost.over().is_cancelled(), kept.over().is_cancelled()), (true, false));
        pool.ended(&lost);
        let shown = pool.snapshot(now).remove(0);
        assert_eq!((shown.state, shown.connections), (State::Active, 1));
        assert_eq!(pool.lost_address(gone), 0);
        let back = pool.dialled(&address("a"), gone, now).unwrap();
        assert!(!back.over().is_cancelled(), "an address may come back");
    }

    #[derive(Debug, Clone)]
    enum Event {
        Dial(&'static str, IpAddr),
        AddressGoes(IpAddr),
        DialFails(&'static str),
        Ends(usize),
        Health(&'static str, Health),
        Servers(BTreeSet<&'static str>),
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let name = || sample::select(vec!["a", "b", "c", "fixed"]);
        let source = || sample::select(vec![HERE, IpAddr::from([192, 0, 2, 8])]);
        let event = prop_oneof![
            4 => (name(), source()).prop_map(|(name, source)| Event::Dial(name, source)),
            1 => source().prop_map(Event::AddressGoes),
            2 => name().prop_map(Event::DialFails),
            2 => any::<usize>().prop_map(Event::Ends),
            3 => (name(), sample::select(vec![Health::Ok, Health::Failed, Health::Unknown]))
                .prop_map(|(name, health)| Event::Health(name, health)),
            1 => collection::btree_set(name(), 0..4).prop_map(Event::Servers),
            1 => (0..90u64).prop_map(Event::Wait),
        ];
        collection::vec(event, 0..60)
    }

    proptest! {
        #[test]
        fn whatever_happens(events in events()) {
            let mut now = Instant::now();
            let mut pool = pool(&["a", "b"], now);
            let mut open: Vec<Connection> = Vec::new();
            for event in events {
                match event {
                    Event::Dial(name, source) => open.extend(pool.dialled(&address(name), source, now)),
                    Event::AddressGoes(source) => {
                        pool.lost_address(source);
                        let left = open.iter().filter(|one| one.source == source);
                        prop_assert!(left.into_iter().all(|one| one.over.is_cancelled()));
                    }
                    Event::DialFails(name) => pool.dial_failed(&address(name), now),
                    Event::Ends(which) if !open.is_empty() => {
                        let ended = open.swap_remove(which % open.len());
                        pool.ended(&ended);
                    }
                    Event::Ends(_) => {}
                    Event::Health(name, health) => pool.set_health(&address(name), health, now),
                    Event::Servers(names) => {
                        let names: Vec<&str> = names.into_iter().collect();
                        pool.set_servers(listed(&names), now);
                    }
                    Event::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                let servers = pool.snapshot(now);
                let rank = |server: &Snapshot| (server.state, server.connections);
                prop_assert!(servers.is_sorted_by(|one, next| rank(one) >= rank(next)), "{servers:?}");
                prop_assert!(servers.iter().filter(|server| server.state == State::Active).count() <= 1, "{servers:?}");
                prop_assert!(servers.iter().any(|server| server.address == address("fixed")), "{servers:?}");
                for server in &servers {
                    let live = |connection: &&Connection| {
                        connection.address == server.address && !connection.over.is_cancelled()
                    };
                    prop_assert_eq!(server.connections, open.iter().filter(live).count(), "{:?}", server);
                }
                let known: BTreeSet<Address> = servers.into_iter().map(|server| server.address).collect();
                prop_assert!(open.iter().all(|one| one.over.is_cancelled() || known.contains(&one.address)));
            }
        }
    }
}
