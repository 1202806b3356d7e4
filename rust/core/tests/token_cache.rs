//! The cache of verified tokens beside a twin that keeps everything in a map and forgets nothing in between.
//!
//! The cache may forget at any time, so it is held to one side: what it says is what the twin says, and what it counts
//! is within its bound.

use std::collections::HashMap;

use flx_core::error::Reason;
use flx_core::jwt::cache::{Lookup, REFUSED_FOR_S, TokenCache};
use proptest::prelude::*;

/// Tokens that end alike have one hash: the collision that a real signature never makes.
fn token(n: u8) -> Vec<u8> {
    let end = if n.is_multiple_of(3) { "same-end".repeat(8) } else { format!("{n}").repeat(50) };
    format!("{n}.{}.{end}", "x".repeat(usize::from(n) % 40)).into_bytes()
}

#[derive(Clone, Debug)]
enum Step {
    Insert { token: u8, lives_s: u8, extra: u16 },
    Refuse { token: u8, expired: bool },
    Get { token: u8 },
    Remove { token: u8 },
    Clear,
    Time { by: i8 },
    Keys,
    Revocations,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let token = 0..40_u8;
    let step = prop_oneof![
        6 => (token.clone(), 0..60_u8, 0..300_u16).prop_map(|(token, lives_s, extra)| Step::Insert { token, lives_s, extra }),
        3 => (token.clone(), any::<bool>()).prop_map(|(token, expired)| Step::Refuse { token, expired }),
        12 => token.clone().prop_map(|token| Step::Get { token }),
        1 => token.prop_map(|token| Step::Remove { token }),
        1 => Just(Step::Clear),
        3 => (-3..9_i8).prop_map(|by| Step::Time { by }),
        1 => Just(Step::Keys),
        1 => Just(Step::Revocations),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn the_cache_says_what_the_twin_says_or_nothing(steps in steps(), max in 0..6000_usize, negative in 0..6000_usize) {
        let mut cache = TokenCache::new(max, negative, (1, 2)).unwrap();
        let mut verified: HashMap<u8, (usize, f64, u64, u64)> = HashMap::new();
        let mut refused: HashMap<u8, (Reason, f64, u64)> = HashMap::new();
        let (mut now, mut keys, mut revocations) = (1000.0, 0, 0);
        for (value, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert { token: n, lives_s, extra } => {
                    let expires = now + f64::from(lives_s);
                    cache.insert(&token(n), value, expires, keys, revocations, usize::from(extra));
                    verified.insert(n, (value, expires, keys, revocations));
                    refused.remove(&n);
                }
                Step::Refuse { token: n, expired } => {
                    let reason = if expired { Reason::Expired } else { Reason::NotYetValid };
                    cache.refuse(&token(n), reason, now, keys);
                    if expired {
                        refused.insert(n, (reason, now, keys));
                    }
                }
                Step::Get { token: n } => match cache.get(&token(n), now, keys) {
                    Lookup::Hit { value, revocation_epoch } => {
                        let known = verified.get_mut(&n);
                        prop_assert!(known.is_some(), "{n} was never verified");
                        let (kept, expires, epoch, seen) = known.unwrap();
                        prop_assert_eq!((*value, *revocation_epoch), (*kept, *seen));
                        prop_assert!(now < *expires && *epoch == keys);
                        (*revocation_epoch, *seen) = (revocations, revocations);
                    }
                    Lookup::Refused(reason) => {
                        let (kept, since, epoch) = refused[&n];
                        prop_assert_eq!((reason, keys), (kept, epoch));
                        prop_assert!(now >= since && now < since + REFUSED_FOR_S);
                    }
                    Lookup::Miss => {}
                },
                Step::Remove { token: n } => {
                    cache.remove(&token(n));
                    verified.remove(&n);
                    refused.remove(&n);
                }
                Step::Clear => {
                    cache.clear();
                    verified.clear();
                    refused.clear();
                    prop_assert_eq!((0, 0), (cache.len(), cache.bytes()));
                }
                Step::Time { by } => now += f64::from(by),
                Step::Keys => keys += 1,
                Step::Revocations => revocations += 1,
            }
            prop_assert!(cache.bytes() <= max);
            prop_assert_eq!(cache.is_empty(), cache.bytes() == 0);
        }
    }

    #[test]
    fn with_room_nothing_is_forgotten_before_its_end(tokens in proptest::collection::hash_set(0..40_u8, 0..40)) {
        let mut cache = TokenCache::new(1 << 20, 1 << 20, (1, 2)).unwrap();
        for n in &tokens {
            cache.insert(&token(*n), *n, 2000.0, 0, 0, 0);
        }
        prop_assert_eq!(tokens.len(), cache.len());
        for n in 0..40 {
            let hit = matches!(cache.get(&token(n), 1999.9, 0), Lookup::Hit { value, .. } if *value == n);
            prop_assert_eq!(tokens.contains(&n), hit);
        }
        for n in &tokens {
            prop_assert_eq!(Lookup::Miss, cache.get(&token(*n), 2000.0, 0));
        }
        prop_assert!(cache.is_empty());
    }
}

#[test]
fn a_flood_of_refused_tokens_leaves_the_verified_ones() {
    let mut cache = TokenCache::new(100_000, 10_000, (3, 4)).unwrap();
    for n in 0..40 {
        cache.insert(&token(n), n, 2000.0, 0, 0, 0);
    }
    for n in 0..100_000 {
        cache.refuse(format!("a.b.{n}").as_bytes(), Reason::InvalidSignature, 1000.0, 0);
    }
    assert_eq!(40, (0..40).filter(|n| matches!(cache.get(&token(*n), 1000.0, 0), Lookup::Hit { .. })).count());
    assert_eq!(Lookup::Refused(Reason::InvalidSignature), cache.get(b"a.b.99999", 1000.0, 0));
}

#[test]
fn what_is_used_outlives_what_is_not() {
    let mut cache = TokenCache::new(20_000, 0, (3, 4)).unwrap();
    for n in 0..2000_u32 {
        cache.insert(format!("a.b.{n}").as_bytes(), n, 2000.0, 0, 0, 0);
        assert!(n == 0 || matches!(cache.get(b"a.b.0", 1000.0, 0), Lookup::Hit { value: 0, .. }), "{n}");
        cache.get(b"a.b.0", 1000.0, 0);
    }
    assert!(cache.len() > 50 && cache.bytes() <= 20_000, "{} {}", cache.len(), cache.bytes());
}

#[test]
fn what_time_or_a_key_heals_is_not_remembered() {
    let mut cache: TokenCache<()> = TokenCache::new(0, 10_000, (3, 4)).unwrap();
    for reason in
        [Reason::UnknownKey, Reason::NotYetValid, Reason::IssuedInFuture, Reason::Revoked, Reason::MalformedToken]
    {
        cache.refuse(b"a.b.c", reason, 1000.0, 0);
        assert_eq!(Lookup::Miss, cache.get(b"a.b.c", 1000.0, 0), "{reason}");
    }
    cache.refuse(b"a.b.c", Reason::InvalidSignature, 1000.0, 0);
    assert_eq!(Lookup::Miss, cache.get(b"a.b.c", 1000.0, 1));
}
