//! The window against its naive twin: the exact list of admitted times, which forgets nothing.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use flx_core::limit::SlidingWindow;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

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
    let mut window = SlidingWindow::new(limit, window_ms, 1 << 20, (1, 2)).unwrap();
    let mut twin = Twin::default();
    let mut now = start;
    let window_ns = window_ms * MS;
    for &(step, hits, cost) in steps {
        now += step;
        for _ in 0..hits {
            let check = window.hit(b"k", now, cost);
            let used = twin.within(now, window_ns);
            if check.admitted {
                twin.0.extend(std::iter::repeat_n(now, cost as usize));
                prop_assert!(used + u64::from(cost) <= u64::from(limit), "over the limit in a true window");
            } else {
                let justified = twin.within(now, window_ns / 64 * 65 + 1) + u64::from(cost) > u64::from(limit);
                prop_assert!(justified, "refused although the limit was not used");
                if limit <= 64 {
                    prop_assert!(used + u64::from(cost) > u64::from(limit), "small limits are exact");
                }
                if cost <= limit {
                    prop_assert!(check.reset_ns > 0 && check.reset_ns <= window_ns / 64 * 65);
                    let before = window.check(b"k", now + check.reset_ns - 1, cost);
                    prop_assert!(!before.admitted, "reset came too late");
                    now += check.reset_ns;
                    prop_assert!(window.check(b"k", now, cost).admitted, "reset came too early");
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
        let mut window = SlidingWindow::new(limit, 64, 16_000, (3, 4)).unwrap();
        let mut twins: Vec<Twin> = (0..200).map(|_| Twin::default()).collect();
        let mut now = 0;
        for (key, burst, step) in hits {
            now += step * MS / 40;
            for _ in 0..=burst {
                if window.hit(&key.to_le_bytes(), now, 1).admitted {
                    let twin = &mut twins[usize::from(key)];
                    prop_assert!(twin.within(now, 64 * MS) < u64::from(limit));
                    twin.0.push(now);
                }
            }
        }
        prop_assert!(window.keys() <= 16_000 / 40);
    }
}

#[test]
fn a_clock_that_jumps_back_counts_as_standing_still() {
    let mut window = SlidingWindow::new(2, 1_000, 1 << 20, (1, 2)).unwrap();
    assert!(window.hit(b"k", 5_000 * MS, 1).admitted);
    assert!(window.hit(b"k", 10, 1).admitted);
    assert!(!window.hit(b"k", 20, 1).admitted);
    assert!(!window.hit(b"k", 5_999 * MS, 1).admitted);
    assert!(window.hit(b"k", 6_000 * MS, 1).admitted);
}

#[test]
fn refused_requests_are_not_counted() {
    let mut window = SlidingWindow::new(100, 64, 1 << 20, (1, 2)).unwrap();
    let admitted = (0..1_000).filter(|_| window.hit(b"k", 0, 1).admitted).count();
    assert_eq!(100, admitted);
    assert!(window.hit(b"k", 65 * MS, 100).admitted);
}

#[test]
fn keys_do_not_share_quota_while_there_is_room() {
    let mut window = SlidingWindow::new(1, 1_000, 1 << 20, (1, 2)).unwrap();
    for key in 0..5_000_u32 {
        assert!(window.hit(&key.to_le_bytes(), 7, 1).admitted);
        assert!(!window.hit(&key.to_le_bytes(), 7, 1).admitted);
    }
}

#[test]
fn a_full_table_reuses_the_entries_of_idle_keys() {
    let mut window = SlidingWindow::new(1, 1_000, 40_000, (1, 2)).unwrap();
    for round in 0..20_u64 {
        for key in 0..500_u64 {
            let hit = window.hit(&(round * 1_000 + key).to_le_bytes(), round * 1_000 * MS, 1);
            assert!(hit.admitted, "{round} {key}");
        }
    }
    assert!(window.keys() <= 1_000);
}

#[test]
fn a_cost_above_the_limit_never_fits() {
    let mut window = SlidingWindow::new(3, 1_000, 1 << 20, (1, 2)).unwrap();
    assert!(!window.hit(b"k", 0, 4).admitted);
    assert_eq!(2, window.hit(b"k", 0, 1).remaining);
    assert!(!window.hit(b"k", 0, 4).admitted);
    assert_eq!(0, window.hit(b"k", 0, 2).remaining);
}

#[test]
fn absurd_configurations_are_refused() {
    for (limit, window_ms, max_bytes) in [(0, 1, 1 << 20), (1, 0, 1 << 20), (1, u64::MAX, 1 << 20), (1, 1, 100)] {
        assert!(SlidingWindow::new(limit, window_ms, max_bytes, (1, 2)).is_err());
    }
    let mut window = SlidingWindow::new(u32::MAX, 1, 1 << 20, (1, 2)).unwrap();
    assert!(window.hit(b"k", u64::MAX, u32::MAX).admitted);
    assert!(!window.hit(b"k", u64::MAX, u32::MAX).admitted);
}

#[test]
fn a_newcomer_takes_the_shared_history_along() {
    let mut window = SlidingWindow::new(3, 64, 16_000, (1, 2)).unwrap();
    let mut full = 0_u32;
    loop {
        let before = window.keys();
        window.hit(&full.to_le_bytes(), 0, 1);
        full += 1;
        if window.keys() == before {
            break;
        }
    }
    // No room: this use is remembered in a shared entry. Later the others are idle and the key gets its own.
    assert!(window.hit(b"newcomer", 60 * MS, 1).admitted);
    let admitted = (0..5).filter(|_| window.hit(b"newcomer", 65 * MS, 1).admitted).count();
    assert_eq!(2, admitted);
}
