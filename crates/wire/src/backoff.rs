//! How long to wait before trying again: pure, the caller brings the random number.

use std::time::Duration;

/// Waits that double up to a cap, with jitter so that many who lost one peer do not return at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is about `first`, none is longer than `cap`.
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            failures: 0,
        }
    }

    /// For a party that lost another: its first wait is about 100 ms, none longer than 3 s. Two
    /// such waits in a row, for a certificate and then for a stream, must end well before the
    /// silence after which a party is given up.
    pub const fn for_parties() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(3))
    }

    /// The longest wait.
    pub const fn cap(&self) -> Duration {
        self.cap
    }

    /// The wait after one more failure. `random` is between 0 and 1; the wait is between half and
    /// the whole of the present step.
    pub fn next(&mut self, random: f64) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let step = self.first.saturating_mul(factor).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        let random = if random.is_finite() {
            random.clamp(0.0, 1.0)
        } else {
            1.0
        };
        step.mul_f64(0.5 + random / 2.0)
    }

    /// Something worked: begin anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<u128> = (0..6).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(50));
        for _ in 0..1000 {
            assert!(backoff.next(f64::NAN) <= Duration::from_secs(1));
        }
    }
}
