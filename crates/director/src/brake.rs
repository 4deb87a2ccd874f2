//! Brakes on guessing: how many attempts of whom went wrong, and how long the next one has to wait.
//! In memory and bounded: a restart forgives. What an attempt is, and whether it was right, is its
//! callers' business (`api` for logins, `machines` for enrolments).

use crate::error::DirectorError;
use crate::store::Millis;
use conpaas_model::ids::ApplicationId;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long attempts are remembered.
const FORGET_AFTER_MS: Millis = 15 * 60_000;
/// For how long a name that came in is known.
const KNOWN_FOR_MS: Millis = 24 * 3_600_000;
/// How long an attempt waits for what comes of others.
const PATIENCE: Duration = Duration::from_secs(20);
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
    /// Those that went wrong, and those under way.
    count: u32,
    under_way: u32,
    /// When the last one began.
    last: Millis,
    /// When the last one began that went wrong.
    wrong: Millis,
}

/// How long one has to wait.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Wait {
    /// For what went wrong.
    wrong: Millis,
    /// The same, if all that is under way goes wrong.
    at_worst: Millis,
}

impl Wait {
    fn max(self, other: Self) -> Self {
        Self {
            wrong: self.wrong.max(other.wrong),
            at_worst: self.at_worst.max(other.at_worst),
        }
    }
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

    fn left(&self, key: &K, pace: Pace, now: Millis) -> Wait {
        let Some(found) = self.found.get(key) else {
            return Wait::default();
        };
        if found.last.saturating_add(FORGET_AFTER_MS) <= now {
            return Wait::default();
        }
        let left = |count: u32, since: Millis| {
            let pause = pace.pause(count);
            // Never longer than the pause, even when the clock was set back.
            (since + pause - now).min(pause)
        };
        let wrong = left(found.count.saturating_sub(found.under_way), found.wrong);
        Wait {
            wrong,
            at_worst: match found.under_way {
                0 => wrong,
                _ => wrong.max(pace.pause(found.count)),
            },
        }
    }

    /// One more is under way.
    fn begin(&mut self, key: K, now: Millis) {
        let found = self.one_more(key, now);
        found.under_way = found.under_way.saturating_add(1);
    }

    /// One that was under way has ended, and counts for as long as nobody takes it back.
    fn settle(&mut self, key: &K) -> Option<&mut Attempts> {
        let found = self.found.get_mut(key)?;
        found.under_way = found.under_way.saturating_sub(1);
        Some(found)
    }

    /// One that went wrong.
    fn count(&mut self, key: K, now: Millis) {
        self.one_more(key, now).wrong = now;
    }

    fn one_more(&mut self, key: K, now: Millis) -> &mut Attempts {
        if self.found.len() >= self.most && !self.found.contains_key(&key) {
            self.make_room(now);
        }
        let found = self.found.entry(key).or_insert(Attempts {
            count: 0,
            under_way: 0,
            last: now,
            // Long ago.
            wrong: Millis::MIN / 2,
        });
        if found.last.saturating_add(FORGET_AFTER_MS) <= now {
            found.count = found.under_way;
        }
        found.count = found.count.saturating_add(1);
        found.last = now;
        found
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
    /// Names that came in from a network lately: what others guess there is not held against them.
    known: Mutex<HashMap<(String, IpAddr), Millis>>,
    /// Told whenever an attempt has ended.
    ended: Notify,
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
            known: Mutex::default(),
            ended: Notify::new(),
        }
    }
}

impl LoginBrake {
    /// Refuses an attempt that comes too soon after wrong ones. While so many are under way that this
    /// one might, it waits for what comes of them: guessing at the same time gains nothing, and a
    /// class that logs in at one moment, from one address, is let in.
    ///
    /// # Errors
    /// `too_many_attempts`, with the time to wait.
    pub async fn admit(
        &self,
        name: &str,
        address: IpAddr,
        now: impl Fn() -> Millis,
    ) -> Result<Attempt<'_>, DirectorError> {
        let patient_until = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Before looking, so that no end is missed.
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            let wait = match self.begin(name, address, now()) {
                Ok(attempt) => return Ok(attempt),
                Err(wait) => wait,
            };
            let waited =
                wait.wrong == 0 && tokio::time::timeout_at(patient_until, ended).await.is_ok();
            if !waited {
                let seconds = seconds(wait.at_worst);
                return Err(DirectorError::unavailable(
                    "too_many_attempts",
                    format!("too many failed logins; try again in {seconds} s"),
                )
                .retry_after(seconds));
            }
        }
    }

    /// Begins an attempt that counts as wrong unless it turns out otherwise.
    fn begin(&self, name: &str, address: IpAddr, now: Millis) -> Result<Attempt<'_>, Wait> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network_of(address);
        let (by_name, by_network) = ((name.to_owned(), network), (String::new(), network));
        let mut wait = attempts.left(&by_name, BY_NAME, now);
        if !self.knows(&by_name, now) {
            wait = wait.max(attempts.left(&by_network, BY_NETWORK, now));
        }
        if wait.at_worst > 0 {
            return Err(wait);
        }
        attempts.begin(by_name.clone(), now);
        attempts.begin(by_network.clone(), now);
        Ok(Attempt {
            brake: self,
            by_name,
            by_network,
            began: now,
            wrong: true,
        })
    }

    fn knows(&self, name: &(String, IpAddr), now: Millis) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(name)
            .is_some_and(|at| at.saturating_add(KNOWN_FOR_MS) > now)
    }

    fn remember(&self, name: (String, IpAddr), now: Millis) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(name, now);
    }
}

/// An attempt that is under way; it was wrong if nothing else is said of it.
pub struct Attempt<'a> {
    brake: &'a LoginBrake,
    by_name: (String, IpAddr),
    by_network: (String, IpAddr),
    began: Millis,
    wrong: bool,
}

impl Attempt<'_> {
    /// The password was right: nothing is held against this name here any more, and this attempt
    /// not against the network.
    pub fn succeeded(mut self) {
        self.wrong = false;
        self.brake.remember(self.by_name.clone(), self.began);
        let attempts = &self.brake.attempts;
        let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
        // Others of that name may be under way.
        let under_way = attempts
            .found
            .get(&self.by_name)
            .map_or(0, |found| found.under_way);
        if let Some(found) = attempts.found.get_mut(&self.by_name) {
            found.count = under_way;
        }
        attempts.take_back(&self.by_name);
        attempts.take_back(&self.by_network);
    }

    /// It was not made: no password was looked at.
    pub fn not_made(mut self) {
        self.wrong = false;
        let attempts = &self.brake.attempts;
        let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.take_back(&self.by_name);
        attempts.take_back(&self.by_network);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        {
            let attempts = &self.brake.attempts;
            let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
            for key in [&self.by_name, &self.by_network] {
                if let Some(found) = attempts.settle(key)
                    && self.wrong
                {
                    found.wrong = found.wrong.max(self.began);
                }
            }
        }
        self.brake.ended.notify_waiters();
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
        let wait = attempts.left(&origin, ENROLMENTS, now).wrong;
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

    /// An attempt that goes wrong, if it is let through.
    fn wrong(brake: &LoginBrake, name: &str, address: IpAddr, now: Millis) -> bool {
        brake.begin(name, address, now).is_ok()
    }

    fn remembered<K>(counts: &Mutex<Counts<K>>) -> usize {
        counts.lock().unwrap().found.len()
    }

    #[test]
    fn guessing_gets_slower_and_a_right_password_forgives() {
        let brake = LoginBrake::default();
        for now in 0..5 {
            assert!(wrong(&brake, "ann", HERE, now), "{now}");
        }
        let wait = brake.begin("ann", HERE, 5).err().unwrap();
        assert!(wait.wrong > 0);
        assert!(wrong(&brake, "bob", HERE, 5));
        brake.begin("ann", HERE, 5_000).ok().unwrap().succeeded();
        assert!(wrong(&brake, "ann", HERE, 5));
    }

    #[test]
    fn attempts_at_the_same_time_are_braked_like_others() {
        let brake = LoginBrake::default();
        let through = |name: &dyn Fn(u32) -> String| {
            let begun = (0..150).filter_map(|n| brake.begin(&name(n), HERE, 0).ok());
            begun.collect::<Vec<_>>()
        };
        let ann = through(&|_| "ann".to_owned());
        assert_eq!(ann.len(), 5);
        let others = through(&|n| format!("name{n}"));
        assert_eq!(others.len(), 25, "30 by the network");
        // Nothing went wrong yet: who comes now has to wait for what comes of them.
        let wait = brake.begin("carl", HERE, 0).err().unwrap();
        assert!(wait.wrong == 0 && wait.at_worst > 0);
        drop((ann, others));
        assert!(brake.begin("carl", HERE, 0).err().unwrap().wrong > 0);
    }

    #[tokio::test]
    async fn a_class_that_logs_in_at_once_is_let_in_and_a_guesser_is_not() {
        let admitted = async |right: bool| {
            let brake = LoginBrake::default();
            let attempts = (0..200).map(async |n| {
                let Ok(attempt) = brake.admit(&format!("name{n}"), HERE, || 0).await else {
                    return 0;
                };
                tokio::time::sleep(Duration::from_millis(5)).await;
                if right {
                    attempt.succeeded();
                }
                1
            });
            let counts = futures::future::join_all(attempts).await;
            (counts.iter().sum::<i32>(), remembered(&brake.attempts))
        };
        assert_eq!(admitted(true).await, (200, 0));
        assert_eq!(admitted(false).await, (30, 31));
        // Who hangs up has guessed.
        let brake = LoginBrake::default();
        for _ in 0..5 {
            drop(brake.admit("ann", HERE, || 0).await.ok().unwrap());
        }
        let error = brake.admit("ann", HERE, || 0).await.err().unwrap();
        assert!(error.to_string().contains("try again in"), "{error}");
    }

    #[tokio::test]
    async fn one_who_guesses_does_not_hold_up_everybody_behind_the_same_address() {
        let brake = LoginBrake::default();
        brake.begin("ann", HERE, 0).ok().unwrap().succeeded();
        for n in 0..30 {
            assert!(wrong(&brake, &format!("guess{n}"), HERE, 10));
        }
        assert!(!wrong(&brake, "bob", HERE, 20), "all wait");
        assert!(
            brake.begin("ann", HERE, 20).is_ok(),
            "but who was in before"
        );
        // When the pause is over, right ones do not make another.
        for n in 0..100 {
            let attempt = brake.admit(&format!("name{n}"), HERE, || 4_000).await;
            attempt.ok().unwrap().succeeded();
        }
        assert!(wrong(&brake, "guess", HERE, 4_000));
        assert!(!wrong(&brake, "carl", HERE, 4_001));
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
                wrong(&brake, &name, from(network, host << 20), 0)
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
            brake.begin("ann", HERE, 0).ok().unwrap().succeeded();
            brake.begin("bob", HERE, 0).ok().unwrap().not_made();
        }
        assert_eq!(remembered(&brake.attempts), 0);
        // What is not made takes back itself alone.
        for _ in 0..4 {
            assert!(wrong(&brake, "ann", HERE, 0));
        }
        brake.begin("ann", HERE, 0).ok().unwrap().not_made();
        assert!(wrong(&brake, "ann", HERE, 0));
        assert!(!wrong(&brake, "ann", HERE, 0));
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
            assert!(wrong(&brake, "ann", HERE, now));
        }
        assert!(!wrong(&brake, "ann", HERE, now + 1));
        // Who was away for long begins anew.
        now += FORGET_AFTER_MS;
        for more in 0..5 {
            assert!(wrong(&brake, "ann", HERE, now + more), "{more}");
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
