//! Brakes on guessing: how many attempts of whom went wrong, and how long the next one has to wait.
//! In memory and bounded: a restart forgives. What an attempt is, and whether it was right, is its
//! callers' business (`api` for logins, `machines` for enrolments).

use crate::error::DirectorError;
use crate::store::Millis;
use conpaas_model::ids::ApplicationId;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

/// How long attempts are remembered.
const FORGET_AFTER_MS: Millis = 15 * 60_000;
/// Attempts remembered at once, so that many addresses cannot fill the memory; then the oldest go.
const MOST: usize = 20_000;

/// Where an attempt comes from, as far as it tells one person from another: an IPv4 address, or the
/// first 64 bits of an IPv6 one, since the rest is whatever a computer of that network chooses.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(prefix).into()
        }
    }
}

/// How slow a brake makes things.
#[derive(Clone, Copy)]
struct Pace {
    /// Attempts that cost nothing.
    free: u32,
    /// The longest pause; they double from one second on.
    longest: Millis,
}

impl Pace {
    /// Milliseconds to wait after so many wrong attempts.
    fn pause(self, count: u32) -> Millis {
        if count < self.free {
            return 0;
        }
        let doubled = 1_000i64
            .checked_shl((count - self.free).min(16))
            .unwrap_or(self.longest);
        doubled.min(self.longest)
    }
}

#[derive(Clone, Copy)]
struct Attempts {
    count: u32,
    last: Millis,
}

/// Attempts by whatever they are counted by.
struct Counts<K> {
    most: usize,
    found: HashMap<K, Attempts>,
}

impl<K: Eq + Hash + Clone> Counts<K> {
    fn new(most: usize) -> Self {
        Self {
            most,
            found: HashMap::new(),
        }
    }

    fn left(&self, key: &K, pace: Pace, now: Millis) -> Millis {
        let Some(found) = self.found.get(key) else {
            return 0;
        };
        if found.last.saturating_add(FORGET_AFTER_MS) <= now {
            return 0;
        }
        let pause = pace.pause(found.count);
        // Never longer than the pause, even when the clock was set back.
        (found.last + pause - now).min(pause)
    }

    fn count(&mut self, key: K, now: Millis) {
        if self.found.len() >= self.most && !self.found.contains_key(&key) {
            self.make_room(now);
        }
        let found = self.found.entry(key).or_insert(Attempts {
            count: 0,
            last: now,
        });
        if found.last.saturating_add(FORGET_AFTER_MS) <= now {
            found.count = 0;
        }
        found.count = found.count.saturating_add(1);
        found.last = now;
    }

    /// Lets go what is over, and of the rest the older half if that was not enough.
    fn make_room(&mut self, now: Millis) {
        self.found
            .retain(|_, found| found.last.saturating_add(FORGET_AFTER_MS) > now);
        if self.found.len() < self.most {
            return;
        }
        let mut times: Vec<Millis> = self.found.values().map(|found| found.last).collect();
        times.sort_unstable();
        let middle = times.get(times.len() / 2).copied().unwrap_or(now);
        self.found.retain(|_, found| found.last > middle);
    }

    fn take_back(&mut self, key: &K) {
        if let Some(found) = self.found.get_mut(key) {
            found.count = found.count.saturating_sub(1);
            if found.count == 0 {
                self.found.remove(key);
            }
        }
    }
}

/// Seconds, rounded up, as people and headers are told them.
fn seconds(wait: Millis) -> u32 {
    u32::try_from((wait + 999) / 1000).unwrap_or(u32::MAX)
}

/// Slows guessing of passwords down: attempts by name and network, and by network alone, until they
/// turn out right.
pub struct LoginBrake {
    attempts: Mutex<Counts<(String, IpAddr)>>,
}

/// By one name from one network, and from one network at all.
const BY_NAME: Pace = Pace {
    free: 5,
    longest: 60_000,
};
const BY_NETWORK: Pace = Pace {
    free: 30,
    longest: 60_000,
};

impl Default for LoginBrake {
    fn default() -> Self {
        Self {
            attempts: Mutex::new(Counts::new(MOST)),
        }
    }
}

impl LoginBrake {
    /// Refuses an attempt that comes too soon after wrong ones. One that may go on counts as wrong
    /// from here on, so that guessing at the same time gains nothing, until `succeeded` or
    /// `not_made` takes it back.
    ///
    /// # Errors
    /// `too_many_attempts`, with the time to wait.
    pub fn check(&self, name: &str, address: IpAddr, now: Millis) -> Result<(), DirectorError> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network_of(address);
        let (by_name, by_network) = ((name.to_owned(), network), (String::new(), network));
        let wait =
            attempts
                .left(&by_name, BY_NAME, now)
                .max(attempts.left(&by_network, BY_NETWORK, now));
        if wait > 0 {
            let seconds = seconds(wait);
            return Err(DirectorError::unavailable(
                "too_many_attempts",
                format!("too many failed logins; try again in {seconds} s"),
            )
            .retry_after(seconds));
        }
        attempts.count(by_name, now);
        attempts.count(by_network, now);
        Ok(())
    }

    /// The password was right: nothing is held against this name here any more, and this attempt
    /// not against the network.
    pub fn succeeded(&self, name: &str, address: IpAddr) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network_of(address);
        attempts.found.remove(&(name.to_owned(), network));
        attempts.take_back(&(String::new(), network));
    }

    /// The attempt that `check` let through was not made: no password was looked at.
    pub fn not_made(&self, name: &str, address: IpAddr) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network_of(address);
        attempts.take_back(&(name.to_owned(), network));
        attempts.take_back(&(String::new(), network));
    }
}

/// Slows attempts at enrolment down, which need no credentials and cost signatures: by the network
/// they come from. Inside an application's network that is one node, so that what an application
/// does there holds up neither its other nodes nor other applications.
pub struct EnrolmentBrake {
    attempts: Mutex<Counts<Origin>>,
}

/// The application in whose network an attempt was made, if it was one's, and from where there.
type Origin = (Option<ApplicationId>, IpAddr);

/// An agent that lost its answer asks a few times; a machine whose address was another's before
/// must not wait for long.
const ENROLMENTS: Pace = Pace {
    free: 60,
    longest: 10_000,
};

impl Default for EnrolmentBrake {
    fn default() -> Self {
        Self {
            attempts: Mutex::new(Counts::new(MOST)),
        }
    }
}

impl EnrolmentBrake {
    /// Lets an attempt through and counts it as wrong until it is [`EnrolmentBrake::succeeded`], or
    /// gives the seconds it has to wait.
    pub fn check(
        &self,
        network: Option<&ApplicationId>,
        address: IpAddr,
        now: Millis,
    ) -> Result<(), u32> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = (network.cloned(), network_of(address));
        let wait = attempts.left(&origin, ENROLMENTS, now);
        if wait > 0 {
            return Err(seconds(wait));
        }
        attempts.count(origin, now);
        Ok(())
    }

    /// The attempt was right: nothing is held against where it came from.
    pub fn succeeded(&self, network: Option<&ApplicationId>, address: IpAddr) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.take_back(&(network.cloned(), network_of(address)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn remembered<K>(counts: &Mutex<Counts<K>>) -> usize {
        counts.lock().unwrap().found.len()
    }

    #[test]
    fn guessing_gets_slower_and_a_right_password_forgives() {
        let brake = LoginBrake::default();
        for now in 0..5 {
            assert!(brake.check("ann", HERE, now).is_ok(), "{now}");
        }
        let error = brake.check("ann", HERE, 5).unwrap_err().to_string();
        assert!(error.contains("try again in"), "{error}");
        assert!(brake.check("bob", HERE, 5).is_ok());
        assert!(brake.check("ann", HERE, 5_000).is_ok());
        brake.succeeded("ann", HERE);
        assert!(brake.check("ann", HERE, 5).is_ok());
    }

    #[test]
    fn attempts_at_the_same_time_are_braked_like_others() {
        let brake = LoginBrake::default();
        let through = |name: &dyn Fn(u32) -> String| {
            let let_through = |n: &u32| brake.check(&name(*n), HERE, 0).is_ok();
            (0..150).filter(let_through).count()
        };
        assert_eq!(through(&|_| "ann".to_owned()), 5);
        assert_eq!(through(&|n| format!("name{n}")), 25, "30 by the network");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let brake = LoginBrake::default();
        let from = |network: u16, host: u64| {
            let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (host >> shift) as u16);
            IpAddr::from([0x2001, 0xdb8, 0, network, a, b, c, d])
        };
        let through = |network| {
            let tried = |host: &u64| {
                let name = format!("name{host}");
                brake.check(&name, from(network, host << 20), 0).is_ok()
            };
            (0..200).filter(tried).count()
        };
        assert_eq!(through(1), 30, "one computer has 2^64 addresses");
        assert_eq!(through(2), 30, "its neighbours' networks are others");
        // The same person by another spelling of an IPv4 address.
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(network_of(mapped), HERE);
        assert_eq!(network_of(HERE), HERE);
    }

    #[test]
    fn right_attempts_and_those_not_made_cost_nothing() {
        let brake = LoginBrake::default();
        for _ in 0..200 {
            brake.check("ann", HERE, 0).unwrap();
            brake.succeeded("ann", HERE);
            brake.check("bob", HERE, 0).unwrap();
            brake.not_made("bob", HERE);
        }
        assert_eq!(remembered(&brake.attempts), 0);
        // What is not made takes back itself alone.
        for _ in 0..5 {
            brake.check("ann", HERE, 0).unwrap();
        }
        brake.not_made("ann", HERE);
        assert!(brake.check("ann", HERE, 0).is_ok());
        assert!(brake.check("ann", HERE, 0).is_err());
    }

    #[test]
    fn pauses_are_bounded_and_end() {
        assert_eq!(BY_NAME.pause(0), 0);
        assert_eq!(BY_NAME.pause(5), 1_000);
        assert_eq!(BY_NAME.pause(6), 2_000);
        assert_eq!(BY_NAME.pause(4_000_000_000), 60_000);
        let brake = LoginBrake::default();
        let mut now = 0;
        for _ in 0..40 {
            now += 60_000;
            assert!(brake.check("ann", HERE, now).is_ok());
        }
        assert!(brake.check("ann", HERE, now + 1).is_err());
        // Who was away for long begins anew.
        now += FORGET_AFTER_MS;
        for more in 0..5 {
            assert!(brake.check("ann", HERE, now + more).is_ok(), "{more}");
        }
    }

    #[test]
    fn the_memory_is_bounded_and_the_newest_stay() {
        let mut counts = Counts::new(100);
        for n in 0..10_000i64 {
            counts.count(n, n);
            assert!(counts.found.len() <= 100);
        }
        assert!(counts.found.contains_key(&9_999) && !counts.found.contains_key(&0));
        // A flood at one instant does no better.
        for n in 0..10_000i64 {
            counts.count(-n, 20_000);
            assert!(counts.found.len() <= 100);
        }
    }

    #[test]
    fn enrolments_are_braked_by_network_and_node() {
        let brake = EnrolmentBrake::default();
        let (shop, blog): (ApplicationId, ApplicationId) =
            ("app-shop".parse().unwrap(), "app-blog".parse().unwrap());
        let through = |network: Option<&ApplicationId>, address: IpAddr| {
            let tried = |_: &u32| brake.check(network, address, 0).is_ok();
            (0..500).filter(tried).count()
        };
        let (one, two) = (
            IpAddr::from([100, 64, 0, 10]),
            IpAddr::from([100, 64, 0, 11]),
        );
        assert_eq!(through(Some(&shop), one), 60);
        // Other nodes of it, other applications and the host's network are not held up.
        assert_eq!(through(Some(&shop), two), 60);
        assert_eq!(through(Some(&blog), one), 60);
        assert_eq!(through(None, one), 60);
        let wait = brake.check(Some(&shop), one, 0).unwrap_err();
        assert!((1..=10).contains(&wait), "{wait}");
        assert!(brake.check(Some(&shop), one, 1_000).is_ok());
        // Renewals, which are right, are never braked.
        let renewing = IpAddr::from([100, 64, 0, 12]);
        for _ in 0..1_000 {
            brake.check(Some(&shop), renewing, 0).unwrap();
            brake.succeeded(Some(&shop), renewing);
        }
    }
}
