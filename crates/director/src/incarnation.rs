//! The incarnation of the store: how numbers that are given after a restore outrank, and never
//! repeat, those that were given after the backup was taken. Restoring itself is `backup`'s
//! business; who compares which numbers is everybody's own.

use crate::error::DirectorError;
use crate::store::{self, Millis};
use conpaas_model::ids::{Epoch, NodeNumber};
use rusqlite::Connection;

const KEY: &str = "incarnation";
const RESTORED_KEY: &str = "restored-at";
/// What a manager's node is counted in within an epoch.
const NODE_BITS: u32 = 32;
/// Numbers that one service may be given on average in an hour, of each kind.
const NUMBERS_AN_HOUR: u64 = 10_000;
/// Incarnations count the hours since this moment (2026-01-01 in UTC), as far as nothing else is
/// known: a store that was lost with all that it gave is outranked, too.
const BEGIN: Millis = 1_767_225_600_000;
const HOUR: Millis = 3600 * 1000;

/// Which life of the store this is; zero until a backup is restored for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The one that a store is in.
    pub fn of(tx: &Connection) -> Result<Self, DirectorError> {
        let text = store::meta(tx, KEY)?;
        Ok(Self(text.and_then(|text| text.parse().ok()).unwrap_or(0)))
    }

    /// The one that begins with a restore: above that of the backup, above that of the store it
    /// takes the place of, and above any that began earlier, though nobody knows of it any more.
    pub fn after(backup: Self, former: Option<Self>, now: Millis) -> Self {
        let hours = now.saturating_sub(BEGIN) / HOUR;
        let known = backup.max(former.unwrap_or_default());
        Self((known.0 + 1).max(u64::try_from(hours).unwrap_or(0)))
    }

    /// Writes down that this one begins.
    pub fn begin(self, tx: &Connection, now: Millis) -> Result<(), DirectorError> {
        store::set_meta(tx, KEY, &self.0.to_string())?;
        store::set_meta(tx, RESTORED_KEY, &now.to_string())
    }

    /// Whether the store came back from a backup.
    pub fn is_restored(self) -> bool {
        self.0 > 0
    }

    /// Below every number of nodes, releases, generations and versions of secrets that is given
    /// in this life, and above all that were given before, known or not.
    pub fn floor(self) -> u64 {
        self.0.saturating_mul(NUMBERS_AN_HOUR)
    }

    /// The epoch of the manager on a system service's node: the incarnation counts first, so a
    /// manager that lived through a restore outranks what it said itself before.
    pub fn epoch(self, node: NodeNumber) -> Epoch {
        let most = (1 << NODE_BITS) - 1;
        Epoch((self.0 << NODE_BITS) | node.0.min(most))
    }

    /// The Director's own epoch as manager of system services: there is but one Director.
    pub fn director_epoch(self) -> Epoch {
        self.epoch(NodeNumber(1))
    }
}

/// When the store last came back from a backup, if it ever did.
pub fn restored_at(tx: &Connection) -> Result<Option<Millis>, DirectorError> {
    let text = store::meta(tx, RESTORED_KEY)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnations_rise_with_every_restore_whatever_was_lost() {
        let of = |backup, former: Option<u64>, now| {
            Incarnation::after(Incarnation(backup), former.map(Incarnation), now).0
        };
        // A clock that was never set: the counts alone decide.
        assert_eq!(of(0, None, 0), 1);
        assert_eq!(of(0, Some(4), 0), 5);
        assert_eq!(of(6, Some(4), 0), 7);
        // The former store is lost with its count: the time outranks it.
        let (first, second) = (BEGIN + 100 * HOUR, BEGIN + 101 * HOUR);
        assert_eq!(of(0, None, first), 100);
        assert_eq!(of(0, None, second), 101);
        assert_eq!(of(0, Some(100), first), 101);
    }

    #[test]
    fn epochs_of_a_later_incarnation_outrank_all_before() {
        let (never, first) = (Incarnation(0), Incarnation(7000));
        assert_eq!(never.epoch(NodeNumber(3)), Epoch(3));
        assert_eq!(never.director_epoch(), Epoch(1));
        // A manager that lived through it, one that came after, and the next life.
        let survivor = first.epoch(NodeNumber(3));
        let later = first.epoch(NodeNumber(first.floor() + 1));
        assert!(survivor > never.epoch(NodeNumber(u64::MAX)));
        assert!(later > survivor);
        assert!(Incarnation(7001).epoch(NodeNumber(1)) > later);
        assert!(i64::try_from(Incarnation(1 << 20).epoch(NodeNumber(9)).0).is_ok());
    }
}
