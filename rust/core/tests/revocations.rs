//! Revocations against their naive twin: a list that is searched from end to end.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use flx_core::jwt::revocation::{DEFAULT_TENANT, Kind, Revocation, Revocations};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Apply(Revocation),
    Remove(Kind, String, String),
    ReplaceAll(Vec<Revocation>),
    Forget(i64),
}

#[derive(Clone, Debug)]
struct Bearer {
    subject: String,
    tenant: Option<String>,
    token_id: Option<String>,
    session: Option<String>,
    key_id: Option<String>,
    issued_at: Option<i64>,
}

/// At most one for each kind, value and tenant; a key is of every tenant.
#[derive(Default)]
struct Twin(Vec<Revocation>);

impl Twin {
    fn apply(&mut self, revocation: Revocation) {
        self.remove(revocation.kind, &revocation.value, &revocation.tenant);
        self.0.push(revocation);
    }

    fn remove(&mut self, kind: Kind, value: &str, tenant: &str) {
        self.0.retain(|it| !(it.kind == kind && it.value == value && (kind == Kind::Key || it.tenant == tenant)));
    }

    fn revokes(&self, bearer: &Bearer) -> bool {
        self.0.iter().any(|it| {
            let named = match it.kind {
                Kind::Token => bearer.token_id.as_ref(),
                Kind::Session => bearer.session.as_ref(),
                Kind::Subject => Some(&bearer.subject),
                Kind::Key => bearer.key_id.as_ref(),
            };
            let tenant = bearer.tenant.as_deref().unwrap_or(DEFAULT_TENANT);
            let in_time = match (bearer.issued_at, it.issued_before_s) {
                (None, _) | (_, None) => true,
                (Some(issued), Some(before)) => issued <= before,
            };
            named == Some(&it.value) && (it.kind == Kind::Key || it.tenant == tenant) && in_time
        })
    }
}

/// Few names, so that they meet.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("ab"), Just("default"), Just("é")].prop_map(str::to_owned)
}

fn tenant() -> impl Strategy<Value = String> {
    prop_oneof![Just("default"), Just("a"), Just("b")].prop_map(str::to_owned)
}

fn kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(Kind::ALL.to_vec())
}

fn revocation() -> impl Strategy<Value = Revocation> {
    let moment = || proptest::option::of(0..8_i64);
    (kind(), name(), tenant(), moment(), moment()).prop_map(|(kind, value, tenant, issued_before_s, expires_at_s)| {
        Revocation { kind, value, tenant, issued_before_s, expires_at_s }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => revocation().prop_map(Step::Apply),
        3 => (kind(), name(), tenant()).prop_map(|(kind, value, tenant)| Step::Remove(kind, value, tenant)),
        1 => proptest::collection::vec(revocation(), 0..6).prop_map(Step::ReplaceAll),
        1 => (0..8_i64).prop_map(Step::Forget),
    ]
}

fn bearer() -> impl Strategy<Value = Bearer> {
    let maybe = || proptest::option::of(name());
    let issued = proptest::option::of(0..8_i64);
    (name(), proptest::option::of(tenant()), maybe(), maybe(), maybe(), issued).prop_map(
        |(subject, tenant, token_id, session, key_id, issued_at)| Bearer {
            subject,
            tenant,
            token_id,
            session,
            key_id,
            issued_at,
        },
    )
}

proptest! {
    #[test]
    fn they_agree_with_the_list(
        steps in proptest::collection::vec((step(), proptest::collection::vec(bearer(), 1..6)), 1..40),
        seed in any::<(u64, u64)>(),
    ) {
        let (mut made, mut twin) = (Revocations::new(seed), Twin::default());
        for (step, bearers) in steps {
            let (epoch, before) = (made.epoch(), bearers.iter().map(|it| twin.revokes(it)).collect::<Vec<_>>());
            match step {
                Step::Apply(it) => {
                    made.apply(it.clone());
                    twin.apply(it);
                }
                Step::Remove(kind, value, tenant) => {
                    made.remove(kind, &value, &tenant);
                    twin.remove(kind, &value, &tenant);
                }
                Step::ReplaceAll(all) => {
                    made.replace_all(all.clone());
                    twin.0.clear();
                    for it in all {
                        twin.apply(it);
                    }
                }
                Step::Forget(now) => {
                    made.forget_expired(now);
                    twin.0.retain(|it| it.expires_at_s.is_none_or(|at| at > now));
                }
            }
            prop_assert_eq!(twin.0.len(), made.len());
            for (it, before) in bearers.iter().zip(before) {
                let said = made.revokes(
                    &it.subject,
                    it.tenant.as_deref(),
                    it.token_id.as_deref(),
                    it.session.as_deref(),
                    it.key_id.as_deref(),
                    it.issued_at,
                );
                prop_assert_eq!(twin.revokes(it), said, "{:?}", it);
                prop_assert!(said == before || made.epoch() != epoch, "a verdict changed and the epoch did not");
            }
        }
    }
}
