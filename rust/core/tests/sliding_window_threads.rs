//! Many threads on one table at full speed, judged by the list of what was admitted.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use flx_core::limit::{Heap, Rate, SlidingWindow};

const THREADS: u64 = 4;

/// Runs the threads over a clock that each hit moves on by `step_ns`, and returns what was admitted: (key, now, cost).
fn run(window: &SlidingWindow, keys: u64, hits: u64, step_ns: u64) -> Vec<(u64, u64, u32)> {
    let clock = AtomicU64::new(1_000_000_000_000);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let clock = &clock;
                scope.spawn(move || {
                    let mut admitted = Vec::new();
                    for hit in 0..hits {
                        // A cheap scramble; which keys meet is all that matters.
                        let dice = (hit * THREADS + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
                        let (key, cost) = (dice % keys, 1 + (dice >> 20) as u32 % 2);
                        let now = clock.fetch_add(step_ns, SeqCst);
                        if let Ok(charge) = window.hit(&key.to_le_bytes(), now, cost) {
                            admitted.push((key, charge.now_ns, cost));
                            if hit % 97 == 0 {
                                window.refund(&charge);
                                admitted.pop();
                            }
                        }
                    }
                    admitted
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    })
}

/// The fullest true window of any key.
fn fullest(admitted: &[(u64, u64, u32)], window_ns: u64) -> u32 {
    let mut logs: HashMap<u64, Vec<(u64, u32)>> = HashMap::new();
    for &(key, at, cost) in admitted {
        logs.entry(key).or_default().push((at, cost));
    }
    let mut most = 0;
    for log in logs.values_mut() {
        log.sort_unstable();
        let (mut first, mut units) = (0, 0);
        for &(at, cost) in log.iter() {
            units += cost;
            while at - log[first].0 >= window_ns {
                units -= log[first].1;
                first += 1;
            }
            most = most.max(units);
        }
    }
    most
}

#[test]
fn no_window_of_any_key_holds_more_than_the_limit() {
    for (limit, keys, max_bytes) in
        [(10, 1, 1 << 20), (10, 50, 1 << 20), (200, 3, 1 << 20), (2, 400, 30_000), (70, 90, 40_000)]
    {
        let rate = Rate { limit, window_ms: 1, max_cost: 2 };
        let window = SlidingWindow::<Heap>::on_heap(rate, max_bytes, (1, 2)).unwrap();
        let admitted = run(&window, keys, 100_000, 200);
        assert!(!admitted.is_empty());
        assert!(fullest(&admitted, 1_000_000) <= limit, "limit {limit}, {keys} keys");
    }
}

#[test]
fn within_one_window_exactly_the_limit_is_admitted() {
    for limit in [64, 5_001] {
        let rate = Rate { limit, window_ms: 60_000, max_cost: 1 };
        let window = SlidingWindow::<Heap>::on_heap(rate, 1 << 20, (1, 2)).unwrap();
        let admitted = thread::scope(|scope| {
            let hits = || (0..5_000).filter(|&now| window.hit(b"key", now, 1).is_ok()).count();
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(hits)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(limit as usize, admitted);
    }
}
