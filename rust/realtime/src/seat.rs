//! A place in the roster of the process, given back when the connection's record is dropped, whatever became of it.

use std::sync::{Arc, Mutex, PoisonError};

use flx_core::admission::roster::{Guest, Roster};
use flx_core::hub::ConnKey;

/// The roster, as those share it who let connections in and those who judge them.
pub type SharedRoster = Arc<Mutex<Roster>>;

/// A connection's place in the roster.
#[derive(Debug)]
pub struct Seat {
    roster: SharedRoster,
    number: u64,
}

impl Seat {
    /// Takes a place.
    #[must_use]
    pub fn take(roster: &SharedRoster, guest: Guest) -> Self {
        let number = roster.lock().unwrap_or_else(PoisonError::into_inner).enter(guest);
        Self { roster: Arc::clone(roster), number }
    }

    /// The hub knows the connection by this.
    pub fn heard_as(&self, key: ConnKey) {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).heard_as(self.number, key);
    }

    /// Who has it.
    #[must_use]
    pub fn guest(&self) -> Option<Guest> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).get(self.number).cloned()
    }

    /// Its number in the roster.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).leave(self.number);
    }
}
