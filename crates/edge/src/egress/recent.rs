//! A value that is asked for often and found out at most once a second.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long what was found out is good.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// What was found out last, and when.
pub struct Recent<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Recent<T> {
    /// The value, found out again when the last one is too old.
    pub fn get(&self, find: impl FnOnce() -> io::Result<T>) -> io::Result<Arc<T>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, value)) = &*last
            && at.elapsed() < GOOD_FOR
        {
            return Ok(value.clone());
        }
        let value = Arc::new(find()?);
        *last = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}
