//! The way of what is measured, as pure steps: an agent tells what changed, a manager gathers it
//! until it tells the Director, and the Director learns from totals what came. What comes twice
//! or late counts once; whoever begins anew is told everything. No I/O, no clock.

use conpaas_model::ids::{NodeNumber, ServiceId};
use conpaas_model::metrics::{MOST_VALUES, Reading, Source, Value, is_name, names};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

type Key = (Source, String);

/// At the agent: what changed since it last told one manager. A new stream begins with a new one.
#[derive(Debug, Default)]
pub struct Changes {
    told: BTreeMap<Key, (u64, Value)>,
}

impl Changes {
    /// What to tell of the present readings, at most [`MOST_VALUES`] values. Gauges are always
    /// told: that nothing changed is news of them.
    pub fn of(&mut self, present: &[Reading]) -> Vec<Reading> {
        let mut room = MOST_VALUES;
        let mut told = BTreeMap::new();
        let mut news = Vec::new();
        for reading in present {
            let mut values = BTreeMap::new();
            for (name, value) in &reading.values {
                let key = (reading.source.clone(), name.clone());
                if room == 0 || told.contains_key(&key) {
                    continue;
                }
                room -= 1;
                let now = (reading.life, value.clone());
                if matches!(value, Value::Gauge(_)) || self.told.get(&key) != Some(&now) {
                    values.insert(name.clone(), value.clone());
                }
                told.insert(key, now);
            }
            if !values.is_empty() {
                news.push(Reading {
                    values,
                    ..reading.clone()
                });
            }
        }
        // What is measured no more is forgotten.
        self.told = told;
        news
    }
}

#[derive(Debug)]
struct Held {
    life: u64,
    value: Value,
    /// Not told yet.
    fresh: bool,
}

#[derive(Debug, Default)]
struct Node {
    held: BTreeMap<Key, Held>,
    /// Last totals of lives that are over, not told yet.
    ended: Vec<(Key, u64, Value)>,
    left_out: u64,
}

/// At a manager: what was heard of nodes since the Director was told.
#[derive(Debug, Default)]
pub struct Gathered {
    nodes: BTreeMap<(ServiceId, NodeNumber), Node>,
}

impl Gathered {
    /// Takes in what an agent told of its node. Names that are none, and what is too much, are
    /// left out.
    pub fn take(&mut self, service: &ServiceId, node: NodeNumber, readings: Vec<Reading>) {
        let node = self.nodes.entry((service.clone(), node)).or_default();
        for reading in readings {
            for (name, value) in reading.values {
                if !is_name(&name) {
                    node.left_out += 1;
                    continue;
                }
                node.take((reading.source.clone(), name), reading.life, value);
            }
        }
    }

    /// Forgets nodes that are gone.
    pub fn retain(&mut self, mut keep: impl FnMut(&ServiceId, NodeNumber) -> bool) {
        self.nodes.retain(|(service, node), _| keep(service, *node));
    }

    /// What to tell now: what changed, or the `whole` of it for a Director that may have heard
    /// nothing. Gauges' looks are told once.
    pub fn tell(&mut self, whole: bool) -> Vec<(ServiceId, NodeNumber, Vec<Reading>)> {
        let mut told = Vec::new();
        for ((service, number), node) in &mut self.nodes {
            let readings = node.tell(whole);
            if !readings.is_empty() {
                told.push((service.clone(), *number, readings));
            }
        }
        told
    }
}

impl Node {
    fn take(&mut self, key: Key, life: u64, value: Value) {
        if let Some(held) = self.held.get_mut(&key) {
            let gauges = (&mut held.value, &value);
            if let (Value::Gauge(seen), Value::Gauge(more)) = gauges {
                seen.merge(more);
                held.fresh = true;
                return;
            }
            if held.life != life && held.fresh && self.ended.len() < MOST_VALUES {
                self.ended.push((key, held.life, held.value.clone()));
            }
            held.fresh |= held.life != life || held.value != value;
            (held.life, held.value) = (life, value);
        } else if self.held.len() < MOST_VALUES {
            let held = Held {
                life,
                value,
                fresh: true,
            };
            self.held.insert(key, held);
        } else {
            self.left_out += 1;
        }
    }

    fn tell(&mut self, whole: bool) -> Vec<Reading> {
        let mut readings = Vec::new();
        // One reading for all values of a source and life that come after each other.
        let mut say = |(source, name): Key, life: u64, value: Value| {
            let last: Option<&mut Reading> = readings.last_mut();
            match last.filter(|last| {
                last.source == source && last.life == life && !last.values.contains_key(&name)
            }) {
                Some(last) => drop(last.values.insert(name, value)),
                None => readings.push(Reading {
                    source,
                    life,
                    values: BTreeMap::from([(name, value)]),
                }),
            }
        };
        for (key, life, value) in self.ended.drain(..) {
            say(key, life, value);
        }
        for (key, held) in &mut self.held {
            if held.fresh || (whole && !matches!(held.value, Value::Gauge(_))) {
                say(key.clone(), held.life, held.value.clone());
                held.fresh = false;
            }
        }
        if self.left_out > 0 {
            let left_out = Value::Counter(self.left_out);
            say((Source::default(), names::LEFT_OUT.to_owned()), 0, left_out);
        }
        self.held
            .retain(|_, held| !matches!(held.value, Value::Gauge(_)));
        readings
    }
}

/// At the Director: the last total it knows of each value of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    known: BTreeMap<String, (u64, Value)>,
}

impl Totals {
    /// What came with a total, which is known from now on. Nothing for what was known already.
    pub fn came(&mut self, name: &str, life: u64, total: &Value) -> Value {
        if matches!(total, Value::Gauge(_)) {
            return total.clone();
        }
        let known = self.known.get(name).filter(|(of, _)| *of == life);
        let came = total.since(known.map(|(_, value)| value));
        self.known.insert(name.to_owned(), (life, total.clone()));
        came
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::metrics::Gauge;
    use proptest::prelude::*;

    fn service() -> ServiceId {
        "svc-a".parse().unwrap()
    }

    fn reading(life: u64, values: &[(&str, Value)]) -> Reading {
        Reading {
            source: Source {
                role: Some("front".into()),
                release: None,
            },
            life,
            values: values
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
        }
    }

    fn counter(life: u64, total: u64) -> Vec<Reading> {
        vec![reading(life, &[("requests", Value::Counter(total))])]
    }

    /// What a Director counts of what a manager tells.
    fn count(totals: &mut Totals, told: Vec<(ServiceId, NodeNumber, Vec<Reading>)>) -> u64 {
        let readings = told.into_iter().flat_map(|(_, _, readings)| readings);
        let mut all = 0;
        for reading in readings {
            for (name, value) in &reading.values {
                if let Value::Counter(came) = totals.came(name, reading.life, value) {
                    all += came;
                }
            }
        }
        all
    }

    #[test]
    fn only_what_changed_is_told_but_gauges_always() {
        let mut changes = Changes::default();
        let present = [reading(
            1,
            &[("requests", Value::Counter(3)), ("queue", Value::gauge(0))],
        )];
        assert_eq!(changes.of(&present), present);
        let again = changes.of(&present);
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].values.keys().collect::<Vec<_>>(), ["queue"]);
        assert_eq!(changes.of(&counter(2, 3)), counter(2, 3));
    }

    #[test]
    fn what_is_too_much_is_left_out_and_counted() {
        let many: Vec<(String, Value)> = (0..MOST_VALUES + 5)
            .map(|n| (format!("n{n}"), Value::Counter(1)))
            .collect();
        let many = Reading {
            values: many.into_iter().collect(),
            ..reading(1, &[])
        };
        let told: usize = Changes::default()
            .of(std::slice::from_ref(&many))
            .iter()
            .map(|r| r.values.len())
            .sum();
        assert_eq!(told, MOST_VALUES);
        let mut gathered = Gathered::default();
        gathered.take(&service(), NodeNumber(1), vec![many]);
        gathered.take(
            &service(),
            NodeNumber(1),
            vec![reading(1, &[("No Name", Value::Counter(1))])],
        );
        let told = gathered.tell(false);
        let left_out = told[0].2.last().unwrap();
        assert_eq!(left_out.values[names::LEFT_OUT], Value::Counter(6));
    }

    #[test]
    fn gauges_are_gathered_and_told_once() {
        let mut gathered = Gathered::default();
        for look in [4, 0, 2] {
            let seen = vec![reading(1, &[("queue", Value::gauge(look))])];
            gathered.take(&service(), NodeNumber(1), seen);
        }
        let told = gathered.tell(false);
        let mut all = Gauge::of(4);
        all.merge(&Gauge::of(0));
        all.merge(&Gauge::of(2));
        assert_eq!(told[0].2[0].values["queue"], Value::Gauge(all));
        assert!(gathered.tell(true).is_empty());
    }

    #[test]
    fn a_life_that_ends_between_two_words_is_counted_whole() {
        let mut gathered = Gathered::default();
        let mut totals = Totals::default();
        let node = NodeNumber(1);
        gathered.take(&service(), node, counter(1, 5));
        assert_eq!(count(&mut totals, gathered.tell(false)), 5);
        gathered.take(&service(), node, counter(1, 9));
        gathered.take(&service(), node, counter(2, 2));
        assert_eq!(count(&mut totals, gathered.tell(false)), 6);
        assert_eq!(count(&mut totals, gathered.tell(false)), 0);
    }

    #[test]
    fn nodes_that_are_gone_are_forgotten() {
        let mut gathered = Gathered::default();
        gathered.take(&service(), NodeNumber(1), counter(1, 5));
        gathered.retain(|_, node| node != NodeNumber(1));
        assert!(gathered.tell(true).is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Request(u32),
        /// The daemon starts anew.
        Restart,
        Agent,
        Manager,
        /// A manager that knows nothing takes over; its agents open streams to it.
        NewManager,
        /// The manager opens a stream, whatever became of what it told before.
        NewStream,
        /// What a manager tells is lost with its stream.
        Lost,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u32..9).prop_map(Step::Request),
            1 => Just(Step::Restart),
            4 => Just(Step::Agent),
            3 => Just(Step::Manager),
            1 => Just(Step::NewManager),
            1 => Just(Step::NewStream),
            1 => Just(Step::Lost),
        ]
    }

    proptest! {
        /// Whatever begins anew or is lost on the way, each request counts once in the end; all
        /// that a dying daemon may take with it is what its agent had not seen.
        #[test]
        fn every_request_counts_once(steps in prop::collection::vec(step(), 0..60)) {
            let (mut life, mut total, mut sent) = (1u64, 0u64, 0u64);
            let (mut changes, mut gathered, mut totals) =
                (Changes::default(), Gathered::default(), Totals::default());
            let (node, mut counted) = (NodeNumber(1), 0);
            let mut whole = true;
            let look = |changes: &mut Changes, gathered: &mut Gathered, life, total| {
                gathered.take(&service(), node, changes.of(&counter(life, total)));
            };
            for step in steps {
                match step {
                    Step::Request(n) => {
                        total += u64::from(n);
                        sent += u64::from(n);
                    }
                    Step::Restart => {
                        // Told to the Director before it dies: only then is its end known to all.
                        look(&mut changes, &mut gathered, life, total);
                        counted += count(&mut totals, gathered.tell(true));
                        whole = false;
                        (life, total) = (life + 1, 0);
                    }
                    Step::Agent => look(&mut changes, &mut gathered, life, total),
                    Step::Manager => {
                        counted += count(&mut totals, gathered.tell(whole));
                        whole = false;
                    }
                    Step::NewManager => {
                        (changes, gathered, whole) = (Changes::default(), Gathered::default(), true);
                    }
                    Step::NewStream => whole = true,
                    Step::Lost => {
                        gathered.tell(whole);
                        whole = true;
                    }
                }
            }
            look(&mut changes, &mut gathered, life, total);
            counted += count(&mut totals, gathered.tell(whole));
            prop_assert_eq!(counted, sent);
        }
    }
}
