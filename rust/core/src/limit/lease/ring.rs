//! What this node spent of one key within the last window, by sub-window slots of the fleet's clock.
//!
//! Slots are 1/64 of the window (rounded up), and 65 of them count, so the one that the window's edge cuts through counts
//! in full. All-zero is the empty ring. A slot earlier than the newest counts as the newest: later, so longer.

/// Slots that count.
const RING: u64 = 65;

/// Units by slot.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    newest: u64,
    total: u32,
    counts: [u32; RING as usize],
}

impl Ring {
    pub(super) fn new() -> Self {
        Self { newest: 0, total: 0, counts: [0; RING as usize] }
    }

    /// Forgets what has left the window.
    pub(super) fn advance(&mut self, slot: u64) {
        if slot <= self.newest {
            return;
        }
        if slot - self.newest >= RING || self.total == 0 {
            self.counts.fill(0);
            self.total = 0;
        } else {
            for passed in self.newest + 1..=slot {
                let count = &mut self.counts[(passed % RING) as usize];
                self.total -= *count;
                *count = 0;
            }
        }
        self.newest = slot;
    }

    /// Units within the window. Call after [`Self::advance`].
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// The slot that units are added to.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Adds units to the newest slot.
    pub(super) fn add(&mut self, units: u32) {
        let count = &mut self.counts[(self.newest % RING) as usize];
        *count = count.saturating_add(units);
        self.total = self.total.saturating_add(units);
    }

    /// Takes units back, the newest first.
    pub(super) fn remove(&mut self, units: u32) {
        let mut left = units.min(self.total);
        self.total -= left;
        for back in 0..RING {
            let count = &mut self.counts[((self.newest + RING - back) % RING) as usize];
            let taken = left.min(*count);
            *count -= taken;
            left -= taken;
        }
    }

    /// The slots of the last `units` units, newest first, as (slots before the newest, units).
    pub(super) fn latest(&self, units: u32) -> impl Iterator<Item = (u8, u32)> + '_ {
        let mut left = units;
        (0..RING).filter_map(move |back| {
            let count = self.counts[((self.newest + RING - back) % RING) as usize].min(left);
            left -= count;
            (count > 0).then_some((back as u8, count))
        })
    }

    /// Slots until the first units leave; none when the ring is empty.
    pub(super) fn leaves_in(&self) -> Option<u64> {
        (0..RING)
            .rev()
            .find(|back| self.counts[((self.newest + RING - back) % RING) as usize] > 0)
            .map(|back| RING - back)
    }

    /// The same history on a clock that reads `slots` more.
    pub(super) fn shift(&mut self, slots: i64) {
        self.newest = self.newest.saturating_add_signed(slots);
        let places = slots.rem_euclid(RING.cast_signed()) as usize;
        self.counts.rotate_right(places);
    }
}
