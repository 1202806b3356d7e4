//! How old events were when they arrived.
//!
//! Strategy: a histogram with 64 steps per octave of microseconds, so that ten million ages a second cost little and a
//! percentile is right within 1.6 %. A value is told as the upper end of its step: never too good.

const STEPS: usize = 64;
const BITS: u32 = STEPS.trailing_zeros();
const SIZE: usize = STEPS * 40;

/// Ages in microseconds.
#[derive(Clone)]
pub struct Ages {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Ages {
    fn default() -> Self {
        Self { counts: vec![0; SIZE], count: 0, max: 0 }
    }
}

impl Ages {
    /// One event was this old.
    pub fn add(&mut self, age_us: u64) {
        self.counts[step(age_us).min(SIZE - 1)] += 1;
        self.count += 1;
        self.max = self.max.max(age_us);
    }

    /// How many there were.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The oldest.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The age that this share (0 to 1) does not exceed; 0 when there were none.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = (share * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return upper(index).min(self.max);
            }
        }
        0
    }
}

/// The step of a value: linear up to `STEPS`, then `STEPS` to each doubling.
#[allow(clippy::cast_possible_truncation)]
fn step(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - BITS;
    (shift as usize + 1) * STEPS + ((value >> shift) as usize - STEPS)
}

fn upper(step: usize) -> u64 {
    if step < STEPS {
        return step as u64;
    }
    let shift = step / STEPS - 1;
    ((step % STEPS + STEPS + 1) as u64 * (1 << shift)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_step_and_no_step_is_wider_than_a_64th() {
        let mut value = 0_u64;
        while value < 10_000_000_000 {
            let index = step(value);
            assert!(value <= upper(index), "{value} above its step");
            assert!(index == 0 || value > upper(index - 1), "{value} below its step");
            assert!(upper(index) - value <= value / 64 + 1);
            value += value / 50 + 1;
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut ages = Ages::default();
        (1..=1000).for_each(|age| ages.add(age * 100));
        assert_eq!(ages.max(), 100_000);
        for (share, exact) in [(0.5, 50_000), (0.99, 99_000), (1.0, 100_000)] {
            let found = ages.percentile(share);
            assert!(found >= exact && found <= exact + exact / 64 + 1, "{share}: {found}");
        }
        assert_eq!(Ages::default().percentile(0.99), 0);
    }
}
