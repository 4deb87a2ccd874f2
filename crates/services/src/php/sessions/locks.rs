//! Locks of sessions whose holder's machine is gone: they would keep their users waiting until they
//! expire. PHP's handler writes who holds a lock into it, as `HOST|PROCESS`. Pure; the store is
//! asked elsewhere.

use super::config::PREFIX;
use conpaas_model::ids::NodeNumber;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long after a node is gone its locks are looked for: what it had sent may still arrive.
const LOOKED_FOR: Duration = Duration::from_secs(5);

/// Frees all locks of a host at once, so that none is taken in between. Returns how many.
pub const SCRIPT: &str = "\
local cursor, freed = '0', 0
repeat
  local found = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    local holder = redis.call('GET', key)
    if holder and string.sub(holder, 1, #ARGV[2]) == ARGV[2] then
      redis.call('DEL', key)
      freed = freed + 1
    end
  end
until cursor == '0'
return freed";

/// Names of locks, as the store matches them.
pub fn pattern() -> String {
    format!("{PREFIX}*_LOCK")
}

/// How a lock begins that a node's PHP holds, by this node's host name and number.
pub fn holder(own_host: &str, own: NodeNumber, other: NodeNumber) -> Option<String> {
    let head = own_host.strip_suffix(&own.to_string())?;
    head.ends_with('-').then(|| format!("{head}{other}|"))
}

/// Which users of the store are there, and which were.
#[derive(Debug, Default)]
pub struct Holders {
    known: BTreeSet<NodeNumber>,
    gone: BTreeMap<NodeNumber, Duration>,
}

impl Holders {
    /// Takes in who is there `now` (time since any fixed moment); those whose locks are to be
    /// freed. Only who was seen to be there can be gone: whoever has just come may be unknown
    /// here still.
    pub fn take(&mut self, users: &BTreeSet<NodeNumber>, now: Duration) -> Vec<NodeNumber> {
        let left = self.known.difference(users).map(|node| (*node, now));
        self.gone.extend(left);
        self.known.clone_from(users);
        self.gone
            .retain(|node, since| !users.contains(node) && now.saturating_sub(*since) < LOOKED_FOR);
        self.gone.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_there_and_is_not_any_more_is_gone_for_a_while() {
        let nodes = |numbers: &[u64]| numbers.iter().copied().map(NodeNumber).collect();
        let second = Duration::from_secs;
        let mut holders = Holders::default();
        let mut gone = |users: &[u64], now| {
            let gone = holders.take(&nodes(users), second(now));
            gone.iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(gone(&[2, 3], 0), [0; 0]);
        assert_eq!(gone(&[3, 4], 1), [2]);
        assert_eq!(gone(&[3, 4], 4), [2]);
        assert_eq!(gone(&[4], 5), [2, 3]);
        assert_eq!(gone(&[4], 6), [3]);
        // It was only out of sight.
        assert_eq!(gone(&[3, 4], 7), [0; 0]);
    }

    #[test]
    fn a_holder_is_named_as_its_machine() {
        let name = |host, own, other| holder(host, NodeNumber(own), NodeNumber(other));
        assert_eq!(name("shop-it-12", 12, 7).as_deref(), Some("shop-it-7|"));
        assert_eq!(name("shop-it-12", 2, 7), None);
        assert_eq!(name("elsewhere", 2, 7), None);
    }
}
