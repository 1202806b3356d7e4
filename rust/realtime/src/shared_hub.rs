//! The one hub of a process, and who serves its shards.
//!
//! Strategy: one lock, held for a call or a few and never while anything is sent or waited for. When it is let go, the servers
//! of exactly those shards are woken that sleep past something that is due.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use flx_core::hub::{Hub, Shard};

type Wake = Box<dyn Fn() + Send + Sync>;

/// The hub of a process.
pub struct SharedHub {
    hub: Mutex<Hub>,
    wakes: Mutex<Vec<(Shard, Wake)>>,
}

impl SharedHub {
    /// Who serves [`Shard::FIRST`] feeds the hub, and sees by itself when there is something new.
    #[must_use]
    pub fn new(hub: Hub) -> Self {
        Self { hub: Mutex::new(hub), wakes: Mutex::default() }
    }

    /// One more shard. `wake` is called when its server sleeps and has something due; it must not block, nor ask for the hub.
    pub fn add_shard(&self, wake: impl Fn() + Send + Sync + 'static) -> Shard {
        let shard = self.lock().add_shard();
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner).push((shard, Box::new(wake)));
        shard
    }

    /// The hub, for a moment.
    pub fn lock(&self) -> Guard<'_> {
        self.guard(self.hub.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, unless somebody else has it.
    pub fn try_lock(&self) -> Option<Guard<'_>> {
        match self.hub.try_lock() {
            Ok(hub) => Some(self.guard(hub)),
            Err(TryLockError::Poisoned(poisoned)) => Some(self.guard(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    const fn guard<'a>(&'a self, hub: MutexGuard<'a, Hub>) -> Guard<'a> {
        Guard { hub, calls: Calls { shared: self, shards: Vec::new() } }
    }
}

/// The hub, held. When it is let go, whoever has to be woken is.
pub struct Guard<'a> {
    // Dropped in this order: nobody is woken while the hub is held.
    hub: MutexGuard<'a, Hub>,
    calls: Calls<'a>,
}

impl Deref for Guard<'_> {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        &self.hub
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Hub {
        &mut self.hub
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.calls.shards = self.hub.called();
    }
}

/// Who is to be woken.
struct Calls<'a> {
    shared: &'a SharedHub,
    shards: Vec<Shard>,
}

impl Drop for Calls<'_> {
    fn drop(&mut self) {
        if self.shards.is_empty() {
            return;
        }
        let wakes = self.shared.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.iter().filter(|(shard, _)| self.shards.contains(shard)).for_each(|(_, wake)| wake());
    }
}
