//! Who is told of what changed in the store: whoever follows one application is woken for that one
//! alone, and who follows all of them knows which to look at. A change that does not say what it
//! touched touched everything.

use conpaas_model::ids::ApplicationId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;

/// What a change was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// These applications, with all that is theirs; perhaps none.
    Applications(BTreeSet<ApplicationId>),
    Everything,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Applications(BTreeSet::new())
    }
}

impl From<ApplicationId> for Touched {
    fn from(application: ApplicationId) -> Self {
        Self::Applications(BTreeSet::from([application]))
    }
}

impl Touched {
    /// One application; everything when it is not known which.
    pub fn one(application: Option<ApplicationId>) -> Self {
        application.map_or(Self::Everything, Self::from)
    }

    /// Adds what another change touched.
    pub fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Applications(these), Self::Applications(others)) => {
                these.extend(others.iter().cloned());
            }
            _ => *self = Self::Everything,
        }
    }

    /// Whether it was about an application.
    pub fn holds(&self, application: &ApplicationId) -> bool {
        match self {
            Self::Applications(these) => these.contains(application),
            Self::Everything => true,
        }
    }
}

/// Tells of changes.
#[derive(Default)]
pub struct Changes {
    all: watch::Sender<u64>,
    applications: Mutex<HashMap<ApplicationId, watch::Sender<u64>>>,
    followers: Mutex<Vec<Weak<Mutex<Touched>>>>,
}

fn bump(sender: &watch::Sender<u64>) {
    sender.send_modify(|count| *count = count.wrapping_add(1));
}

impl Changes {
    /// Wakes whom a change concerns.
    pub fn tell(&self, touched: &Touched) {
        {
            let followers = self.followers.lock();
            let mut followers = followers.unwrap_or_else(PoisonError::into_inner);
            followers.retain(|follower| {
                let Some(gathered) = follower.upgrade() else {
                    return false;
                };
                let mut gathered = gathered.lock().unwrap_or_else(PoisonError::into_inner);
                gathered.add(touched);
                true
            });
        }
        bump(&self.all);
        let applications = self.applications.lock();
        let applications = applications.unwrap_or_else(PoisonError::into_inner);
        match touched {
            Touched::Everything => applications.values().for_each(bump),
            Touched::Applications(these) => these
                .iter()
                .filter_map(|application| applications.get(application))
                .for_each(bump),
        }
    }

    /// Changes its value after each change of whatever it is about.
    pub fn all(&self) -> watch::Receiver<u64> {
        self.all.subscribe()
    }

    /// Changes its value after each change that touches an application.
    pub fn of(&self, application: &ApplicationId) -> watch::Receiver<u64> {
        let applications = self.applications.lock();
        let mut applications = applications.unwrap_or_else(PoisonError::into_inner);
        if !applications.contains_key(application) {
            applications.retain(|_, sender| sender.receiver_count() > 0);
        }
        applications
            .entry(application.clone())
            .or_default()
            .subscribe()
    }

    /// Follows all changes and gathers what they touched; begins with everything.
    pub fn follow(&self) -> Follower {
        let gathered = Arc::new(Mutex::new(Touched::Everything));
        let followers = self.followers.lock();
        let mut followers = followers.unwrap_or_else(PoisonError::into_inner);
        followers.push(Arc::downgrade(&gathered));
        Follower {
            all: self.all.subscribe(),
            gathered,
        }
    }
}

/// Gathers what changes touched until it is taken.
pub struct Follower {
    all: watch::Receiver<u64>,
    gathered: Arc<Mutex<Touched>>,
}

impl Follower {
    /// Waits for a change since the last look. False when the store is gone.
    pub async fn changed(&mut self) -> bool {
        self.all.changed().await.is_ok()
    }

    /// What was touched since this was asked last. To be asked before the records are read.
    pub fn take(&mut self) -> Touched {
        self.all.mark_unchanged();
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *gathered)
    }

    /// What was taken could not be looked at: it is told again.
    pub fn put_back(&mut self, touched: &Touched) {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.add(touched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> ApplicationId {
        ApplicationId::from_suffix(name).unwrap()
    }

    #[test]
    fn one_is_woken_for_its_own_and_who_follows_all_knows_which() {
        let changes = Changes::default();
        let (mut one, mut two, mut all) =
            (changes.of(&app("1")), changes.of(&app("2")), changes.all());
        let mut follower = changes.follow();
        assert_eq!(follower.take(), Touched::Everything);
        assert_eq!(follower.take(), Touched::default());
        let woken = |receiver: &mut watch::Receiver<u64>| {
            let woken = receiver.has_changed().unwrap();
            receiver.mark_unchanged();
            woken
        };
        changes.tell(&app("1").into());
        assert!(woken(&mut one) && !woken(&mut two) && woken(&mut all));
        changes.tell(&Touched::default());
        assert!(!woken(&mut one) && woken(&mut all));
        changes.tell(&app("2").into());
        let taken = follower.take();
        assert!(taken.holds(&app("1")) && taken.holds(&app("2")) && !taken.holds(&app("3")));
        assert_eq!(follower.take(), Touched::default());
        follower.put_back(&taken);
        assert_eq!(follower.take(), taken);
        changes.tell(&Touched::Everything);
        changes.tell(&app("1").into());
        assert!(woken(&mut one) && woken(&mut two));
        assert_eq!(follower.take(), Touched::Everything);
        drop((one, follower));
        // Nobody follows the first any more: it is forgotten when another comes.
        let _three = changes.of(&app("3"));
        assert_eq!(changes.applications.lock().unwrap().len(), 2);
        changes.tell(&Touched::Everything);
        assert!(changes.followers.lock().unwrap().is_empty());
    }
}
