//! A fleet whose server dies and comes back: how long that took.
//!
//! Rule: the server is back when it takes a connection that it keeps. One that is dying still has its listener while it ends
//! the first connections, and takes those that come back at once; they are lost with it.

use std::time::{Duration, Instant};

/// What became of a fleet since it was told that its server will die.
#[derive(Debug, Default)]
pub struct Return {
    lost: usize,
    first_loss: Option<Instant>,
    /// The connection that found the server, and when; whether it was let in.
    found: Option<(usize, Instant, bool)>,
}

impl Return {
    /// Whether the server is gone, and nobody has found it yet.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        self.lost > 0 && self.found.is_none()
    }

    /// A client that was let in has lost its connection.
    pub fn lost(&mut self, now: Instant) {
        self.lost += 1;
        self.first_loss.get_or_insert(now);
    }

    /// A client has reached a server.
    pub fn reached(&mut self, number: usize, now: Instant) {
        if self.is_away() {
            self.found = Some((number, now, false));
        }
    }

    /// A client was let in.
    pub fn let_in(&mut self, number: usize) {
        if let Some((finder, _, is_in)) = &mut self.found {
            *is_in |= *finder == number;
        }
    }

    /// A client that was not let in has lost its connection: was it the one that found the server, that was another.
    pub fn turned_away(&mut self, number: usize) {
        self.found = self.found.filter(|(finder, _, is_in)| *finder != number || *is_in);
    }

    /// When all `clients` are there again: since the server is back, and how long it was away.
    #[must_use]
    pub fn over(&self, clients: usize, live: usize, now: Instant) -> Option<(Duration, Duration)> {
        let (first_loss, (_, found, _)) = self.first_loss.zip(self.found)?;
        let is_over = self.lost >= clients && live == clients;
        is_over.then(|| (now.duration_since(found), found.duration_since(first_loss)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_server_that_is_dying_is_not_one_that_is_back() {
        let (mut returning, began) = (Return::default(), Instant::now());
        returning.reached(1, began);
        assert!(!returning.is_away());
        returning.lost(began);
        assert!(returning.is_away());
        // Its listener is there for a moment more.
        returning.reached(0, began + ms(1));
        assert!(!returning.is_away());
        returning.lost(began + ms(2));
        returning.turned_away(0);
        assert!(returning.is_away());
        returning.reached(1, began + ms(900));
        returning.reached(0, began + ms(901));
        returning.let_in(1);
        assert_eq!(None, returning.over(2, 1, began + ms(950)));
        returning.let_in(0);
        assert_eq!(Some((ms(100), ms(900))), returning.over(2, 2, began + ms(1000)));
    }

    #[test]
    fn who_is_refused_later_changes_nothing() {
        let (mut returning, began) = (Return::default(), Instant::now());
        returning.lost(began);
        returning.reached(0, began + ms(5));
        returning.turned_away(3);
        returning.let_in(0);
        returning.turned_away(0);
        assert!(!returning.is_away());
        assert_eq!(Some((ms(1), ms(5))), returning.over(1, 1, began + ms(6)));
    }

    #[test]
    fn it_is_not_over_before_all_were_lost() {
        let (mut returning, began) = (Return::default(), Instant::now());
        assert_eq!(None, returning.over(2, 2, began));
        returning.lost(began);
        returning.reached(0, began);
        assert_eq!(None, returning.over(2, 2, began));
    }
}
