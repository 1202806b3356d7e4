//! Several workers on one table, stopped and killed between any two atomic operations.
//!
//! Strategy: the table's words are [`Stepped`], which asks a script before every operation whose turn it is. A script is a
//! list of (worker, operations); afterwards the workers run to their end in turn. Every fourteenth script with two switches is
//! tried, and random ones with more; and every worker is killed before every one of its operations. The judge is the list of
//! what was admitted. Operations are sequentially consistent in production too, so an order is all there is.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use flx_core::limit::memory::Word;
use flx_core::limit::{Memory, Rate, SlidingWindow};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

thread_local! {
    /// The script of this thread's run and its number there; none while a table is prepared or judged.
    static WORKER: RefCell<Option<(Arc<Stage>, usize)>> = const { RefCell::new(None) };
}

struct Stage {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// (worker, operations left), the present one first.
    script: Vec<(usize, u32)>,
    ended: Vec<bool>,
    /// How many operations each worker may still do before it is killed.
    lives: Vec<u32>,
}

struct Killed;

impl State {
    fn turn(&mut self) -> usize {
        self.script.retain(|&(worker, left)| left > 0 && !self.ended[worker]);
        let next = self.script.first().map(|&(worker, _)| worker);
        next.or_else(|| self.ended.iter().position(|ended| !ended)).unwrap_or(0)
    }
}

impl Stage {
    fn step(&self, me: usize) {
        let mut state = self.state.lock().unwrap();
        while state.turn() != me {
            state = self.moved.wait(state).unwrap();
        }
        if let Some((_, left)) = state.script.first_mut() {
            *left -= 1;
        }
        if state.lives[me] == 0 {
            drop(state);
            resume_unwind(Box::new(Killed));
        }
        state.lives[me] -= 1;
        let stays = state.turn() == me;
        drop(state);
        if !stays {
            self.moved.notify_all();
        }
    }

    fn end(&self, me: usize) {
        self.state.lock().unwrap().ended[me] = true;
        self.moved.notify_all();
    }
}

/// A word that waits for its turn.
#[derive(Default)]
struct Stepped(AtomicU64);

fn step() {
    WORKER.with_borrow(|worker| {
        if let Some((stage, me)) = worker {
            stage.step(*me);
        }
    });
}

impl Word for Stepped {
    fn load(&self) -> u64 {
        step();
        self.0.load(SeqCst)
    }
    fn swap_if(&self, seen: u64, new: u64) -> bool {
        step();
        self.0.compare_exchange(seen, new, SeqCst, SeqCst).is_ok()
    }
    fn raise(&self, value: u64) {
        step();
        self.0.fetch_max(value, SeqCst);
    }
}

struct Words(Vec<Stepped>);

impl Memory for Words {
    type Word = Stepped;
    fn words(&self) -> &[Stepped] {
        &self.0
    }
}

type Window = SlidingWindow<Words>;

/// One request of one worker: key, now in ticks of the window, cost. Admitted ones: when it counts as admitted.
type Request = (&'static [u8], u64, u32);

/// What there is before the workers start, and what each of them does, one request after the other.
struct Scene {
    rate: Rate,
    before: Vec<(Vec<u8>, u64, u32)>,
    workers: Vec<Vec<Request>>,
}

/// One bucket: every entry is a candidate for every key.
fn window(rate: Rate) -> Window {
    let words = (1..).find_map(|bytes| rate.words(bytes * 8).ok()).unwrap();
    SlidingWindow::new(rate, Words((0..words).map(|_| Stepped::default()).collect()), (1, 2)).unwrap()
}

impl Scene {
    const fn tick_ns(&self) -> u64 {
        self.rate.window_ms * MS / 64
    }

    /// Runs a script and returns what was admitted: (worker, key, now in ticks, cost).
    fn run(&self, script: &[(usize, u32)], lives: &[u32]) -> (Window, Vec<(usize, Request)>) {
        let window = window(self.rate);
        for (key, ticks, cost) in &self.before {
            assert!(window.hit(key, ticks * self.tick_ns(), *cost).is_ok());
        }
        let ended = vec![false; self.workers.len()];
        let lives = (0..self.workers.len()).map(|me| lives.get(me).copied().unwrap_or(u32::MAX)).collect();
        let state = State { script: script.to_vec(), ended, lives };
        let stage = Arc::new(Stage { state: Mutex::new(state), moved: Condvar::new() });
        let admitted = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for (me, requests) in self.workers.iter().enumerate() {
                let (stage, window, admitted) = (Arc::clone(&stage), &window, &admitted);
                scope.spawn(move || {
                    WORKER.set(Some((Arc::clone(&stage), me)));
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        for &(key, ticks, cost) in requests {
                            if let Ok(charge) = window.hit(key, ticks * self.tick_ns(), cost) {
                                admitted.lock().unwrap().push((me, (key, charge.now_ns / self.tick_ns(), cost)));
                            }
                        }
                    }));
                    WORKER.set(None);
                    stage.end(me);
                    assert!(outcome.is_ok_and(|()| true) || self.is_dead(&stage, me), "a worker failed");
                });
            }
        });
        (window, admitted.into_inner().unwrap())
    }

    fn is_dead(&self, stage: &Stage, me: usize) -> bool {
        me < self.workers.len() && stage.state.lock().unwrap().lives[me] == 0
    }

    /// No true window holds more than the limit of any key.
    fn judge(&self, admitted: &[(usize, Request)], script: &[(usize, u32)]) {
        let before = self.before.iter().map(|(key, at, cost)| (key.as_slice(), *at, *cost));
        let all: Vec<(&[u8], u64, u32)> = before.chain(admitted.iter().map(|(_, request)| *request)).collect();
        for &(key, end, _) in &all {
            let inside = |other: &&(&[u8], u64, u32)| other.0 == key && other.1 <= end && end - other.1 < 64;
            let units: u32 = all.iter().filter(inside).map(|(_, _, cost)| cost).sum();
            assert!(units <= self.rate.limit, "{units} of {} by {script:?}: {admitted:?}", self.rate.limit);
        }
    }

    /// How many operations worker `me` does when it is alone.
    fn operations(&self, me: usize) -> u32 {
        let alone = Self { rate: self.rate, before: self.before.clone(), workers: vec![self.workers[me].clone()] };
        (0..10_000).find(|&lives| alone.run(&[], &[lives]).1.len() == alone.run(&[], &[]).1.len()).unwrap() + 4
    }

    /// Every pair of switches; `expected` units of the workers' are admitted in each.
    fn try_all(&self, expected: std::ops::RangeInclusive<u32>) {
        let operations: Vec<u32> = (0..self.workers.len()).map(|me| self.operations(me)).collect();
        let mut seen = Vec::new();
        for first in 0..self.workers.len() {
            for second in (0..self.workers.len()).filter(|&second| second != first) {
                // Workers that do the same are as good as each other.
                let pair = (&self.workers[first], &self.workers[second]);
                if seen.contains(&pair) {
                    continue;
                }
                seen.push(pair);
                for i in (0..operations[first]).step_by(2) {
                    for j in (1 + i % 7..=operations[second]).step_by(7).chain([u32::MAX]) {
                        let script = [(first, i), (second, j), (first, u32::MAX)];
                        let (_, admitted) = self.run(&script, &[]);
                        self.judge(&admitted, &script);
                        let units: u32 = admitted.iter().map(|(_, (_, _, cost))| cost).sum();
                        assert!(expected.contains(&units), "{units} by {script:?}");
                    }
                }
            }
        }
    }

    /// Kills each worker before each of its operations, while another is at each of a few points of its own.
    fn kill_all(&self, key: &'static [u8], leak: u32) {
        for victim in 0..self.workers.len() {
            let other = (victim + 1) % self.workers.len();
            for lives in 0..self.operations(victim) {
                for head_start in [0, 5, 11, 40] {
                    let script = [(other, head_start), (victim, u32::MAX)];
                    let mut all = vec![u32::MAX; self.workers.len()];
                    all[victim] = lives;
                    let (window, admitted) = self.run(&script, &all);
                    self.judge(&admitted, &script);
                    // What the dead leaves: no lock, and no more than its own cost, for no more than a window.
                    let latest = self.workers.iter().flatten().map(|request| request.1).max().unwrap();
                    let used =
                        |at: u64| admitted.iter().filter(|(_, it)| it.0 == key && at - it.1 <= 64).count() as u32;
                    let before = self.before.iter().filter(|(it, at, _)| it == key && latest - at <= 64).count() as u32;
                    let free = self.rate.limit - used(latest).min(self.rate.limit) - before;
                    let more = (0..=self.rate.limit).filter(|_| window.hit(key, latest * self.tick_ns(), 1).is_ok());
                    let more = more.count() as u32;
                    assert!(more <= free && more + leak >= free, "{more} of {free} by {script:?}, {lives}");
                    let later = (latest + 66) * self.tick_ns();
                    assert!(window.hit(key, later, self.rate.limit).is_ok(), "wedged by {script:?}, {lives}");
                }
            }
        }
    }
}

const SMALL: Rate = Rate { limit: 2, window_ms: 64, max_cost: 2 };
const LARGE: Rate = Rate { limit: 70, window_ms: 64, max_cost: 70 };

fn others(rate: Rate, count: u32, at: u64) -> Vec<(Vec<u8>, u64, u32)> {
    (0..count).map(|key| (key.to_le_bytes().to_vec(), at, rate.limit)).collect()
}

/// Three workers meet a key that has no entry yet; the limit fits two of their requests.
fn newcomer(rate: Rate) -> Scene {
    let request: Request = (b"new", 100, rate.limit / 2);
    Scene { rate, before: vec![], workers: vec![vec![request]; 3] }
}

/// The entry is full of units that leave between the workers' nows.
fn edge(rate: Rate) -> Scene {
    let key: &'static [u8] = b"key";
    let before = vec![(key.to_vec(), 100, rate.limit - 1), (key.to_vec(), 130, 1)];
    let workers = vec![vec![(key, 164, 1)], vec![(key, 165, rate.limit - 1)], vec![(key, 165, 1), (key, 230, 1)]];
    Scene { rate, before, workers }
}

/// The bucket is full of keys that are idle at 165 but not at 163: there a newcomer must share.
fn crowded(rate: Rate) -> Scene {
    let new: &'static [u8] = b"new";
    let workers = vec![vec![(new, 163, rate.limit)], vec![(new, 165, rate.limit)], vec![(new, 165, rate.limit)]];
    Scene { rate, before: others(rate, 16, 100), workers }
}

/// An idle key comes back while another takes its entry.
fn evicted(rate: Rate) -> Scene {
    let (new, old): (&'static [u8], &'static [u8]) = (b"new", &[0, 0, 0, 0]);
    let workers = vec![vec![(new, 166, rate.limit)], vec![(old, 165, rate.limit)], vec![(old, 166, 1)]];
    Scene { rate, before: others(rate, 16, 100), workers }
}

/// A charge at 105 is stopped before its snapshot, one at 165 after it published its tick. A third worker looks through the
/// ticks between; then the first goes on, and a fourth charges 165, whose snapshot counts the first one's units.
fn overtaken() -> Scene {
    let key: &'static [u8] = b"key";
    let workers = vec![vec![(key, 105, 69)], vec![(key, 165, 1)], vec![(key, 165, 1)], vec![(key, 166, 69)]];
    Scene { rate: LARGE, before: vec![(key.to_vec(), 100, 1)], workers }
}

#[test]
fn what_was_missed_is_not_noted() {
    let scene = overtaken();
    for (slow, published) in (50..90).flat_map(|slow| (6..20).map(move |published| (slow, published))) {
        let script = [(0, slow), (1, published), (3, 30), (0, u32::MAX), (2, u32::MAX), (3, u32::MAX)];
        let (_, admitted) = scene.run(&script, &[]);
        scene.judge(&admitted, &script);
    }
}

#[test]
fn two_switches_of_newcomers() {
    for rate in [SMALL, LARGE] {
        newcomer(rate).try_all(rate.limit..=rate.limit);
    }
}

#[test]
fn two_switches_at_the_edge() {
    for rate in [SMALL, LARGE] {
        edge(rate).try_all(1..=rate.limit + 2);
    }
}

#[test]
fn two_switches_in_a_crowd() {
    for rate in [SMALL, LARGE] {
        crowded(rate).try_all(rate.limit..=rate.limit);
    }
}

#[test]
fn two_switches_around_an_eviction() {
    for rate in [SMALL, LARGE] {
        evicted(rate).try_all(rate.limit..=2 * rate.limit);
    }
}

#[test]
fn a_worker_killed_anywhere_leaks_its_own_cost() {
    for rate in [SMALL, Rate { limit: 70, ..LARGE }] {
        let one: Request = (b"new", 100, 1);
        Scene { rate, before: vec![], workers: vec![vec![one]; 2] }.kill_all(b"new", 1);
        let (before, late): (_, Request) = (others(rate, 16, 100), (b"new", 165, 1));
        Scene { rate, before, workers: vec![vec![late]; 2] }.kill_all(b"new", 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn many_switches(
        which in 0..4_usize,
        is_small in any::<bool>(),
        script in proptest::collection::vec((0..3_usize, 0..60_u32), 0..12),
        lives in proptest::collection::vec(prop_oneof![2 => Just(u32::MAX), 1 => 0..200_u32], 3)
    ) {
        let scene = [newcomer, edge, crowded, evicted][which](if is_small { SMALL } else { LARGE });
        let (window, admitted) = scene.run(&script, &lives);
        scene.judge(&admitted, &script);
        prop_assert!(window.hit(b"new", 400 * scene.tick_ns(), scene.rate.limit).is_ok(), "wedged");
    }
}
