//! Work that outlasts one call of a role's agent half: fetching code, warming up, stopping with
//! a grace. `apply` and `observe` must return quickly, so they start it here and look again.

use conpaas_core::role_agent::{Processes, RoleError};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a call may wait for something that is nearly done, so that quick work does not
/// have to wait for the next round.
pub const MOMENT: Duration = Duration::from_millis(400);

/// One piece of work in the background; dropped work is aborted.
pub struct Background<T>(JoinHandle<Result<T, RoleError>>);

impl<T: Send + 'static> Background<T> {
    pub fn start(work: impl Future<Output = Result<T, RoleError>> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// The result, if it comes within `wait`; it is given out once.
    pub async fn poll(&mut self, wait: Duration) -> Option<Result<T, RoleError>> {
        match tokio::time::timeout(wait, &mut self.0).await {
            Err(_) => None,
            Ok(Ok(result)) => Some(result),
            Ok(Err(_)) => Some(Err(RoleError::Failed(
                "work in the background was cut off".into(),
            ))),
        }
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Graceful stops under way, by process name.
#[derive(Default)]
pub struct Stops(BTreeMap<String, JoinHandle<Result<(), RoleError>>>);

impl Stops {
    /// Begins to stop a process, unless that is under way already.
    pub fn begin(&mut self, processes: &Arc<dyn Processes>, name: &str, grace: Duration) {
        self.0.entry(name.to_owned()).or_insert_with(|| {
            let (processes, name) = (Arc::clone(processes), name.to_owned());
            tokio::spawn(async move { processes.stop(&name, grace).await })
        });
    }

    /// Whether this process is being stopped.
    pub fn under_way(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes the finished ones off the list and returns the first error among them.
    pub async fn settle(&mut self, wait: Duration) -> Result<(), RoleError> {
        let until = tokio::time::Instant::now() + wait;
        let mut first = Ok(());
        let names: Vec<String> = self.0.keys().cloned().collect();
        for name in names {
            let Some(handle) = self.0.get_mut(&name) else {
                continue;
            };
            match tokio::time::timeout_at(until, handle).await {
                Err(_) => continue,
                Ok(Ok(Err(error))) => first = first.and(Err(error)),
                Ok(_) => {}
            }
            self.0.remove(&name);
        }
        first
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Stops every process whose name starts with `prefix`, with a grace; true when none is left.
pub async fn stop_all(
    processes: &Arc<dyn Processes>,
    stops: &mut Stops,
    prefix: &str,
    grace: Duration,
) -> Result<bool, RoleError> {
    for process in processes.list().await? {
        if process.name.starts_with(prefix) {
            stops.begin(processes, &process.name, grace);
        }
    }
    stops.settle(MOMENT).await?;
    Ok(stops.is_empty()
        && !processes
            .list()
            .await?
            .iter()
            .any(|p| p.name.starts_with(prefix)))
}
