//! How much of the edge those may take who want to get out: their connections and questions cost
//! open files, and people who come in need those first.

use nix::sys::resource::{Resource, getrlimit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What goes out may take one in so many of the open files that the process may have.
const PART_OF_FILES: u64 = 4;
/// A connection is one file on either side.
const FILES_EACH: u64 = 2;
/// Connections at once, at most, however many files there may be.
const MOST: u64 = 16_384;
/// One owner's applications may take one in so many of them.
const PART_OF_OWNER: usize = 4;

/// The places there are, and who has which.
pub struct Shares {
    all: Arc<Semaphore>,
    each: usize,
    owners: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// One owner's share.
#[derive(Clone)]
pub struct Share {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place that is given back when dropped.
pub struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Shares {
    /// As many places as this process' limit of open files gives.
    pub fn by_open_files() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let places = (files / PART_OF_FILES / FILES_EACH).min(MOST);
        Self::new(usize::try_from(places).unwrap_or(1))
    }

    fn new(places: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(places.max(1))),
            each: (places / PART_OF_OWNER).max(1),
            owners: Mutex::default(),
        }
    }

    /// An owner's share; all applications of one owner have the same.
    pub fn of(&self, owner: &str) -> Share {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody uses it: it is whole, and may be made anew.
        owners.retain(|_, share| Arc::strong_count(share) > 1);
        let own = owners
            .entry(owner.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
        Share {
            own: own.clone(),
            all: self.all.clone(),
        }
    }
}

impl Share {
    /// Waits for a place: in the own share first, so that who has too many waits for themselves.
    pub async fn place(&self) -> Option<Place> {
        Some(Place {
            _own: self.own.clone().acquire_owned().await.ok()?,
            _all: self.all.clone().acquire_owned().await.ok()?,
        })
    }

    /// A place if there is one now.
    pub fn place_now(&self) -> Option<Place> {
        Some(Place {
            _own: self.own.clone().try_acquire_owned().ok()?,
            _all: self.all.clone().try_acquire_owned().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_cannot_take_what_others_need() {
        let shares = Shares::new(8);
        let (ann, also_ann, bob) = (shares.of("ann"), shares.of("ann"), shares.of("bob"));
        let held: Vec<Place> = [&ann, &also_ann]
            .iter()
            .filter_map(|s| s.place_now())
            .collect();
        assert_eq!(held.len(), 2);
        assert!(ann.place_now().is_none() && also_ann.place_now().is_none());
        assert!(bob.place_now().is_some());
        drop(held);
        assert!(ann.place_now().is_some());
        let everybody: Vec<Share> = (0..5).map(|n| shares.of(&n.to_string())).collect();
        let held: Vec<Place> = everybody
            .iter()
            .flat_map(|share| [share.place_now(), share.place_now()])
            .flatten()
            .collect();
        assert_eq!(held.len(), 8, "all places, and no more");
    }
}
