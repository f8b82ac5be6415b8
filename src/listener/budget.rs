//! How often something may be done: a burst, and then so often a second.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use tokio::time::Instant;

/// Sources that have a budget of their own at the same time. Those beyond share one.
const SOURCES: usize = 4096;

/// A token bucket's size and speed.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// What may be done at once.
    pub burst: u32,
    /// After that, one in this time.
    pub interval: Duration,
}

/// A token bucket, kept as the moment at which it is full again.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    full_at: Instant,
}

/// A budget for each source address; an IPv6 source is its network of 64 bits, since a host has all of it.
#[derive(Debug)]
pub struct Sources {
    rate: Rate,
    budgets: HashMap<IpAddr, Budget>,
    shared: Budget,
}

impl Budget {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Spends one, if there is one.
    pub fn spend(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + rate.interval;
        let affordable = self.affordable_in(rate, now).is_zero();
        if affordable {
            self.full_at = full_at;
        }
        affordable
    }

    /// How long it takes until there is one to spend; zero if there is.
    pub fn affordable_in(&self, rate: Rate, now: Instant) -> Duration {
        let full_at = self.full_at.max(now) + rate.interval;
        (full_at - now).saturating_sub(rate.interval * rate.burst)
    }

    /// Takes back one that was spent.
    pub fn give_back(&mut self, rate: Rate) {
        self.full_at = self.full_at.checked_sub(rate.interval).unwrap_or(self.full_at);
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

impl Sources {
    /// Full budgets for all.
    pub fn new(rate: Rate) -> Self {
        Self { rate, budgets: HashMap::new(), shared: Budget::new(Instant::now()) }
    }

    /// Spends one of the source's, if there is one.
    pub fn spend(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = network(source);
        if self.budgets.len() >= SOURCES && !self.budgets.contains_key(&source) {
            self.budgets.retain(|_, budget| !budget.is_full(now));
            if self.budgets.len() >= SOURCES {
                return self.shared.spend(self.rate, now);
            }
        }
        self.budgets.entry(source).or_insert_with(|| Budget::new(now)).spend(self.rate, now)
    }

    /// How long it takes until the source has one to spend.
    pub fn affordable_in(&self, source: IpAddr, now: Instant) -> Duration {
        match self.budgets.get(&network(source)) {
            Some(budget) => budget.affordable_in(self.rate, now),
            None if self.budgets.len() < SOURCES => Duration::ZERO,
            None => self.shared.affordable_in(self.rate, now),
        }
    }

    /// Takes back one that the source spent.
    pub fn give_back(&mut self, source: IpAddr) {
        let rate = self.rate;
        self.budgets.get_mut(&network(source)).unwrap_or(&mut self.shared).give_back(rate);
    }
}

/// What counts as one source: an address, or an IPv6 network of 64 bits.
pub fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, interval: Duration::from_secs(1) };

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut spent = |after: u64| (0..10).filter(|_| budget.spend(RATE, start + Duration::from_secs(after))).count();
        assert_eq!([spent(0), spent(0), spent(1), spent(3), spent(60)], [3, 0, 1, 2, 3]);
        let affordable_in = |after: u64| budget.affordable_in(RATE, start + Duration::from_millis(after));
        assert_eq!([60_000, 60_400, 61_000].map(affordable_in), [1000, 600, 0].map(Duration::from_millis));
    }

    #[test]
    fn what_was_given_back_can_be_spent_again() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        while budget.spend(RATE, now) {}
        budget.give_back(RATE);
        assert!(budget.spend(RATE, now) && !budget.spend(RATE, now));
    }

    #[test]
    fn sources_do_not_spend_for_each_other_however_many_they_are() {
        let mut sources = Sources::new(RATE);
        let now = Instant::now();
        let source = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        let spend = |sources: &mut Sources, source| (0..10).filter(|_| sources.spend(source, now)).count();
        for number in 0..SOURCES {
            assert_eq!(spend(&mut sources, source(number)), 3);
        }
        assert_eq!(spend(&mut sources, source(SOURCES)), 3, "the one that is shared");
        assert_eq!(spend(&mut sources, source(SOURCES + 1)), 0);
        let later = now + RATE.interval * RATE.burst;
        assert!(sources.spend(source(SOURCES + 2), later), "those that are full again made room");
        assert_eq!(sources.budgets.len(), 1);
    }

    #[test]
    fn a_host_has_one_budget_for_all_its_addresses() {
        let mut sources = Sources::new(RATE);
        let now = Instant::now();
        for (address, allowed) in
            [("192.0.2.1", 3), ("::ffff:192.0.2.1", 0), ("2001:db8::1", 3), ("2001:db8::2", 0), ("2001:db8:0:1::1", 3)]
        {
            let address = address.parse().unwrap();
            assert_eq!((0..10).filter(|_| sources.spend(address, now)).count(), allowed, "{address}");
        }
    }
}
