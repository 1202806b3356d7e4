//! What a node knows of one key.

use super::Identity;
use super::ring::Ring;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) policy: u32,
    /// Leased and not spent, good until `expiry`.
    pub(super) held: u32,
    pub(super) expiry: u64,
    /// Units spent: a number that only grows, for the fleet as well (see `LeaseBook::enrol`).
    pub(super) spent: u64,
    /// As far as Redis is known to have counted, and as far as the call under way tells.
    pub(super) acked: u64,
    pub(super) sent: u64,
    /// Spent without a lease within one window of `debt_at`, and not known to have fitted.
    pub(super) debt: u32,
    pub(super) debt_at: u64,
    /// What of it the call under way tells.
    pub(super) debt_sent: u32,
    /// Units that the fleet had left when it was last asked; the limit before that.
    pub(super) free: u32,
    /// When quota grows next, as far as known.
    pub(super) next_at: u64,
    /// The fleet has no more than `free` left until then, which is less than a request of this node takes.
    pub(super) blocked_until: u64,
    /// Units asked for since the last call, and of these the ones that waited or were refused for want of a lease.
    pub(super) demand: u32,
    pub(super) pending: u32,
    /// The smallest request since the last call; the smallest of those that the call before told of: less than that is of no
    /// use to anybody here.
    pub(super) least: u32,
    pub(super) unit: u32,
    /// Units asked for per second.
    pub(super) rate: f32,
    pub(super) measured: u64,
    pub(super) touched: u64,
    /// When a call about this key is worthwhile.
    pub(super) due: u64,
    pub(super) flying: bool,
    /// Neither debt nor share until then: its past may have been forgotten.
    pub(super) crowded_until: u64,
    pub(super) ring: Ring,
}

impl Entry {
    pub(super) fn new(identity: Identity, policy: usize, limit: u32, floor: u64) -> Self {
        Self {
            identity,
            policy: policy as u32,
            held: 0,
            expiry: 0,
            spent: floor,
            acked: floor,
            sent: floor,
            debt: 0,
            debt_at: 0,
            debt_sent: 0,
            free: limit,
            next_at: 0,
            blocked_until: 0,
            demand: 0,
            pending: 0,
            least: u32::MAX,
            unit: 1,
            rate: 0.0,
            measured: 0,
            touched: 0,
            due: u64::MAX,
            flying: false,
            crowded_until: 0,
            ring: Ring::new(),
        }
    }

    /// Units that may be spent at `now`.
    pub(super) fn held_at(&self, now: u64) -> u32 {
        if now < self.expiry { self.held } else { 0 }
    }

    /// How long a request is rather improbable: a fifth of the time between two of them.
    pub(super) fn calm_ns(&self, most: u64) -> u64 {
        ((2e8 / self.rate.max(0.1)) as u64).min(most)
    }

    /// Units owed within the window; all of them until the last has left it.
    pub(super) fn owed_at(&self, now: u64, window_ns: u64) -> u32 {
        if now.saturating_sub(self.debt_at) < window_ns { self.debt } else { 0 }
    }
}
