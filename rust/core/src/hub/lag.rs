//! How long events were here before they were given to connections, counted by frame; and who is how far behind.
//!
//! Strategy: marks say at which order the clock had moved on, so the moment at which an event was heard is a search away and
//! no event keeps it. The age of a frame is that of its oldest event. What a turn gives is noted first and then counted once
//! for all who get it.
//!
//! Rules: memory is bounded by marks; an event before the oldest one is as old as that at least, and counted so. Pure: the
//! hub's milliseconds.

use std::collections::VecDeque;

use super::ConnKey;
use super::audience::{Fleet, State};

/// Upper bounds in milliseconds; the last counts what is above.
pub const LAG_BOUNDS_MS: [u64; 16] =
    [1, 2, 5, 10, 25, 50, 100, 150, 200, 300, 500, 1_000, 2_500, 5_000, 10_000, 30_000];
const COUNTS: usize = LAG_BOUNDS_MS.len() + 1;
/// One for each millisecond in which something was heard: half a minute of it, in half a megabyte.
const MARKS: usize = 32 * 1024;

/// What was counted: frames by upper bound (each for itself), and the sum of their ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Frames by bound.
    pub counts: [u64; COUNTS],
    /// Milliseconds.
    pub sum_ms: u64,
}

impl Ages {
    /// A frame whose oldest event is so old.
    pub(super) fn note(&mut self, age_ms: u64) {
        self.counts[LAG_BOUNDS_MS.partition_point(|bound| *bound < age_ms)] += 1;
        self.sum_ms += age_ms;
    }
}

#[derive(Debug, Default)]
pub(super) struct Lag {
    /// From this order on events were heard at this time.
    marks: VecDeque<(u64, u64)>,
    pub(super) ages: Ages,
}

impl Lag {
    /// An event was heard.
    pub(super) fn heard(&mut self, order: u64, now_ms: u64) {
        if self.marks.back().is_some_and(|mark| mark.1 >= now_ms) {
            return;
        }
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((order, now_ms));
    }

    /// How old the event of an order is.
    pub(super) fn age_ms(&self, order: u64, now_ms: u64) -> u64 {
        // Nearly always it is one of the latest.
        let heard = match self.marks.back() {
            Some(last) if last.0 <= order => Some(last),
            _ => self.marks.get(self.marks.partition_point(|mark| mark.0 <= order).saturating_sub(1)),
        };
        heard.map_or(0, |mark| now_ms.saturating_sub(mark.1))
    }

    /// So many connections were given frames of these ages.
    pub(super) fn given(&mut self, ages: &Ages, connections: u64) {
        for (count, more) in self.ages.counts.iter_mut().zip(ages.counts) {
            *count += more * connections;
        }
        self.ages.sum_ms += ages.sum_ms * connections;
    }
}

impl Fleet {
    /// The order that everyone has come to, also if all is put back that was given.
    pub(super) fn slowest(&self, top: u64) -> u64 {
        let behind = self.cohorts.iter().flatten().filter(|cohort| cohort.state != State::Idle);
        let given = self.agendas.iter().map(|agenda| agenda.given_from);
        behind.map(|cohort| cohort.cursor).chain(given).fold(top, u64::min)
    }

    /// How many connections have not come to this order, and how far the last of them is from it.
    pub(super) fn behind(&self, top: u64) -> (u64, u64) {
        let cohorts = self.cohorts.iter().flatten().filter(|cohort| cohort.state != State::Idle && cohort.cursor < top);
        cohorts.fold((0, 0), |(count, furthest), cohort| {
            (count + cohort.members.len() as u64, furthest.max(top - cohort.cursor))
        })
    }

    /// Those who are furthest behind, and by how much; the furthest first.
    pub(super) fn laggards(&self, top: u64, most: usize) -> Vec<(ConnKey, u64)> {
        let mut behind: Vec<_> = self.cohorts.iter().flatten().filter(|cohort| cohort.state != State::Idle).collect();
        behind.sort_by_key(|cohort| cohort.cursor);
        let members = behind.iter().flat_map(|cohort| cohort.members.iter().map(|index| (*index, cohort.cursor)));
        let behind = members.map(|(index, cursor)| (self.key(index), top.saturating_sub(cursor)));
        behind.filter(|(_, by)| *by > 0).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The twin keeps the moment of every event.
        #[test]
        fn the_age_is_the_time_since_it_was_heard(steps in prop::collection::vec((0_u64..3, 1_u64..4), 1..60), late in 0_u64..50) {
            let (mut lag, mut twin, mut now_ms, mut order) = (Lag::default(), Vec::new(), 5, 0);
            for (pause, skip) in steps {
                now_ms += pause;
                order += skip;
                lag.heard(order, now_ms);
                twin.push((order, now_ms));
            }
            for (order, heard_ms) in twin {
                prop_assert_eq!(now_ms + late - heard_ms, lag.age_ms(order, now_ms + late));
            }
        }

        #[test]
        fn every_age_is_counted_under_its_bound(ages in prop::collection::vec(0_u64..40_000, 0..40), connections in 1_u64..5) {
            let (mut noted, mut lag) = (Ages::default(), Lag::default());
            for age in &ages {
                noted.note(*age);
            }
            lag.given(&noted, connections);
            for (index, bound) in LAG_BOUNDS_MS.iter().enumerate() {
                let within = ages.iter().filter(|age| *age <= bound).count() as u64;
                prop_assert_eq!(within * connections, lag.ages.counts[..=index].iter().sum::<u64>());
            }
            prop_assert_eq!(ages.len() as u64 * connections, lag.ages.counts.iter().sum::<u64>());
            prop_assert_eq!(ages.iter().sum::<u64>() * connections, lag.ages.sum_ms);
        }
    }

    #[test]
    fn what_is_older_than_all_marks_is_as_old_as_the_first_at_least() {
        let mut lag = Lag::default();
        assert_eq!(0, lag.age_ms(7, 100));
        for order in 1..=2 * MARKS as u64 {
            lag.heard(order, order);
        }
        assert_eq!(MARKS, lag.marks.len());
        let now_ms = 2 * MARKS as u64;
        assert_eq!(MARKS as u64 - 1, lag.age_ms(1, now_ms));
        assert_eq!(5, lag.age_ms(now_ms - 5, now_ms));
    }
}
