//! Who decides whether a connection missed something, got it twice, or out of order.
//!
//! Strategy: for each topic of a connection, the last number of the server and the last of the publisher. The next
//! events must join on to both. A gap that the server told excuses one jump forward, never a step back.
//!
//! Rules:
//! - What a connection hears first of a topic is where it begins; after a resume the chain goes on.
//! - A fault is counted where it shows, and the chain goes on from there: one hole is one hole.

use crate::dialect::Run;

/// What was found wrong.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub struct Faults {
    /// Places where events are missing and nobody said so.
    pub holes: u64,
    /// Events that came again.
    pub duplicates: u64,
    /// Events before which a later one came, and claims about the past that are not true.
    pub disorder: u64,
}

impl Faults {
    pub const fn add(&mut self, more: Self) {
        self.holes += more.holes;
        self.duplicates += more.duplicates;
        self.disorder += more.disorder;
    }

    #[must_use]
    pub const fn none(&self) -> bool {
        self.holes == 0 && self.duplicates == 0 && self.disorder == 0
    }
}

struct Chain {
    topic: u32,
    epoch: u32,
    seq: u64,
    number: Option<u64>,
    excused: bool,
}

/// The topics of one connection.
#[derive(Default)]
pub struct Chains(Vec<Chain>);

impl Chains {
    /// Events came.
    pub fn take(&mut self, run: &Run) -> Faults {
        let (Some(first), Some(last)) = (run.seqs.first(), run.seqs.last()) else { return Faults::default() };
        let mut faults = within(&run.seqs);
        if faults.none() && *first <= run.prev {
            faults.disorder += 1;
        }
        faults.holes += jumps(&run.numbers);
        let Some(chain) = self.0.iter_mut().find(|chain| chain.topic == run.topic) else {
            self.0.push(Chain {
                topic: run.topic,
                epoch: run.epoch,
                seq: *last,
                number: run.numbers.last().copied(),
                excused: false,
            });
            return faults;
        };
        if chain.epoch == run.epoch {
            faults.add(chain.join(run, *first));
            if *last <= chain.seq {
                return faults;
            }
        } else if !chain.excused {
            faults.holes += 1;
        }
        chain.epoch = run.epoch;
        chain.seq = *last;
        chain.number = run.numbers.last().copied();
        chain.excused = false;
        faults
    }

    /// The server said that events of a topic, or of any, were skipped.
    pub fn gap(&mut self, topic: Option<u32>) {
        for chain in &mut self.0 {
            chain.excused |= topic.is_none_or(|topic| topic == chain.topic);
        }
    }

    /// Forget: the connection begins anew and resumes nothing.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

impl Chain {
    fn join(&self, run: &Run, first: u64) -> Faults {
        let mut faults = Faults::default();
        if first <= self.seq {
            // Events that came again, or that came too late: those it has seen before cannot be told from those it has not.
            faults.duplicates += run.seqs.iter().filter(|seq| **seq <= self.seq).count() as u64;
            return faults;
        }
        if run.prev > self.seq && !self.excused {
            faults.holes += 1;
        } else if run.prev < self.seq {
            faults.disorder += 1;
        }
        if let (Some(before), Some(now)) = (self.number, run.numbers.first()) {
            if *now <= before {
                faults.duplicates += 1;
            } else if *now > before + 1 && !self.excused && faults.holes == 0 {
                faults.holes += 1;
            }
        }
        faults
    }
}

/// Numbers of the server must rise.
fn within(seqs: &[u64]) -> Faults {
    let mut faults = Faults::default();
    for pair in seqs.windows(2) {
        match pair[0].cmp(&pair[1]) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => faults.duplicates += 1,
            std::cmp::Ordering::Greater => faults.disorder += 1,
        }
    }
    faults
}

/// Numbers of the publisher must be dense.
fn jumps(numbers: &[u64]) -> u64 {
    numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of the server's numbers `seqs` after `prev`, whose publisher counts from `n` on.
    fn run(prev: u64, seqs: &[u64], n: u64) -> Run {
        let numbers = (n..).take(seqs.len()).collect();
        Run { prev, seqs: seqs.to_vec(), numbers, stamps: vec![0; seqs.len()], ..Run::default() }
    }

    fn judged(runs: &[Run]) -> Faults {
        let mut chains = Chains::default();
        let mut all = Faults::default();
        runs.iter().for_each(|run| all.add(chains.take(run)));
        all
    }

    const HOLE: Faults = Faults { holes: 1, duplicates: 0, disorder: 0 };

    #[test]
    fn a_chain_that_joins_is_right_wherever_it_begins() {
        assert_eq!(judged(&[run(40, &[41, 45], 3), run(45, &[46], 5), run(46, &[50, 51], 6)]), Faults::default());
    }

    #[test]
    fn what_is_missing_between_two_is_one_hole() {
        assert_eq!(judged(&[run(0, &[1], 0), run(2, &[3], 2), run(3, &[4], 3)]), HOLE);
    }

    #[test]
    fn a_server_that_hides_a_hole_is_found_out_by_the_publishers_numbers() {
        assert_eq!(judged(&[run(0, &[1], 0), run(1, &[3], 2)]), HOLE);
        let mut hidden = run(0, &[1, 2], 0);
        hidden.numbers = vec![0, 2];
        assert_eq!(judged(&[hidden]), HOLE);
    }

    #[test]
    fn what_comes_again_is_counted_by_the_event() {
        let again = judged(&[run(0, &[1, 2, 3], 0), run(1, &[2, 3, 4], 1)]);
        assert_eq!(again, Faults { duplicates: 2, ..Faults::default() });
        let renumbered = judged(&[run(0, &[1], 0), run(1, &[2], 0)]);
        assert_eq!(renumbered, Faults { duplicates: 1, ..Faults::default() });
        assert_eq!(judged(&[run(0, &[1, 1], 0)]).duplicates, 1);
        let old_news = judged(&[run(0, &[1, 2], 0), run(0, &[1], 0), run(2, &[3], 2)]);
        assert_eq!(old_news, Faults { duplicates: 1, ..Faults::default() }, "the chain goes on");
    }

    #[test]
    fn what_comes_out_of_order_is_found_within_a_batch_and_between_two() {
        assert_eq!(judged(&[run(0, &[2, 1], 0)]).disorder, 1);
        assert_eq!(judged(&[run(0, &[1, 2], 0), run(1, &[3], 2)]).disorder, 1, "a past that is not true");
        assert_eq!(judged(&[run(5, &[4], 0)]).disorder, 1, "before its own past");
        assert!(!judged(&[run(1, &[2], 1), run(0, &[1], 0)]).none(), "swapped");
    }

    #[test]
    fn a_told_gap_excuses_one_jump_forward_of_its_topic_and_nothing_else() {
        let jump = [run(7, &[8], 7), run(9, &[10], 9)];
        for (told, expected) in [(None, 1), (Some(0), 1), (Some(1), 2)] {
            let mut chains = Chains::default();
            chains.take(&run(0, &[1], 0));
            chains.gap(told);
            let holes: u64 = jump.iter().map(|run| chains.take(run).holes).sum();
            assert_eq!(holes, expected, "{told:?}");
        }
        let mut chains = Chains::default();
        chains.take(&run(0, &[1], 0));
        chains.gap(None);
        assert_eq!(chains.take(&run(0, &[1], 0)).duplicates, 1);
    }

    #[test]
    fn another_epoch_is_a_hole_unless_it_was_told() {
        let other = || Run { epoch: 1, ..run(0, &[1], 0) };
        assert_eq!(judged(&[run(0, &[9], 8), other()]), HOLE);
        let mut chains = Chains::default();
        chains.take(&run(0, &[9], 8));
        chains.gap(None);
        assert!(chains.take(&other()).none());
    }

    #[test]
    fn topics_have_chains_of_their_own() {
        let mut chains = Chains::default();
        for (topic, prev) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            assert!(chains.take(&Run { topic, ..run(prev, &[prev + 1], prev) }).none());
        }
        assert_eq!(chains.take(&Run { topic: 1, ..run(3, &[4], 3) }).holes, 1);
        assert!(chains.take(&Run { topic: 0, ..run(2, &[3], 2) }).none());
    }
}
