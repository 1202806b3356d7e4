//! Admission as the gateway uses it: tokens and windows together.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;

use aws_lc_rs::hmac;
use flx_core::admission::{Admission, By, Decision, Policy, Token};
use flx_core::error::Reason;
use flx_core::jwt::TokenVerifier;
use flx_core::jwt::claims::Expected;
use flx_core::jwt::keys::KeySet;

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

fn admission(policies: Vec<Policy>) -> Admission {
    let keys = KeySet::parse(format!(r#"{{"keys":[{{"kty":"oct","k":"{K}"}}]}}"#).as_bytes()).unwrap();
    let expected = Expected { required: vec!["sub".into(), "exp".into()], ..Expected::default() };
    Admission::new(TokenVerifier::new(keys, expected).unwrap(), policies, 1 << 20, (1, 2)).unwrap()
}

fn ask(admission: &mut Admission, token: Result<&str, Reason>, ip: &str, now_ns: u64) -> Decision {
    admission.admit(Token::Presented(token.map(str::as_bytes)), ip, 1_000.0, now_ns)
}

#[test]
fn an_acceptable_token_becomes_a_principal() {
    let mut admission = admission(vec![]);
    let decision = ask(&mut admission, Ok(&token("a", "t")), "10.0.0.1", 0);
    assert_eq!(200, decision.status());
    let principal = decision.principal.unwrap();
    assert_eq!(("a", Some("t"), 2000), (&*principal.subject, principal.tenant.as_deref(), principal.expires_at));
    assert_eq!((vec!["r".to_owned()], Some("j".to_owned())), (principal.roles, principal.token_id));
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
    assert_eq!((200, None), (open.status(), open.principal));
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
        let keys = KeySet::parse(br#"{"keys":[]}"#).unwrap();
        let verifier = TokenVerifier::new(keys, Expected::default()).unwrap();
        assert!(Admission::new(verifier, policies, 1 << 20, (1, 2)).is_err());
    }
}
