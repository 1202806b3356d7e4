//! Admission as the gateway uses it: tokens and windows together.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use aws_lc_rs::hmac;
use flx_core::admission::{Admission, Ask, By, Decision, Policy, Token, TokenRoom, Toll};
use flx_core::error::{Reason, Unusable};
use flx_core::jwt::TokenVerifier;
use flx_core::jwt::claims::Expected;
use flx_core::jwt::keys::KeySet;
use flx_core::jwt::revocation::{Kind, Revocation, Revocations};
use flx_core::limit::memory::Word;
use flx_core::limit::{Heap, Memory, Rate, lease};

const SECRET: &[u8] = b"0123456789abcdef0123456789ABCDEF";
const K: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlBQkNERUY";
const SECOND: u64 = 1_000_000_000;

fn base64url(bytes: &[u8]) -> String {
    let bits = bytes.iter().fold(String::new(), |mut bits, byte| {
        let _ = write!(bits, "{byte:08b}");
        bits
    });
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |group: &[u8]| (0..6).fold(0, |sum, i| sum * 2 + usize::from(group.get(i) == Some(&b'1')));
    bits.as_bytes().chunks(6).map(|group| alphabet[digit(group)] as char).collect()
}

fn token(subject: &str, tenant: &str) -> String {
    let payload = format!(r#"{{"sub":"{subject}","tenant":"{tenant}","roles":["r"],"jti":"j","exp":2000.5}}"#);
    let signed = format!("{}.{}", base64url(br#"{"alg":"HS256"}"#), base64url(payload.as_bytes()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    format!("{signed}.{}", base64url(tag.as_ref()))
}

fn policy(name: &str, by: By, limit: u32) -> Policy {
    Policy { name: name.into(), by, limit, window_ms: 1_000, cost: 1, shadow: false }
}

fn built(policies: Vec<Policy>, tolls: Vec<Vec<Toll>>) -> Result<Gate, Unusable> {
    over(policies, tolls, |rate| Heap::zeroed(rate.words(1 << 20)?).ok_or(Unusable("memory")))
}

fn over<M: Memory>(
    policies: Vec<Policy>,
    tolls: Vec<Vec<Toll>>,
    memory: impl FnMut(Rate) -> Result<M, Unusable>,
) -> Result<Gate<M>, Unusable> {
    let keys = KeySet::parse(format!(r#"{{"keys":[{{"kty":"oct","k":"{K}"}}]}}"#).as_bytes()).unwrap();
    let expected = Expected { required: vec!["sub".into(), "exp".into()], ..Expected::default() };
    let verifier = Arc::new(TokenVerifier::new(keys, expected).unwrap());
    let room = TokenRoom { verified: 1 << 16, refused: 1 << 12 };
    Ok(Gate {
        core: Admission::new(verifier, policies, tolls, room, memory, (1, 2))?,
        revocations: Revocations::new((3, 4)),
    })
}

/// One class that passes every policy at its cost.
fn admission(policies: Vec<Policy>) -> Gate {
    let tolls = policies.iter().enumerate().map(|(policy, it)| Toll { policy, cost: it.cost }).collect();
    built(policies, vec![tolls]).unwrap()
}

struct Gate<M: Memory = Heap> {
    core: Admission<M, ()>,
    revocations: Revocations,
}

impl<M: Memory> Gate<M> {
    fn admit(&mut self, token: Token<'_>, client: &str, now_s: f64, now_ns: u64) -> Decision<()> {
        let Self { core, revocations } = self;
        core.admit(&Ask { class: 0, token, client, api_key: None, revocations, now_s, now_ns }, None, |_| ())
    }
}

fn ask(admission: &mut Gate, token: Result<&str, Reason>, ip: &str, now_ns: u64) -> Decision<()> {
    admission.admit(Token::Presented(token.map(str::as_bytes)), ip, 1_000.0, now_ns)
}

#[test]
fn an_acceptable_token_becomes_a_principal() {
    let mut admission = admission(vec![]);
    let decision = ask(&mut admission, Ok(&token("a", "t")), "10.0.0.1", 0);
    assert_eq!(200, decision.status());
    let principal = decision.known.unwrap().principal.clone();
    assert_eq!(("a", Some("t"), 2000), (&*principal.subject, principal.tenant.as_deref(), principal.expires_at));
    assert_eq!((vec!["r".to_owned()], Some("j".to_owned())), (principal.roles.clone(), principal.token_id.clone()));
}

#[test]
fn statuses_follow_reasons() {
    let mut admission = admission(vec![]);
    for (token, status) in [
        (Err(Reason::MissingToken), 401),
        (Err(Reason::InvalidRequest), 400),
        (Err(Reason::MalformedCredentials), 401),
        (Ok("a.b.c"), 401),
    ] {
        assert_eq!(status, ask(&mut admission, token, "", 0).status());
    }
    let open = admission.admit(Token::NotNeeded, "", 0.0, 0);
    assert!(open.status() == 200 && open.known.is_none());
}

#[test]
fn requests_without_a_good_token_count_against_the_address_alone() {
    let mut admission = admission(vec![policy("ip", By::Ip, 3), policy("sub", By::Subject, 2)]);
    let good = token("a", "t");
    assert_eq!(401, ask(&mut admission, Err(Reason::MissingToken), "10.0.0.1", 0).status());
    assert_eq!(401, ask(&mut admission, Ok("a.b.c"), "10.0.0.1", 0).status());
    let last = ask(&mut admission, Ok(&good), "::ffff:10.0.0.1", 0);
    assert_eq!((200, 0), (last.status(), last.quota.unwrap().remaining));
    let refused = ask(&mut admission, Ok(&good), "10.0.0.1", 1);
    assert_eq!((429, 0, SECOND - 1), {
        let quota = refused.quota.unwrap();
        (refused.status(), quota.policy, quota.reset_ns)
    });
    // Another address: the subject has used one of its two.
    assert_eq!(200, ask(&mut admission, Ok(&good), "10.0.0.2", 2).status());
    assert_eq!(429, ask(&mut admission, Ok(&good), "10.0.0.2", 2).status());
}

#[test]
fn a_refusal_charges_nothing() {
    let mut admission = admission(vec![policy("ip", By::Ip, 2), policy("sub", By::Subject, 1)]);
    let good = token("a", "t");
    assert_eq!(200, ask(&mut admission, Ok(&good), "10.0.0.1", 0).status());
    for _ in 0..5 {
        assert_eq!(429, ask(&mut admission, Ok(&good), "10.0.0.1", 0).status());
    }
    assert_eq!(200, ask(&mut admission, Ok(&token("b", "t")), "10.0.0.1", 0).status());
}

#[test]
fn the_same_name_in_two_tenants_is_two_subjects() {
    let mut admission = admission(vec![policy("sub", By::Subject, 1)]);
    assert_eq!(200, ask(&mut admission, Ok(&token("a", "t")), "", 0).status());
    assert_eq!(200, ask(&mut admission, Ok(&token("a", "u")), "", 0).status());
    assert_eq!(429, ask(&mut admission, Ok(&token("a", "t")), "", 0).status());
}

#[test]
fn a_shadow_policy_reports_and_never_refuses() {
    let shadow = Policy { shadow: true, ..policy("shadow", By::Ip, 1) };
    let mut admission = admission(vec![shadow, policy("ip", By::Ip, 5)]);
    assert!(admission.admit(Token::NotNeeded, "", 0.0, 0).shadow.is_empty());
    let second = admission.admit(Token::NotNeeded, "", 0.0, 0);
    assert_eq!((200, vec![0], 1), (second.status(), second.shadow, second.quota.unwrap().policy));
}

#[test]
fn the_longest_refusal_is_reported() {
    let long = Policy { window_ms: 5_000, ..policy("long", By::Ip, 1) };
    let mut admission = admission(vec![policy("short", By::Ip, 1), long, policy("wide", By::Ip, 9)]);
    admission.admit(Token::NotNeeded, "", 0.0, 0);
    let quota = admission.admit(Token::NotNeeded, "", 0.0, 0).quota.unwrap();
    assert_eq!((1, 5 * SECOND), (quota.policy, quota.reset_ns));
}

#[test]
fn unusable_policies_are_refused() {
    let bad = [
        vec![policy("", By::Ip, 1)],
        vec![policy("a", By::Ip, 1), policy("a", By::Subject, 1)],
        vec![Policy { cost: 2, ..policy("a", By::Ip, 1) }],
        vec![Policy { cost: 0, ..policy("a", By::Ip, 1) }],
        vec![policy("a", By::Ip, 0)],
    ];
    for policies in bad {
        assert!(built(policies, vec![]).is_err());
    }
    for toll in [Toll { policy: 1, cost: 1 }, Toll { policy: 0, cost: 0 }, Toll { policy: 0, cost: 2 }] {
        assert!(built(vec![policy("a", By::Ip, 3)], vec![vec![toll]]).is_err());
    }
}

#[test]
fn a_class_passes_its_own_windows_at_its_own_cost() {
    let policies = vec![Policy { cost: 3, ..policy("dear", By::Ip, 3) }, policy("key", By::ApiKey, 1)];
    let tolls = vec![vec![Toll { policy: 0, cost: 3 }], vec![Toll { policy: 0, cost: 1 }, Toll { policy: 1, cost: 1 }]];
    let mut gate = built(policies, tolls).unwrap();
    let Gate { core, revocations } = &mut gate;
    let mut pass = |class, api_key| {
        let ask =
            Ask { class, token: Token::NotNeeded, client: "10.0.0.1", api_key, revocations, now_s: 1.0, now_ns: 0 };
        core.admit(&ask, None, |_| ()).status()
    };
    assert_eq!(200, pass(1, None));
    assert_eq!(429, pass(0, None));
    assert_eq!([200, 429], [pass(1, Some(&b"k"[..])), pass(1, Some(b"k"))]);
    assert_eq!(200, pass(1, Some(b"other")));
    // A class that nobody drew up passes nothing.
    assert_eq!(200, pass(7, None));
}

#[test]
fn a_token_is_verified_once_and_forgotten_with_its_keys() {
    let mut gate = admission(vec![]);
    let good = token("a", "t");
    for _ in 0..3 {
        assert_eq!(200, ask(&mut gate, Ok(&good), "", 0).status());
    }
    assert_eq!((2, 1), (gate.core.tokens.hits, gate.core.tokens.misses));
    let other = KeySet::parse(br#"{"keys":[]}"#).unwrap();
    gate.core.tokens.replace_keys(Arc::new(TokenVerifier::new(other, Expected::default()).unwrap()));
    assert_eq!(Some(Reason::UnknownKey), ask(&mut gate, Ok(&good), "", 0).refusal);
    assert_eq!(1, gate.core.tokens.unknown_keys);
}

#[test]
fn a_revocation_holds_against_remembered_tokens_too() {
    let mut gate = admission(vec![]);
    let (good, other) = (token("a", "t"), token("b", "t"));
    assert_eq!(200, ask(&mut gate, Ok(&good), "", 0).status());
    gate.revocations.apply(Revocation {
        kind: Kind::Subject,
        value: "a".into(),
        tenant: "t".into(),
        issued_before_s: None,
        expires_at_s: None,
    });
    for _ in 0..2 {
        assert_eq!(Some(Reason::Revoked), ask(&mut gate, Ok(&good), "", 0).refusal);
    }
    assert_eq!(200, ask(&mut gate, Ok(&other), "", 0).status());
    gate.revocations.remove(Kind::Subject, "a", "t");
    assert_eq!(200, ask(&mut gate, Ok(&good), "", 0).status());
}

#[test]
fn a_strict_lease_is_waited_for() {
    let mut gate = admission(vec![policy("few", By::Ip, 3)]);
    let fleet = lease::Policy { name: "few".into(), limit: 3, window_ms: 1_000, mode: lease::Mode::Strict };
    let mut book = lease::LeaseBook::new(vec![fleet], 1 << 20, 1, (5, 6), 0).unwrap();
    let Gate { core, revocations } = &mut gate;
    let ask = Ask {
        class: 0,
        token: Token::NotNeeded,
        client: "10.0.0.1",
        api_key: None,
        revocations,
        now_s: 1.0,
        now_ns: 1 << 40,
    };
    let waiting = core.admit(&ask, Some(&mut book), |_| ()).refusal;
    assert!(matches!(waiting, Some(Reason::LeaseAwaited | Reason::LeaseUnavailable)), "{waiting:?}");
}

/// Before how many more operations on shared words something happens, and what.
type Between = (u32, Box<dyn FnOnce()>);

thread_local! {
    static BETWEEN: RefCell<Option<Between>> = const { RefCell::new(None) };
}

/// A shared word; before one operation on it something else happens.
#[derive(Default)]
struct Interrupted(AtomicU64);

fn interrupt() {
    let due = BETWEEN.with_borrow_mut(|between| match between {
        Some((0, _)) => between.take(),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    });
    if let Some((_, happens)) = due {
        happens();
    }
}

impl Word for Interrupted {
    fn load(&self) -> u64 {
        interrupt();
        self.0.load(SeqCst)
    }
    fn swap_if(&self, seen: u64, new: u64) -> bool {
        interrupt();
        self.0.compare_exchange(seen, new, SeqCst, SeqCst).is_ok()
    }
    fn raise(&self, value: u64) {
        interrupt();
        self.0.fetch_max(value, SeqCst);
    }
}

/// What several workers share.
#[derive(Clone)]
struct Shared(Rc<Vec<Interrupted>>);

impl Memory for Shared {
    type Word = Interrupted;
    fn words(&self) -> &[Interrupted] {
        &self.0
    }
}

/// Another worker's request comes before any one operation of this one's: each is told what is left after it.
#[test]
fn what_is_left_is_told_by_one_count() {
    let policies = || vec![policy("wide", By::Ip, 100), policy("ip", By::Ip, 70), policy("sub", By::Subject, 80)];
    let tolls = || vec![(0..3).map(|policy| Toll { policy, cost: 1 }).collect()];
    let bytes = token("a", "t");
    let count = move |gate: &mut Gate<Shared>| {
        let decision = gate.admit(Token::Presented(Ok(bytes.as_bytes())), "10.0.0.1", 1_000.0, SECOND);
        let quota = decision.quota.unwrap();
        (decision.status(), quota.policy, quota.remaining, quota.reset_ns)
    };
    for before in 0.. {
        let mut regions = Vec::new();
        let region = |rate: Rate| {
            let words = (0..rate.words(1 << 14)?).map(|_| Interrupted::default()).collect();
            regions.push(Shared(Rc::new(words)));
            Ok(regions[regions.len() - 1].clone())
        };
        let mut one = over(policies(), tolls(), region).unwrap();
        let mut regions = regions.into_iter();
        let mut other = over(policies(), tolls(), |_| regions.next().ok_or(Unusable("memory"))).unwrap();
        let (first, second) = (count(&mut one), count(&mut other));
        assert_eq!([(200, 1, 69, first.3), (200, 1, 68, first.3)], [first, second]);

        let told = Rc::new(RefCell::new(Vec::new()));
        let (heard, counted) = (Rc::clone(&told), count.clone());
        let happens = move || heard.borrow_mut().push(counted(&mut other));
        BETWEEN.set(Some((before, Box::new(happens))));
        let own = count(&mut one);
        told.borrow_mut().push(own);
        if BETWEEN.take().is_some() {
            assert!(before > 10, "only {before} operations");
            return;
        }
        let mut both = told.borrow().clone();
        both.sort_unstable();
        assert_eq!([(200, 1, 66, first.3), (200, 1, 67, first.3)], both[..], "before operation {before}");
    }
}
