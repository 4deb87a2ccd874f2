//! Locks of sessions that would keep their users waiting until they expire: their holder's machine
//! is gone, or their holder was never told that it has them. PHP's handler writes who holds a lock
//! into it, as `HOST|PROCESS`. Pure; the store is asked elsewhere.

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

/// Takes a lock that is free or whose holder asks once more.
const TAKE: &str = "\
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return false end
return redis.call('SET', KEYS[1], unpack(ARGV))";

/// What takes a lock when the answer to `question`, which asks for one (`SET KEY HOLDER NX ..`),
/// was lost: whoever got it and does not know would otherwise wait for itself. A process of PHP
/// does one thing at a time, so a lock in its name is no other request's.
pub fn taken_again(question: &[u8]) -> Option<Vec<u8>> {
    let words = words(question)?;
    let (command, rest) = words.split_first()?;
    let (key, rest) = rest.split_first()?;
    let is_lock = |word: &&[u8]| word.eq_ignore_ascii_case(b"NX");
    if !command.eq_ignore_ascii_case(b"SET") || !rest.iter().skip(1).any(is_lock) {
        return None;
    }
    let mut again = redis::cmd("EVAL");
    again.arg(TAKE).arg(1).arg(key).arg(rest.first()?);
    for option in rest.iter().skip(1).filter(|word| !is_lock(word)) {
        again.arg(option);
    }
    Some(again.get_packed_command())
}

/// The words of a whole question that is no longer than it says. Code that people wrote sends
/// these, so nothing is believed.
fn words(question: &[u8]) -> Option<Vec<&[u8]>> {
    const MOST: usize = 16;
    let (count, mut rest) = number(question, b'*')?;
    let mut words = Vec::new();
    for _ in 0..(count <= MOST).then_some(count)? {
        let (length, after) = number(rest, b'$')?;
        let (word, after) = after.split_at_checked(length)?;
        words.push(word);
        rest = after.strip_prefix(b"\r\n")?;
    }
    rest.is_empty().then_some(words)
}

/// A number on a line of its own behind a mark, and what follows.
fn number(text: &[u8], mark: u8) -> Option<(usize, &[u8])> {
    let text = text.strip_prefix(&[mark])?;
    let end = text.iter().position(|byte| *byte == b'\r')?;
    let number = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
    Some((number, text[end..].strip_prefix(b"\r\n")?))
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
    fn only_what_takes_a_lock_is_asked_otherwise() {
        let ask = |words: &[&str]| {
            let mut command = redis::Cmd::new();
            for word in words {
                command.arg(word);
            }
            command.get_packed_command()
        };
        let lock = ["SET", "s_LOCK", "web-3|17", "NX", "PX", "30000"];
        let again = taken_again(&ask(&lock)).unwrap();
        let expected = ["EVAL", TAKE, "1", "s_LOCK", "web-3|17", "PX", "30000"];
        assert_eq!(again, ask(&expected));
        let late = ["set", "s_LOCK", "web-3|17", "PX", "30000", "nx"];
        assert_eq!(taken_again(&ask(&late)), Some(ask(&expected)));
        for other in [
            &["SETEX", "s", "30", "NX"][..],
            &["GET", "NX"],
            &["SET", "s", "NX"],
            &["SET", "NX", "v"],
            &["SET"],
        ] {
            assert_eq!(taken_again(&ask(other)), None, "{other:?}");
        }
        // Neither half a question nor two of them.
        let whole = ask(&lock);
        for length in 0..whole.len() {
            assert_eq!(taken_again(&whole[..length]), None);
        }
        assert_eq!(taken_again(&[whole.clone(), whole].concat()), None);
        for odd in [
            "",
            "*",
            "*99\r\n",
            "*1\r\n$-1\r\n",
            "*1\r\n$18446744073709551615\r\n",
            "PING\r\n",
        ] {
            assert_eq!(taken_again(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn a_holder_is_named_as_its_machine() {
        let name = |host, own, other| holder(host, NodeNumber(own), NodeNumber(other));
        assert_eq!(name("shop-it-12", 12, 7).as_deref(), Some("shop-it-7|"));
        assert_eq!(name("shop-it-12", 2, 7), None);
        assert_eq!(name("elsewhere", 2, 7), None);
    }
}
