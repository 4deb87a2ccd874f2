//! How much of the edge those may take who want to get out: their connections and questions cost
//! open files, and people who come in need those first.
//!
//! Each owner has a reserve; beyond reserves, what there is goes to whoever comes first, up to half of
//! all, so the other half is there for the reserves of some 64 owners at once. Questions for names have
//! places of their own.

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
/// An owner's reserve is one in so many of them, and a few at least.
const PART_OF_RESERVE: usize = 128;
const LEAST_RESERVE: usize = 8;
/// One in so many places is for names.
const PART_OF_NAMES: usize = 8;

/// The places there are, and who has which.
pub struct Shares {
    connections: Pool,
    names: Pool,
    owners: Mutex<HashMap<String, Owned>>,
}

/// What one owner holds of each pool, while anybody uses it.
type Owned = (Arc<Own>, Arc<Own>);

/// Places of one kind.
struct Pool {
    all: Arc<Semaphore>,
    /// Those that may be taken beyond reserves.
    large: Arc<Semaphore>,
    each: usize,
    reserve: usize,
}

/// One owner's part of a pool.
struct Own {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
    most: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

/// One owner's share.
#[derive(Clone)]
pub struct Share {
    connections: Arc<Own>,
    names: Arc<Own>,
}

/// A place that is given back when dropped.
pub struct Place {
    _permits: [OwnedSemaphorePermit; 3],
}

impl Pool {
    fn new(places: usize) -> Self {
        let places = places.max(1);
        Self {
            all: Arc::new(Semaphore::new(places)),
            large: Arc::new(Semaphore::new(places / 2)),
            each: (places / PART_OF_OWNER).max(1),
            reserve: (places / PART_OF_RESERVE).max(LEAST_RESERVE),
        }
    }

    fn own(&self) -> Own {
        Own {
            all: self.all.clone(),
            large: self.large.clone(),
            most: Arc::new(Semaphore::new(self.each)),
            reserve: Arc::new(Semaphore::new(self.reserve)),
        }
    }
}

impl Own {
    /// Waits for a place: among the owner's own first, so that who has too many waits for themselves.
    async fn place(&self) -> Option<Place> {
        let most = self.most.clone().acquire_owned().await.ok()?;
        let part = tokio::select! {
            biased;
            reserve = self.reserve.clone().acquire_owned() => reserve.ok()?,
            large = self.large.clone().acquire_owned() => large.ok()?,
        };
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Place {
            _permits: [most, part, all],
        })
    }

    /// A place if there is one now.
    fn place_now(&self) -> Option<Place> {
        let most = self.most.clone().try_acquire_owned().ok()?;
        let reserve = self.reserve.clone().try_acquire_owned();
        let part = reserve.or_else(|_| self.large.clone().try_acquire_owned());
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Place {
            _permits: [most, part.ok()?, all],
        })
    }
}

impl Shares {
    /// As many places as this process' limit of open files gives.
    pub fn by_open_files() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let places = (files / PART_OF_FILES / FILES_EACH).min(MOST);
        Self::new(usize::try_from(places).unwrap_or(1))
    }

    fn new(places: usize) -> Self {
        let names = places / PART_OF_NAMES;
        Self {
            connections: Pool::new(places - names),
            names: Pool::new(names),
            owners: Mutex::default(),
        }
    }

    /// An owner's share; all applications of one owner have the same.
    pub fn of(&self, owner: &str) -> Share {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody uses it: it is whole, and may be made anew.
        owners.retain(|_, (own, _)| Arc::strong_count(own) > 1);
        let (connections, names) = owners
            .entry(owner.to_owned())
            .or_insert_with(|| (Arc::new(self.connections.own()), Arc::new(self.names.own())));
        Share {
            connections: connections.clone(),
            names: names.clone(),
        }
    }
}

impl Share {
    /// Waits for a place for a connection.
    pub async fn connection(&self) -> Option<Place> {
        self.connections.place().await
    }

    /// A place for a question, if there is one now.
    pub fn question(&self) -> Option<Place> {
        self.names.place_now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(own: &Arc<Own>) -> Vec<Place> {
        std::iter::from_fn(|| own.place_now()).collect()
    }

    #[test]
    fn some_owners_cannot_take_what_others_need() {
        let shares = Shares::new(1024);
        let share = |name: &str| shares.of(name);
        let (ann, also_ann) = (share("ann"), share("ann"));
        let held = taken(&ann.connections);
        assert_eq!(held.len(), 224, "a quarter of what is not for names");
        assert!(also_ann.connections.place_now().is_none());
        assert!(ann.question().is_some(), "names are apart");
        // Four more that take all they can leave their reserve to all others.
        let greedy: Vec<Share> = (0..4).map(|n| share(&n.to_string())).collect();
        let all: Vec<Vec<Place>> = greedy.iter().map(|one| taken(&one.connections)).collect();
        let together = held.len() + all.iter().map(Vec::len).sum::<usize>();
        assert_eq!(together, 448 + 5 * 8, "half, and their reserves");
        let others: Vec<Share> = (0..20).map(|n| share(&format!("other{n}"))).collect();
        let theirs: Vec<Vec<Place>> = others.iter().map(|one| taken(&one.connections)).collect();
        assert!(theirs.iter().all(|places| places.len() == 8));
        drop(all);
        assert!(others[0].connections.place_now().is_some());
        drop((held, ann, also_ann));
        assert_eq!(taken(&share("ann").connections).len(), 224, "given back");
    }

    #[tokio::test]
    async fn who_waits_gets_the_next_place_of_either_kind() {
        let shares = Shares::new(1024);
        let share = shares.of("ann");
        let mut held = taken(&share.connections);
        let waiting = tokio::spawn({
            let share = share.clone();
            async move { share.connection().await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.pop();
        assert!(waiting.await.unwrap());
    }
}
