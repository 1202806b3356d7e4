//! What the simulator of `tests/properties/test_leases.py` cannot see from outside: refunds, memory, the ring's arithmetic.

use super::ring::Ring;
use super::{LeaseBook, MS, Mode, Policy, Verdict};

const S: u64 = 1_000 * MS;
const SEED: (u64, u64) = (1, 2);

fn book(mode: Mode, limit: u32, max_bytes: usize) -> LeaseBook {
    let policy = Policy { name: "api".to_owned(), limit, window_ms: 60_000, mode };
    LeaseBook::new(vec![policy], max_bytes, 7, SEED, 0).expect("a usable policy")
}

/// An answer of a fleet of one that grants `units` per report.
fn answer(status: u8, at_us: u64, grants: &[(u32, u32, u64)]) -> Vec<u8> {
    let mut bytes = vec![status];
    bytes.extend(9_u64.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(at_us.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(SEED.0.to_le_bytes());
    bytes.extend(SEED.1.to_le_bytes());
    for (units, free, retry_us) in grants {
        bytes.extend(units.to_le_bytes());
        bytes.extend(free.to_le_bytes());
        bytes.extend(retry_us.to_le_bytes());
    }
    bytes
}

fn greet(book: &mut LeaseBook, now: u64) {
    assert!(book.collect(now, 10, b"sha").is_some());
    book.apply(&answer(1, now / 1_000, &[]), now).expect("an answer");
}

fn lease(book: &mut LeaseBook, now: u64, units: u32, free: u32) {
    assert!(book.collect(now, 10, b"sha").is_some());
    book.apply(&answer(0, now / 1_000, &[(units, free, 0)]), now).expect("an answer");
}

#[test]
fn a_strict_book_spends_only_what_it_was_granted() {
    let mut book = book(Mode::Strict, 10, 1 << 20);
    greet(&mut book, S);
    assert_eq!(Verdict::Unknown, book.hit(0, b"key", S, 1).verdict);
    lease(&mut book, S, 2, 8);
    let first = book.hit(0, b"key", S, 1);
    assert_eq!((Verdict::Admitted, 9), (first.verdict, first.remaining));
    assert_eq!(Verdict::Admitted, book.hit(0, b"key", S, 1).verdict);
    assert_eq!(Verdict::Unknown, book.hit(0, b"key", S, 1).verdict);
}

#[test]
fn a_lease_ends_counted_from_before_the_call() {
    let mut book = book(Mode::Strict, 10, 1 << 20);
    greet(&mut book, S);
    book.hit(0, b"key", S, 1);
    assert!(book.collect(S, 10, b"sha").is_some());
    book.apply(&answer(0, 1_000_000, &[(5, 5, 0)]), S + 40 * MS).expect("an answer");
    assert_eq!(Verdict::Admitted, book.hit(0, b"key", S + 15 * S - 1, 1).verdict);
    assert_eq!(Verdict::Unknown, book.hit(0, b"key", S + 15 * S, 1).verdict);
}

#[test]
fn only_what_was_not_told_is_refunded() {
    let mut book = book(Mode::Strict, 10, 1 << 20);
    greet(&mut book, S);
    book.hit(0, b"key", S, 1);
    lease(&mut book, S, 2, 0);
    let check = book.hit(0, b"key", S, 2);
    assert_eq!(Verdict::Admitted, check.verdict);
    book.refund(&check);
    let check = book.hit(0, b"key", S, 2);
    assert_eq!(Verdict::Admitted, check.verdict, "what came back is spent again");
    assert!(!book.close());
    assert!(book.collect(S, 10, b"sha").is_some());
    book.refund(&check);
    assert_ne!(Verdict::Admitted, book.hit(0, b"key", S, 1).verdict, "what is being told stays spent");
}

#[test]
fn a_full_book_refuses_newcomers_and_forgets_nothing_untold() {
    let mut book = book(Mode::Fast, 64, 16 * 1024);
    let mut admitted = 0_u32;
    for key in 0..1_000_u32 {
        admitted += u32::from(book.hit(0, &key.to_le_bytes(), S, 1).verdict == Verdict::Admitted);
    }
    assert_eq!(book.keys() as u32, admitted, "one unit of debt for each key that found a place");
    assert!(admitted < 1_000);
    let known = book.hit(0, &0_u32.to_le_bytes(), S, 1);
    assert_eq!(Verdict::Refused, known.verdict, "its debt is remembered");
}

#[test]
fn debt_ends_where_the_fleet_has_nothing_left() {
    let mut book = book(Mode::Fast, 640, 1 << 20);
    greet(&mut book, S);
    assert_eq!(Verdict::Admitted, book.hit(0, b"key", S, 4).verdict, "10 units may be owed");
    lease(&mut book, S + 500 * MS, 0, 0);
    assert_eq!(Verdict::Refused, book.hit(0, b"key", S + 500 * MS, 1).verdict);
}

#[test]
fn nonsense_is_not_an_answer() {
    let mut book = book(Mode::Fast, 10, 1 << 20);
    for bytes in [&b""[..], b"OK", &[9; 45], &answer(0, 0, &[(1, 1, 1)])] {
        assert!(book.collect(S, 10, b"sha").is_some());
        assert!(book.apply(bytes, S).is_err());
    }
    assert!(!book.ready(S));
}

#[test]
fn a_ring_counts_65_slots_and_moves_with_the_clock() {
    let mut ring = Ring::new();
    ring.advance(1_000);
    ring.add(3);
    ring.advance(1_001);
    ring.add(2);
    assert_eq!(vec![(0, 2), (1, 2)], ring.latest(4).collect::<Vec<_>>());
    ring.shift(-500);
    assert_eq!((501, Some(64)), (ring.newest(), ring.leaves_in()));
    ring.advance(564);
    assert_eq!(5, ring.total());
    ring.advance(565);
    assert_eq!(2, ring.total());
    ring.remove(1);
    ring.advance(566);
    assert_eq!(0, ring.total());
}

#[test]
fn a_debt_that_fitted_is_forgiven_and_one_that_did_not_is_not() {
    for (units, free, expected) in [(0, 100, Verdict::Admitted), (1, 0, Verdict::Refused), (0, 0, Verdict::Refused)] {
        let mut book = book(Mode::Fast, 640, 1 << 20);
        greet(&mut book, S);
        assert_eq!(Verdict::Admitted, book.hit(0, b"key", S, 10).verdict, "10 units may be owed");
        assert_eq!(Verdict::Refused, book.hit(0, b"key", S, 1).verdict);
        lease(&mut book, S + 500 * MS, units, free);
        assert_eq!(expected, book.hit(0, b"key", S + 500 * MS, 10).verdict, "{units} granted, {free} free");
    }
}

#[test]
fn what_was_owed_before_the_first_answer_is_told_in_the_slots_of_the_fleet() {
    let mut book = book(Mode::Fast, 640, 1 << 20);
    assert_eq!(Verdict::Admitted, book.hit(0, b"key", S, 10).verdict);
    assert!(book.collect(S, 10, b"sha").is_some());
    book.apply(&answer(1, 1_700_000_000_000_000, &[]), S).expect("an answer");
    let call = book.collect(S, 10, b"sha").expect("a report of the debt");
    // The report ends with its pairs: how many, then (slots back, units).
    assert!(call.ends_with(&[1, 0, 10, 0, 0, 0, b'\r', b'\n']), "10 units of now");
}

#[test]
fn crowding_gives_a_key_over_its_limit_no_fresh_window() {
    let mut book = book(Mode::Fast, 64, 16 * 1024);
    greet(&mut book, S);
    assert_eq!(Verdict::Admitted, book.hit(0, b"key", S, 1).verdict, "its debt");
    let mut now = S;
    for key in 0..1_000_u32 {
        now += 30 * MS;
        book.hit(0, &key.to_le_bytes(), now, 1);
        if let Some(call) = book.collect(now, 256, b"sha") {
            let reports = call.windows(12).filter(|words| words == b"{flx}:units:").count();
            book.apply(&answer(0, now / 1_000, &vec![(0, 0, 60_000_000); reports]), now).expect("an answer");
        }
    }
    assert!(book.find(book.identify(0, b"key")).is_none(), "others have its place");
    assert_eq!(Verdict::Refused, book.hit(0, b"key", now, 1).verdict);
    assert_eq!(Verdict::Refused, book.hit(0, b"key", now + 29 * S, 1).verdict);
}

/// One request passes several limits: all are asked, then all are charged.
#[test]
fn room_for_one_key_of_a_request_is_not_made_by_forgetting_another_of_it() {
    let mut book = book(Mode::Fast, 64, 16 * 1024);
    greet(&mut book, S);
    let (mut now, mut keys) = (S, 0_u32);
    while book.entries.len() < book.capacity {
        now += MS;
        assert_eq!(Verdict::Admitted, book.hit(0, &keys.to_le_bytes(), now, 1).verdict, "its debt");
        keys += 1;
    }
    // All is told, so that any of them may make room.
    now += S;
    while let Some(call) = book.collect(now, 256, b"sha") {
        let reports = call.windows(12).filter(|words| words == b"{flx}:units:").count();
        if reports == 0 {
            break;
        }
        book.apply(&answer(0, now / 1_000, &vec![(0, 9, 0); reports]), now).expect("an answer");
    }
    now += 61 * S;
    let first = book.hand;
    let known = book.check(0, &(first as u32).to_le_bytes(), now, 1);
    assert_eq!((Verdict::Admitted, first), (known.verdict, known.index));
    let spent = book.entries[first].spent;
    let newcomer = book.check(0, b"a newcomer", now, 1);
    assert_ne!(first, newcomer.index);
    book.charge(&known);
    let found = book.find(book.identify(0, &(first as u32).to_le_bytes())).expect("it is still known");
    assert_eq!(spent + 1, book.entries[found].spent);
}
