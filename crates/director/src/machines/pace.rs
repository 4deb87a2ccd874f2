//! Keeps loops that look at all records from doing nothing else: the longer a look takes, the longer
//! the pause before the next, which then answers for all that came meanwhile.

use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A look may take one in so many parts of the time.
const PART: u32 = 4;
/// The longest pause: what people wait for is not late by more.
const MOST: Duration = Duration::from_millis(500);

/// When the next look may begin.
#[derive(Default)]
pub struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// Waits until the next look may begin.
    pub async fn wait(&self) {
        if let Some(moment) = self.not_before {
            sleep_until(moment).await;
        }
    }

    /// A look that has just ended took so long.
    pub fn took(&mut self, long: Duration) {
        self.not_before = Some(Instant::now() + (long * (PART - 1)).min(MOST));
    }
}
