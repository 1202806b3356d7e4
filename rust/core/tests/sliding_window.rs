//! The window against its naive twin: the exact list of admitted times, which forgets nothing.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use flx_core::limit::{Charge, Check, Heap, Lone, Memory, Rate, SlidingWindow};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

/// Memory that several windows borrow.
#[derive(Clone, Copy)]
struct Shared<'a>(&'a Heap);

impl Memory for Shared<'_> {
    type Word = AtomicU64;
    fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }
}

fn window(limit: u32, window_ms: u64, max_bytes: usize) -> SlidingWindow {
    SlidingWindow::on_heap(Rate { limit, window_ms, max_cost: limit }, max_bytes, (1, 2)).unwrap()
}

fn admits(window: &SlidingWindow, key: &[u8], now: u64, cost: u32) -> bool {
    window.hit(key, now, cost).is_ok()
}

/// Units left and nanoseconds to wait, whatever the answer.
fn numbers(answer: Result<Charge, Check>) -> (u32, u64) {
    answer.map_or_else(|check| (check.remaining, check.reset_ns), |charge| (charge.remaining, charge.reset_ns))
}

/// Every admitted unit of one key.
#[derive(Default)]
struct Twin(Vec<u64>);

impl Twin {
    fn within(&self, now: u64, span_ns: u64) -> u64 {
        self.0.iter().filter(|&&at| now - at < span_ns).count() as u64
    }
}

/// Steps that sit on slot edges, just beside them, and far from them.
fn steps(window_ms: u64) -> impl Strategy<Value = Vec<(u64, u8, u32)>> {
    let slot = window_ms * MS / 64;
    let step = prop_oneof![
        4 => Just(0),
        2 => Just(1),
        2 => (1..4_u64).prop_map(move |n| n * slot),
        1 => (1..4_u64).prop_map(move |n| n * slot - 1),
        1 => Just(slot * 63), 1 => Just(slot * 64 - 1), 1 => Just(slot * 64), 1 => Just(slot * 65),
        1 => 0..slot * 70,
    ];
    proptest::collection::vec((step, 1..60_u8, 1..4_u32), 1..60)
}

fn judge(limit: u32, window_ms: u64, start: u64, steps: &[(u64, u8, u32)]) -> Result<(), TestCaseError> {
    let window = window(limit, window_ms, 1 << 20);
    let mut twin = Twin::default();
    let mut now = start;
    let window_ns = window_ms * MS;
    for &(step, hits, cost) in steps {
        now += step;
        for _ in 0..hits {
            let answer = window.hit(b"k", now, cost);
            let (remaining, reset_ns) = numbers(answer);
            let used = twin.within(now, window_ns);
            if answer.is_ok() {
                prop_assert!(used + u64::from(cost) + u64::from(remaining) <= u64::from(limit));
                twin.0.extend(std::iter::repeat_n(now, cost as usize));
                prop_assert!(used + u64::from(cost) <= u64::from(limit), "over the limit in a true window");
            } else {
                let justified = twin.within(now, window_ns / 64 * 65 + 1) + u64::from(cost) > u64::from(limit);
                prop_assert!(justified, "refused although the limit was not used");
                if limit <= 64 {
                    prop_assert!(used + u64::from(cost) > u64::from(limit), "small limits are exact");
                }
                if cost <= limit {
                    prop_assert!(reset_ns > 0 && reset_ns <= window_ns / 64 * 65);
                    let before = window.check(window.identify(b"k"), now + reset_ns - 1, cost);
                    prop_assert!(!before.admitted, "reset came too late");
                    now += reset_ns;
                    prop_assert!(window.check(window.identify(b"k"), now, cost).admitted, "reset came too early");
                }
                break;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn small_limits(limit in 1..=64_u32, start in 0..1_u64 << 60, steps in steps(1_000)) {
        judge(limit, 1_000, start, &steps)?;
    }

    #[test]
    fn large_limits(limit in 65..400_u32, start in 0..1_u64 << 60, steps in steps(60_000)) {
        judge(limit, 60_000, start, &steps)?;
    }

    #[test]
    fn crowding_gives_nobody_quota_back(
        limit in prop_oneof![1..5_u32, 65..68_u32],
        hits in proptest::collection::vec((0..200_u16, 0..3_u8, 0..80_u64), 1..1500)
    ) {
        // Room for a few dozen keys only, two hundred arrive: the limit still holds for each of them.
        let window = window(limit, 64, 16_000);
        let mut twins: Vec<Twin> = (0..200).map(|_| Twin::default()).collect();
        let mut now = 0;
        for (key, burst, step) in hits {
            now += step * MS / 40;
            for _ in 0..=burst {
                if admits(&window, &key.to_le_bytes(), now, 1) {
                    let twin = &mut twins[usize::from(key)];
                    prop_assert!(twin.within(now, 64 * MS) < u64::from(limit));
                    twin.0.push(now);
                }
            }
        }
    }
}

#[test]
fn what_is_given_back_is_not_lost_in_a_credit_that_has_lapsed() {
    // A window of 64 ticks: the credit of tick 0 counts no more at tick 64, for small limits and large ones alike.
    for limit in [2, 66] {
        for later in [63, 64, 65, 66] {
            let window = window(limit, 64, 1 << 20);
            window.refund(&window.hit(b"k", 0, 1).unwrap());
            let now = later * MS;
            window.refund(&window.hit(b"k", now, limit).unwrap());
            assert!(window.check(window.identify(b"k"), now, limit).admitted, "limit {limit}, {later} ticks later");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What a request gives back is there for the next, and never longer than the charge would have counted.
    #[test]
    fn refunds_keep_the_limit(
        limit in prop_oneof![1..6_u32, 65..70_u32],
        start in 0..1_u64 << 60,
        steps in proptest::collection::vec((0..70_u64, 0..3_u64, 1..4_u32, 0..4_u8), 1..400)
    ) {
        let window = window(limit, 64, 1 << 20);
        let (mut twin, mut now) = (Twin::default(), start);
        let mut given_back = 0;
        let mut held: Vec<(Charge, u64, u32)> = Vec::new();
        for (step, offset, cost, what) in steps {
            now += step / 8 * MS / 2 + offset;
            match window.hit(b"k", now, cost) {
                Err(_) => {}
                Ok(charge) if what == 0 => {
                    window.refund(&charge);
                    given_back += cost;
                    let free = window.check(window.identify(b"k"), now, cost).admitted;
                    prop_assert!(free || given_back > 4, "given back, and free at once");
                }
                Ok(charge) => {
                    prop_assert!(twin.within(now, 64 * MS) + u64::from(cost) <= u64::from(limit));
                    twin.0.extend(std::iter::repeat_n(now, cost as usize));
                    if what == 1 {
                        held.push((charge, now, cost));
                    }
                }
            }
            if what == 2 && let Some((charge, at, cost)) = held.pop() {
                window.refund(&charge);
                given_back += cost;
                for _ in 0..cost {
                    let unit = twin.0.iter().position(|&time| time == at).unwrap();
                    twin.0.remove(unit);
                }
            }
        }
    }

    /// Words without a lock of the bus hold the same history, key by key, crowded and given back.
    #[test]
    fn lone_words_count_as_shared_ones_do(
        limit in prop_oneof![1..6_u32, 65..70_u32],
        hits in proptest::collection::vec((0..200_u16, 0..4_u8, 1..3_u32, -10..80_i64), 1..1500)
    ) {
        let rate = Rate { limit, window_ms: 64, max_cost: limit };
        let shared = SlidingWindow::<Heap>::on_heap(rate, 16_000, (1, 2)).unwrap();
        let lone = SlidingWindow::<Heap<Lone>>::on_heap(rate, 16_000, (1, 2)).unwrap();
        let mut now = 1_000 * MS;
        for (key, what, cost, step) in hits {
            now = now.saturating_add_signed(step * 25_000);
            let answers = (shared.hit(&key.to_le_bytes(), now, cost), lone.hit(&key.to_le_bytes(), now, cost));
            prop_assert_eq!(answers.0.is_ok(), answers.1.is_ok());
            prop_assert_eq!(numbers(answers.0), numbers(answers.1));
            if what == 0 && let (Ok(one), Ok(other)) = answers {
                shared.refund(&one);
                lone.refund(&other);
            }
        }
    }

    /// Each key's time stands still while the clock goes back; nobody is given more for it.
    #[test]
    fn clocks_that_step_back(
        limit in prop_oneof![1..5_u32, 65..68_u32],
        hits in proptest::collection::vec((0..4_u8, 1..30_u8, -100..200_i64), 1..200)
    ) {
        let window = window(limit, 64, 1 << 20);
        let mut twins: HashMap<u8, (Twin, u64)> = HashMap::new();
        let mut clock = 1_000 * MS;
        for (key, burst, step) in hits {
            clock = clock.saturating_add_signed(step * 500_000);
            let (twin, latest) = twins.entry(key).or_default();
            for _ in 0..burst {
                if admits(&window, &[key], clock, 1) {
                    *latest = clock.max(*latest);
                    prop_assert!(twin.within(*latest, 64 * MS) < u64::from(limit));
                    twin.0.push(*latest);
                }
            }
        }
    }
}

#[test]
fn a_clock_that_jumps_back_counts_as_standing_still() {
    let window = window(2, 1_000, 1 << 20);
    assert!(admits(&window, b"k", 5_000 * MS, 1));
    assert!(admits(&window, b"k", 10, 1));
    assert!(!admits(&window, b"k", 20, 1));
    assert!(!admits(&window, b"k", 5_999 * MS, 1));
    assert!(admits(&window, b"k", 6_000 * MS, 1));
}

#[test]
fn refused_requests_are_not_counted() {
    let window = window(100, 64, 1 << 20);
    let admitted = (0..1_000).filter(|_| admits(&window, b"k", 0, 1)).count();
    assert_eq!(100, admitted);
    assert!(admits(&window, b"k", 65 * MS, 100));
}

#[test]
fn keys_do_not_share_quota_while_there_is_room() {
    let window = window(1, 1_000, 1 << 20);
    for key in 0..5_000_u32 {
        assert!(admits(&window, &key.to_le_bytes(), 7, 1));
        assert!(!admits(&window, &key.to_le_bytes(), 7, 1));
    }
}

#[test]
fn a_full_table_reuses_the_entries_of_idle_keys() {
    let window = window(1, 1_000, 100_000);
    for round in 0..20_u64 {
        for key in 0..500_u64 {
            let admitted = admits(&window, &(round * 1_000 + key).to_le_bytes(), round * 1_000 * MS, 1);
            assert!(admitted, "{round} {key}");
        }
    }
}

#[test]
fn a_cost_above_the_limit_never_fits() {
    let window = window(3, 1_000, 1 << 20);
    assert!(!admits(&window, b"k", 0, 4));
    assert_eq!(2, numbers(window.hit(b"k", 0, 1)).0);
    assert!(!admits(&window, b"k", 0, 4));
    assert_eq!(0, numbers(window.hit(b"k", 0, 2)).0);
}

#[test]
fn absurd_configurations_are_refused() {
    let rate = |limit, window_ms, max_cost| Rate { limit, window_ms, max_cost };
    for (rate, max_bytes) in [
        (rate(0, 1, 1), 1 << 20),
        (rate(1_000_000_001, 1, 1), 1 << 20),
        (rate(1, 0, 1), 1 << 20),
        (rate(1, u64::MAX, 1), 1 << 20),
        (rate(1, 1, 0), 1 << 20),
        (rate(1, 1, 2), 1 << 20),
        (rate(1, 1, 1), 100),
    ] {
        assert!(SlidingWindow::<Heap>::on_heap(rate, max_bytes, (1, 2)).is_err());
    }
    let window = window(1_000_000_000, 1, 1 << 20);
    assert!(admits(&window, b"k", u64::MAX, 1_000_000_000));
    assert!(!admits(&window, b"k", u64::MAX, 1));
}

#[test]
fn a_region_belongs_to_one_rate() {
    let memory = Heap::zeroed(10_000).unwrap();
    let shared = Shared(&memory);
    let rate = Rate { limit: 10, window_ms: 1_000, max_cost: 1 };
    let [one, other] = [(); 2].map(|()| SlidingWindow::new(rate, shared, (1, 2)).unwrap());
    let admitted = (0..20).filter(|hit| [&one, &other][hit % 2].hit(b"k", 5, 1).is_ok()).count();
    assert_eq!(10, admitted);
    assert!(SlidingWindow::new(Rate { limit: 11, ..rate }, shared, (1, 2)).is_err());
}

#[test]
fn a_key_keeps_its_history_when_it_leaves_the_shared_entry() {
    let window = window(3, 64, 2_000);
    // More keys than entries: the last of them can only be in the shared one.
    for key in 0..40_u32 {
        let _ = window.hit(&key.to_le_bytes(), 0, 1);
    }
    let shared = (0..40_u32).filter(|key| !admits(&window, &key.to_le_bytes(), 0, 2)).collect::<Vec<_>>();
    assert!(shared.len() > 20, "{} keys of 40 share one entry", shared.len());
    // At 65 all are idle and the key could have an entry of its own, but what it used at 60 still counts.
    let key = shared[shared.len() - 1].to_le_bytes();
    assert!(admits(&window, b"newcomer", 64 * MS, 1) || admits(&window, &key, 64 * MS, 1));
    for (now, units) in [(64, 3), (127, 0), (128, 3)] {
        let admitted = (0..5).filter(|_| admits(&window, &key, now * MS, 1)).count();
        assert!(admitted <= units, "{admitted} at {now}");
    }
}
