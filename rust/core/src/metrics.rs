//! Counters of requests in a fixed number of words, so that all workers of a host can count in one memory.
//!
//! Strategy: what may be counted is known when the gateway starts (routes, refusals, policies, phases), so every counter has
//! a place by arithmetic. Counting is a relaxed addition: no lock, nothing to allocate, nothing a dead worker leaves behind.
//! A histogram counts by upper bound in nanoseconds, and keeps the sum.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::error::Unusable;
use crate::limit::Memory;

/// Methods as they are told apart; see [`METHOD_NAMES`].
pub const METHOD_NAMES: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET", "other"];
/// Classes of a status: 1xx to 5xx.
pub const CLASSES: usize = 5;
/// The phases of the request path.
pub const PHASE_NAMES: [&str; 7] = ["receive", "admit", "authorise", "dispatch", "upstream", "respond", "record"];
/// The place of a phase among them.
pub const AUTHORISE: usize = 2;
/// The same.
pub const DISPATCH: usize = 3;
/// The same.
pub const UPSTREAM: usize = 4;
/// The same.
pub const RESPOND: usize = 5;

/// Upper bounds of a request's duration, in nanoseconds.
pub const REQUEST_BOUNDS: [u64; 16] = [
    100_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
/// Upper bounds of a phase's duration, in nanoseconds.
pub const PHASE_BOUNDS: [u64; 11] = [
    2_000,
    10_000,
    50_000,
    200_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    500_000_000,
    2_500_000_000,
    10_000_000_000,
];

const REQUEST_WORDS: usize = REQUEST_BOUNDS.len() + 2;
const PHASE_WORDS: usize = PHASE_BOUNDS.len() + 2;
const METHODS: usize = METHOD_NAMES.len();

/// Where each kind of counter begins.
#[derive(Clone, Copy, Debug)]
struct Places {
    routes: usize,
    refusals: usize,
    policies: usize,
}

impl Places {
    const fn durations(self) -> usize {
        self.routes * METHODS * CLASSES
    }

    const fn phases(self) -> usize {
        self.durations() + self.routes * REQUEST_WORDS
    }

    const fn refused(self) -> usize {
        self.phases() + PHASE_NAMES.len() * PHASE_WORDS
    }

    const fn shadowed(self) -> usize {
        self.refused() + self.refusals
    }

    const fn words(self) -> usize {
        self.shadowed() + self.policies
    }
}

/// All counters of a gateway.
#[derive(Debug)]
pub struct Counters<M> {
    memory: M,
    places: Places,
}

/// One histogram as it stands: counts by bound (not cumulative, the last one without a bound) and the sum in nanoseconds.
#[derive(Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Values by bound.
    pub counts: Vec<u64>,
    /// Their sum.
    pub sum_ns: u64,
}

/// Words that so many routes, kinds of refusal and policies need.
#[must_use]
pub const fn words_for(routes: usize, refusals: usize, policies: usize) -> usize {
    Places { routes, refusals, policies }.words()
}

impl<M: Memory<Word = AtomicU64>> Counters<M> {
    /// Counters in `memory`, which is zeroed or holds those of a worker with the same routes, refusals and policies.
    pub fn new(memory: M, routes: usize, refusals: usize, policies: usize) -> Result<Self, Unusable> {
        let places = Places { routes, refusals, policies };
        if memory.words().len() < places.words() {
            return Err(Unusable("the memory of the counters is too small"));
        }
        Ok(Self { memory, places })
    }

    /// A request of `route` is over.
    pub fn request(&self, route: usize, method: usize, status: u16, nanoseconds: u64) {
        let class = usize::from(status / 100).clamp(1, CLASSES) - 1;
        if route < self.places.routes && method < METHODS {
            self.add((route * METHODS + method) * CLASSES + class, 1);
            let start = self.places.durations() + route * REQUEST_WORDS;
            self.observe(start, &REQUEST_BOUNDS, nanoseconds);
        }
    }

    /// A phase is over.
    pub fn phase(&self, phase: usize, nanoseconds: u64) {
        if phase < PHASE_NAMES.len() {
            self.observe(self.places.phases() + phase * PHASE_WORDS, &PHASE_BOUNDS, nanoseconds);
        }
    }

    /// A request or connection was refused.
    pub fn refusal(&self, kind: usize) {
        if kind < self.places.refusals {
            self.add(self.places.refused() + kind, 1);
        }
    }

    /// A shadow policy would have refused.
    pub fn shadow(&self, policy: usize) {
        if policy < self.places.policies {
            self.add(self.places.shadowed() + policy, 1);
        }
    }

    /// Requests by (route, method, class), where there are any.
    pub fn requests(&self) -> impl Iterator<Item = (usize, usize, usize, u64)> {
        (0..self.places.durations()).filter_map(|place| {
            let count = self.get(place);
            (count > 0).then_some((place / (METHODS * CLASSES), place / CLASSES % METHODS, place % CLASSES, count))
        })
    }

    /// The durations of a route.
    #[must_use]
    pub fn durations(&self, route: usize) -> Histogram {
        self.histogram(self.places.durations() + route * REQUEST_WORDS, REQUEST_BOUNDS.len())
    }

    /// The durations of a phase.
    #[must_use]
    pub fn phases(&self, phase: usize) -> Histogram {
        self.histogram(self.places.phases() + phase * PHASE_WORDS, PHASE_BOUNDS.len())
    }

    /// Refusals by kind.
    pub fn refusals(&self) -> impl Iterator<Item = u64> {
        (0..self.places.refusals).map(|kind| self.get(self.places.refused() + kind))
    }

    /// Would-be refusals by policy.
    pub fn shadows(&self) -> impl Iterator<Item = u64> {
        (0..self.places.policies).map(|policy| self.get(self.places.shadowed() + policy))
    }

    fn observe(&self, start: usize, bounds: &[u64], nanoseconds: u64) {
        let bound = bounds.partition_point(|&bound| bound < nanoseconds);
        self.add(start + bound, 1);
        self.add(start + bounds.len() + 1, nanoseconds);
    }

    fn histogram(&self, start: usize, bounds: usize) -> Histogram {
        Histogram {
            counts: (0..=bounds).map(|bound| self.get(start + bound)).collect(),
            sum_ns: self.get(start + bounds + 1),
        }
    }

    fn at(&self, place: usize) -> &AtomicU64 {
        &self.memory.words()[place]
    }

    fn add(&self, place: usize, value: u64) {
        self.at(place).fetch_add(value, Relaxed);
    }

    fn get(&self, place: usize) -> u64 {
        self.at(place).load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Heap;

    fn counters() -> Counters<Heap> {
        Counters::new(Heap::zeroed(words_for(3, 2, 1)).unwrap(), 3, 2, 1).unwrap()
    }

    #[test]
    fn phases_have_their_places() {
        let found = [AUTHORISE, DISPATCH, UPSTREAM, RESPOND].map(|place| PHASE_NAMES[place]);
        assert_eq!(["authorise", "dispatch", "upstream", "respond"], found);
    }

    #[test]
    fn everything_is_counted_in_a_place_of_its_own() {
        let counters = counters();
        for route in 0..3 {
            for method in 0..METHODS {
                for class in 1..=5_u16 {
                    counters.request(route, method, class * 100 + 1, 700_000);
                }
            }
        }
        for phase in 0..PHASE_NAMES.len() {
            counters.phase(phase, 3_000 + phase as u64);
        }
        counters.refusal(1);
        counters.shadow(0);
        assert_eq!(3 * METHODS * CLASSES, counters.requests().count());
        assert!(counters.requests().all(|(.., count)| count == 1));
        let mut counts = vec![0; REQUEST_BOUNDS.len() + 1];
        counts[2] = (METHODS * CLASSES) as u64;
        assert_eq!(Histogram { sum_ns: counts[2] * 700_000, counts }, counters.durations(2));
        let mut counts = vec![0; PHASE_BOUNDS.len() + 1];
        counts[1] = 1;
        assert_eq!(Histogram { counts, sum_ns: 3_006 }, counters.phases(6));
        assert_eq!(vec![0, 1], counters.refusals().collect::<Vec<_>>());
        assert_eq!(vec![1], counters.shadows().collect::<Vec<_>>());
    }

    #[test]
    fn what_has_no_place_is_not_counted() {
        let counters = counters();
        counters.request(3, 0, 200, 1);
        counters.request(0, METHODS, 200, 1);
        counters.phase(7, 1);
        counters.refusal(2);
        counters.shadow(1);
        counters.request(0, 0, 999, u64::MAX);
        assert_eq!(vec![(0, 0, 4, 1)], counters.requests().collect::<Vec<_>>());
        assert!(counters.refusals().all(|count| count == 0) && counters.shadows().all(|count| count == 0));
        assert!(Counters::new(Heap::zeroed(1).unwrap(), 1, 1, 1).is_err());
    }
}
