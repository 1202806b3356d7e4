//! A timing wheel: one deadline for each of many connections, each moved in a few instructions.
//!
//! Strategy: a ring of slots, each a stretch of time and a doubly linked list through the records of those whose deadline
//! falls into it, now or after another turn of the ring. What is due is found by walking the slots that time has passed.
//! Nothing is allocated but the records, which are as many as connections were there at once.
//!
//! Rules: a deadline is never early, and late by one slot at most. Pure: time is passed in, in monotonic milliseconds.

/// Milliseconds of a slot.
pub const SLOT_MS: u64 = 128;
/// Slots of the ring: a minute passes before a deadline is looked at in vain.
const SLOTS: usize = 512;
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Record {
    /// The slot in which it is due, counted from the beginning of time; [`NEVER`] when it has no deadline.
    due: u32,
    previous: u32,
    next: u32,
}

const NEVER: u32 = u32::MAX;
const UNSET: Record = Record { due: NEVER, previous: NOBODY, next: NOBODY };

impl Record {
    const fn head(self) -> usize {
        self.due as usize % SLOTS
    }
}

/// The deadlines of connections, by their index.
#[derive(Debug)]
pub struct Wheel {
    heads: [u32; SLOTS],
    records: Vec<Record>,
    /// The first slot, counted from the beginning of time, that has not been walked.
    front: u32,
    count: usize,
}

impl Wheel {
    /// No deadlines yet; `now_ms` is when time begins.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self { heads: [NOBODY; SLOTS], records: Vec::new(), front: slot_of(now_ms), count: 0 }
    }

    /// Sets the deadline, in place of the one there was.
    pub fn set(&mut self, index: u32, due_ms: u64) {
        self.unset(index);
        let at = index as usize;
        if at >= self.records.len() {
            self.records.resize(at + 1, UNSET);
        }
        // What is due already is found by the next walk.
        let mut record = Record { due: self.front.max(slot_of(due_ms)), ..UNSET };
        record.next = self.heads[record.head()];
        if let Some(next) = self.records.get_mut(record.next as usize) {
            next.previous = index;
        }
        self.heads[record.head()] = index;
        self.records[at] = record;
        self.count += 1;
    }

    /// Takes the deadline away, if there is one.
    pub fn unset(&mut self, index: u32) {
        let Some(record) = self.records.get_mut(index as usize).filter(|record| record.due != NEVER) else { return };
        let record = std::mem::replace(record, UNSET);
        let Record { previous, next, .. } = record;
        if let Some(next) = self.records.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.records.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.heads[record.head()] = next,
        }
        self.count -= 1;
    }

    /// Takes away what is due and appends it to `due`.
    pub fn expire(&mut self, now_ms: u64, due: &mut Vec<u32>) {
        let end = slot_of(now_ms);
        // After a long sleep every slot is walked once, not more.
        self.front = self.front.max(end.saturating_sub(SLOTS as u32));
        while self.front < end {
            let mut index = self.heads[self.front as usize % SLOTS];
            self.front += 1;
            while let Some(&record) = self.records.get(index as usize) {
                if record.due < self.front {
                    self.unset(index);
                    due.push(index);
                }
                index = record.next;
            }
        }
    }

    /// When [`Self::expire`] is worth calling next; None when there is no deadline.
    #[must_use]
    pub fn wakes_at(&self) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let ahead = (0..SLOTS).find(|ahead| self.heads[(self.front as usize + ahead) % SLOTS] != NOBODY);
        ahead.map(|ahead| (u64::from(self.front) + ahead as u64 + 1) * SLOT_MS)
    }

    /// Bytes of the records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>()
    }
}

/// The slot of a time; those beyond some seventeen years are the last one.
fn slot_of(ms: u64) -> u32 {
    u32::try_from(ms / SLOT_MS).map_or(NEVER - 1, |slot| slot.min(NEVER - 1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Unset(u32),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let round = SLOT_MS * SLOTS as u64;
        let time = prop_oneof![4 => 0..4 * SLOT_MS, 2 => 0..round, 1 => 0..3 * round];
        let step = prop_oneof![
            5 => (0_u32..12, time.clone()).prop_map(|(index, after)| Step::Set(index, after)),
            2 => (0_u32..14).prop_map(Step::Unset),
            4 => time.prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// The twin keeps a map of deadlines and looks at all of them.
        #[test]
        fn nobody_is_early_lost_or_later_than_a_slot(start in 0_u64..1_000_000, steps in steps()) {
            let (mut wheel, mut naive, mut now) = (Wheel::new(start), BTreeMap::new(), start);
            for step in steps {
                match step {
                    Step::Set(index, after) => {
                        wheel.set(index, now + after);
                        naive.insert(index, now + after);
                    }
                    Step::Unset(index) => {
                        wheel.unset(index);
                        naive.remove(&index);
                    }
                    Step::Pass(time) => {
                        let wakes_at = wheel.wakes_at();
                        now += time;
                        let mut due = Vec::new();
                        wheel.expire(now, &mut due);
                        prop_assert!(due.is_empty() || wakes_at.is_some_and(|at| at <= now));
                        for index in due {
                            let deadline = naive.remove(&index);
                            prop_assert!(deadline.is_some_and(|deadline| deadline <= now), "early or twice");
                        }
                        prop_assert!(naive.values().all(|deadline| deadline + SLOT_MS > now), "late");
                    }
                }
                prop_assert_eq!(naive.is_empty(), wheel.wakes_at().is_none());
                // Who sleeps until then is not late.
                let first = naive.values().min().copied();
                prop_assert!(first.is_none_or(|first| wheel.wakes_at().is_some_and(|at| at <= first.max(now) + SLOT_MS)));
            }
        }
    }

    #[test]
    fn a_record_is_small() {
        assert_eq!(12, size_of::<Record>());
    }
}
