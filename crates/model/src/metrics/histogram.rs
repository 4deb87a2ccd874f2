//! Histograms of durations over fixed exponential buckets, so that those of all nodes and all
//! moments can be laid together. What is measured is the callers' business.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// The least upper bound, in microseconds; whatever is below it is told from nothing else.
const LEAST: u64 = 250;
/// Buckets in which a bound doubles.
const PER_OCTAVE: usize = 4;
const OCTAVES: usize = 22;
/// Finite upper bounds: 250 µs times 2^(i/4), up to 1,048.576 s.
pub const BOUNDS: usize = OCTAVES * PER_OCTAVE + 1;
/// The bucket of what is above all bounds.
const OVERFLOW: usize = BOUNDS;
/// How far an estimate of a quantile may be from the true one, relative to it, between the least
/// and the greatest bound: 2^(1/8) - 1 and what rounding of bounds adds.
pub const QUANTILE_ERROR: f64 = 0.092;

const fn bound(index: usize) -> u64 {
    // 2^(0/4) to 2^(3/4), in millionths.
    const STEPS: [u64; PER_OCTAVE] = [1_000_000, 1_189_207, 1_414_214, 1_681_793];
    let base = LEAST << (index / PER_OCTAVE);
    (base * STEPS[index % PER_OCTAVE] + 500_000) / 1_000_000
}

/// The finite upper bounds in microseconds, each included in its bucket.
pub const fn bounds() -> [u64; BOUNDS] {
    let mut all = [0; BOUNDS];
    let mut index = 0;
    while index < BOUNDS {
        all[index] = bound(index);
        index += 1;
    }
    all
}

const UPPER: [u64; BOUNDS] = bounds();

/// How many durations fell into each bucket, and their sum. Merging is associative and
/// commutative, to the last unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Microseconds, all together.
    sum: u64,
    /// By bucket, those that have any.
    counts: BTreeMap<usize, u64>,
}

impl Histogram {
    /// Takes a duration in microseconds in.
    pub fn observe(&mut self, micros: u64) {
        self.observe_many(micros, 1);
    }

    /// Adds so many of one duration, in microseconds.
    pub fn observe_many(&mut self, micros: u64, times: u64) {
        let bucket = UPPER.partition_point(|upper| *upper < micros);
        let count = self.counts.entry(bucket).or_default();
        *count = count.saturating_add(times);
        self.sum = self.sum.saturating_add(micros.saturating_mul(times));
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts
            .values()
            .fold(0, |all, count| all.saturating_add(*count))
    }

    /// Their sum in microseconds.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many durations were at most as long as a bound, for each of the bounds with the given
    /// distance, in rising order; the last word on all of them is [`Self::count`].
    pub fn cumulative(&self, every: usize) -> impl Iterator<Item = (u64, u64)> + '_ {
        UPPER
            .iter()
            .enumerate()
            .step_by(every.max(1))
            .map(|(index, upper)| {
                let below = self.counts.range(..=index);
                (
                    *upper,
                    below.fold(0, |all: u64, (_, count)| all.saturating_add(*count)),
                )
            })
    }

    /// Lays another one's durations to these.
    pub fn merge(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        for (bucket, count) in &other.counts {
            let own = self.counts.entry(*bucket).or_default();
            *own = own.saturating_add(*count);
        }
    }

    /// What came since an earlier state of the same histogram; `None` when that cannot be one.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut counts = self.counts.clone();
        for (bucket, before) in &earlier.counts {
            let count = counts.get_mut(bucket)?;
            *count = count.checked_sub(*before)?;
        }
        counts.retain(|_, count| *count > 0);
        Some(Self {
            sum: self.sum.checked_sub(earlier.sum)?,
            counts,
        })
    }

    /// An estimate of the duration that a share `q` (0 to 1) of all durations does not exceed, in
    /// microseconds; within [`QUANTILE_ERROR`] of it between the bounds. `None` without any.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        // Counts are far below 2^53.
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count);
        let mut below = 0u64;
        for (bucket, count) in &self.counts {
            below = below.saturating_add(*count);
            if below >= rank {
                return Some(estimate(*bucket));
            }
        }
        None
    }
}

/// The geometric middle of a bucket: as far from its lower end as from its upper one.
fn estimate(bucket: usize) -> u64 {
    match bucket {
        0 => LEAST / 2,
        // Nobody knows how far above.
        OVERFLOW.. => UPPER[BOUNDS - 1],
        _ => ((UPPER[bucket - 1] as f64) * (UPPER[bucket] as f64))
            .sqrt()
            .round() as u64,
    }
}

/// One flat list: the sum, then each bucket that has any, as its distance from the one before,
/// and its count. It is short, as durations lie close together.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut flat = vec![self.sum];
        let mut last = 0;
        for (bucket, count) in &self.counts {
            flat.push((bucket - last) as u64);
            flat.push(*count);
            last = *bucket;
        }
        flat.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let flat = Vec::<u64>::deserialize(deserializer)?;
        let Some((sum, rest)) = flat.split_first() else {
            return Err(D::Error::custom("a histogram without a sum"));
        };
        let mut counts = BTreeMap::new();
        let mut bucket = 0usize;
        for pair in rest.chunks(2) {
            let [gap, count] = pair else {
                return Err(D::Error::custom("a bucket without a count"));
            };
            bucket = usize::try_from(*gap)
                .ok()
                .and_then(|gap| bucket.checked_add(gap))
                .filter(|bucket| *bucket <= OVERFLOW)
                .ok_or_else(|| D::Error::custom("there is no such bucket"))?;
            if *count == 0 || counts.insert(bucket, *count).is_some() {
                return Err(D::Error::custom(
                    "a bucket without durations, or told twice",
                ));
            }
        }
        Ok(Self { sum: *sum, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut made = Histogram::default();
        values.iter().for_each(|value| made.observe(*value));
        made
    }

    /// Values over all magnitudes, beyond both ends too.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        let value = (0u32..33, any::<u32>()).prop_map(|(bits, low)| u64::from(low) >> bits);
        prop::collection::vec(value, 0..200)
    }

    #[test]
    fn bounds_are_as_stated() {
        assert_eq!(UPPER[0], 250);
        assert_eq!(UPPER[8], 1000);
        assert_eq!(UPPER[BOUNDS - 1], 1_048_576_000);
        for pair in UPPER.windows(2) {
            let ratio = pair[1] as f64 / pair[0] as f64;
            assert!((ratio - 2f64.powf(0.25)).abs() < 0.005, "{pair:?}");
        }
    }

    #[test]
    fn bounds_belong_to_their_buckets() {
        for (index, upper) in UPPER.iter().enumerate() {
            assert_eq!(of(&[*upper]).counts.keys().next(), Some(&index));
            assert_eq!(of(&[*upper + 1]).counts.keys().next(), Some(&(index + 1)));
        }
        assert_eq!(of(&[0]).counts.keys().next(), Some(&0));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["[]", "[1,2]", "[1,90,1]", "[1,3,0]", "[1,3,1,0,1]", "7"] {
            assert!(serde_json::from_str::<Histogram>(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::to_string(&of(&[1000, 1000, 200])).unwrap(),
            "[2200,0,1,8,2]"
        );
    }

    proptest! {
        #[test]
        fn merging_is_associative_and_commutative(a in values(), b in values(), c in values()) {
            let (a, b, c) = (of(&a), of(&b), of(&c));
            let merged = |one: &Histogram, two: &Histogram| { let mut m = one.clone(); m.merge(two); m };
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &Histogram::default()), a);
        }

        #[test]
        fn merging_is_the_same_as_taking_all_in(a in values(), b in values()) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let all: Vec<u64> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(&merged, &of(&all));
            prop_assert_eq!(merged.since(&of(&a)), Some(of(&b)));
            let counted = merged.count();
            prop_assert_eq!(counted, all.len() as u64);
        }

        #[test]
        fn quantiles_are_as_near_as_stated(
            mut all in prop::collection::vec(251u64..1_048_576_000, 1..300),
            q in 0.0f64..=1.0,
        ) {
            let estimate = of(&all).quantile(q).unwrap() as f64;
            all.sort_unstable();
            let rank = ((q * all.len() as f64).ceil() as usize).clamp(1, all.len());
            let truth = all[rank - 1] as f64;
            prop_assert!((estimate - truth).abs() <= truth * QUANTILE_ERROR, "{estimate} for {truth}");
        }

        #[test]
        fn what_is_written_is_read(a in values()) {
            let text = serde_json::to_string(&of(&a)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), of(&a));
        }
    }
}
