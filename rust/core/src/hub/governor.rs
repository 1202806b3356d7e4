//! How long a connection waits for more events after it was served: nothing while the machine keeps up, up to a bound when it
//! would not.
//!
//! Strategy: the shell tells what sending costs. While a frame per event and connection would keep the sender busy for less
//! than half of its time, nobody waits. Above, each connection that has something to hear is served once per window, and the
//! window is as long as that takes at two thirds of the sender's time. Since a connection's window begins when it was served,
//! those of a fleet lie spread over it by themselves. What the shell measures may be less than all that a frame costs (other
//! threads send it): when many connections are still writing while their next turn is due, a frame is taken to cost more; but
//! not for the plain dialect, whose frames do not become fewer by waiting.
//!
//! Rule: numbers in, a number out; an average over a few periods, so that neither a pause nor a burst decides alone.

use super::frame::Dialect;

/// Milliseconds over which demand is counted.
const PERIOD_MS: u64 = 200;
/// What a frame is taken to cost before anything was measured, in microseconds.
const FIRST_COST_US: f64 = 8.0;
const EASY: f64 = 0.5;
const FULL: f64 = 0.66;
/// The share of connections that may still be writing when they are due, and by how much more a frame is taken to cost then.
const LATE: f64 = 0.1;
const HARDER: f64 = 1.5;
const EASIER: f64 = 0.9;
const MAX_PRESSURE: f64 = 32.0;

#[derive(Debug)]
pub(super) struct Governor {
    max_ms: u64,
    cost_us: f64,
    began_ms: u64,
    /// Deliveries (event and connection) of this period, and connections that had at least one.
    deliveries: u64,
    active: u64,
    /// What the last periods had, per second and in connections.
    demand: f64,
    fleet: f64,
    /// Connections of this period that got a turn, and that were still writing when they were due.
    served: u64,
    late: u64,
    pressure: f64,
    window_ms: u64,
    plain_window_ms: u64,
}

impl Governor {
    pub(super) const fn new(max_ms: u64) -> Self {
        Self {
            max_ms,
            cost_us: FIRST_COST_US,
            began_ms: 0,
            deliveries: 0,
            active: 0,
            demand: 0.0,
            fleet: 0.0,
            served: 0,
            late: 0,
            pressure: 1.0,
            window_ms: 0,
            plain_window_ms: 0,
        }
    }

    /// An event goes to so many connections, of which so many had nothing in this period yet.
    pub(super) const fn heard(&mut self, connections: u64, newly: u64) {
        self.deliveries += connections;
        self.active += newly;
    }

    /// So many connections got a turn; so many others were due and still writing.
    pub(super) const fn turned(&mut self, served: u64, late: u64) {
        self.served += served;
        self.late += late;
    }

    /// Frames were sent, which took so long.
    pub(super) fn spent(&mut self, frames: u64, busy_us: u64) {
        if frames > 0 {
            let weight = (frames as f64 / 256.0).min(0.5);
            self.cost_us += (busy_us as f64 / frames as f64 - self.cost_us) * weight;
            self.cost_us = self.cost_us.clamp(0.1, 10_000.0);
        }
    }

    /// Closes the period when it is over; whether it was.
    pub(super) fn turn(&mut self, now_ms: u64) -> bool {
        let since = now_ms.saturating_sub(self.began_ms);
        if since < PERIOD_MS {
            return false;
        }
        // A pause makes what was before it old.
        let keep = if since > 4 * PERIOD_MS { 0.0 } else { 0.5 };
        let rate = self.deliveries as f64 * 1000.0 / since as f64;
        self.demand = self.demand * keep + rate * (1.0 - keep);
        self.fleet = self.fleet * keep + self.active as f64 * (1.0 - keep);
        let is_late = self.late as f64 > LATE * (self.served + self.late) as f64;
        let pressure = self.pressure * if is_late { HARDER } else { EASIER };
        self.pressure = pressure.clamp(1.0, MAX_PRESSURE);
        (self.began_ms, self.deliveries, self.active, self.served, self.late) = (now_ms, 0, 0, 0, 0);
        self.window_ms = self.wanted(self.cost_us * self.pressure);
        self.plain_window_ms = self.wanted(self.cost_us);
        true
    }

    fn wanted(&self, cost_us: f64) -> u64 {
        let load = self.demand * cost_us / 1e6;
        if load <= EASY {
            return 0;
        }
        let whole = self.fleet * cost_us / FULL / 1000.0;
        let part = ((load - EASY) / (FULL - EASY)).min(1.0);
        ((whole * part).ceil() as u64).min(self.max_ms)
    }

    /// The same for a dialect.
    pub(super) const fn window_of(&self, dialect: Dialect) -> u64 {
        match dialect {
            Dialect::Plain => self.plain_window_ms,
            Dialect::Batched | Dialect::EventStream => self.window_ms,
        }
    }

    /// Milliseconds between two turns of one connection, at most.
    pub(super) const fn window_ms(&self) -> u64 {
        self.window_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second of `events` to each of `fleet` connections at this cost; the window after it.
    fn after_a_second(events: u64, fleet: u64, cost_us: u64) -> u64 {
        let mut governor = Governor::new(150);
        governor.spent(100_000, 100_000 * cost_us);
        governor.spent(100_000, 100_000 * cost_us);
        governor.spent(100_000, 100_000 * cost_us);
        for now_ms in 1_000..2_001 {
            governor.turn(now_ms);
            let due = events * (now_ms - 1_000) / 1_000 - events * (now_ms - 1_000).saturating_sub(1) / 1_000;
            let first = now_ms % PERIOD_MS == 1;
            governor.heard(due * fleet, if first { fleet } else { 0 });
        }
        governor.window_ms()
    }

    #[test]
    fn nobody_waits_while_the_machine_keeps_up() {
        assert_eq!(0, Governor::new(150).window_ms());
        assert_eq!(0, after_a_second(1_000, 40, 10));
        assert_eq!(0, after_a_second(5, 9_000, 10));
    }

    #[test]
    fn a_window_is_as_long_as_serving_everyone_takes_and_bounded() {
        let small = after_a_second(1_000, 1_000, 10);
        assert!((8..=20).contains(&small), "{small}");
        let large = after_a_second(1_000, 8_000, 10);
        assert!((100..=130).contains(&large), "{large}");
        assert_eq!(150, after_a_second(1_000, 50_000, 10));
    }

    #[test]
    fn who_is_still_writing_when_it_is_due_makes_the_window_longer() {
        let window_with = |late: u64| {
            let mut governor = Governor::new(150);
            for period in 5..15 {
                governor.turn(period * PERIOD_MS);
                governor.heard(30_000, 300);
                governor.turned(10_000, late);
            }
            governor.window_ms()
        };
        assert_eq!(window_with(0), window_with(500));
        assert!(window_with(0) < 5 && window_with(3_000) > 50, "{} {}", window_with(0), window_with(3_000));
    }

    #[test]
    fn a_pause_ends_the_window() {
        let mut governor = Governor::new(150);
        for now_ms in [1_000, 1_200, 1_400] {
            governor.turn(now_ms);
            governor.heard(10_000_000, 10_000);
        }
        governor.turn(1_600);
        assert!(governor.window_ms() > 0);
        governor.turn(5_000);
        governor.turn(6_000);
        assert_eq!(0, governor.window_ms());
    }
}
