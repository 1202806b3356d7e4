//! Admission: one decision per request, out of the token and every window that applies.
//!
//! The order, and why:
//! 1. windows by client address are **checked** first: a flooding address costs no signature;
//! 2. the token is verified, when the route needs one;
//! 3. windows by subject are checked, so only for a verified subject;
//! 4. only when all admit are all **charged**: a refusal never eats another window's quota.
//!
//! A request without an acceptable token is charged to the address windows alone, and refused with 400 or 401. A shadow
//! policy is evaluated and counted like any other but never refuses. The caller passes both clocks in: seconds since 1970
//! for tokens, monotonic nanoseconds for windows.

pub mod client;
pub mod credentials;

use crate::error::{Reason, Unusable};
use crate::jwt::TokenVerifier;
use crate::jwt::claims::Claims;
use crate::jwt::json::Json;
use crate::limit::{Check, Rate, SlidingWindow};

/// Who a verified token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// `sub`
    pub subject: String,
    /// `tenant`
    pub tenant: Option<String>,
    /// `roles`, in the token's order
    pub roles: Vec<String>,
    /// `jti`
    pub token_id: Option<String>,
    /// `exp` in whole seconds, rounded down
    pub expires_at: i64,
}

impl Principal {
    /// The principal of verified claims that have `sub` and `exp`.
    #[must_use]
    pub fn of(claims: Claims) -> Option<Self> {
        let (mut subject, mut tenant, mut roles, mut token_id, mut expires_at) = (None, None, Vec::new(), None, None);
        for (name, value) in claims.0 {
            match (name.as_str(), value) {
                ("sub", Json::Str(text)) => subject = Some(text),
                ("tenant", Json::Str(text)) => tenant = Some(text),
                ("jti", Json::Str(text)) => token_id = Some(text),
                ("roles", Json::Array(items)) => {
                    roles = items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
                }
                ("exp", Json::Int(seconds)) => expires_at = Some(seconds),
                ("exp", Json::Float(seconds)) => expires_at = Some(seconds.floor() as i64),
                _ => {}
            }
        }
        Some(Self { subject: subject?, tenant, roles, token_id, expires_at: expires_at? })
    }
}

/// Whose requests a policy counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The client address (IPv6 by /64).
    Ip,
    /// The verified subject within its tenant.
    Subject,
}

/// A rate-limit policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name in headers, logs and metrics.
    pub name: String,
    /// Whose requests are counted together.
    pub by: By,
    /// Units per window.
    pub limit: u32,
    /// Length of the window.
    pub window_ms: u64,
    /// Units one request costs.
    pub cost: u32,
    /// Evaluated and reported, never refusing.
    pub shadow: bool,
}

/// What one window said; for `RateLimit` headers.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Index of the policy.
    pub policy: usize,
    /// Units left.
    pub remaining: u32,
    /// Nanoseconds until quota grows, or until this request would fit when it was refused.
    pub reset_ns: u64,
}

/// The answer to one request.
#[derive(Debug)]
pub struct Decision {
    /// Why it was refused; none when admitted.
    pub refusal: Option<Reason>,
    /// Who asks, when a token was needed and acceptable.
    pub principal: Option<Principal>,
    /// The tightest window that applied, or the one that refuses the longest.
    pub quota: Option<Quota>,
    /// Shadow policies that would have refused.
    pub shadow: Vec<usize>,
}

impl Decision {
    /// The HTTP status that goes with it; 200 stands for "go on".
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.refusal {
            None => 200,
            Some(Reason::InvalidRequest) => 400,
            Some(Reason::RateLimited) => 429,
            Some(_) => 401,
        }
    }
}

/// What the request brings to prove who it is.
#[derive(Clone, Copy, Debug)]
pub enum Token<'a> {
    /// The route needs none; whatever was sent is not looked at.
    NotNeeded,
    /// The token found, or why there is none.
    Presented(Result<&'a [u8], Reason>),
}

#[derive(Debug)]
struct Lane {
    policy: Policy,
    window: SlidingWindow,
}

/// Key set, expectations and windows of one gateway.
#[derive(Debug)]
pub struct Admission {
    verifier: TokenVerifier,
    lanes: Vec<Lane>,
    /// Checks of the request at hand, by lane; kept to save an allocation per request.
    checks: Vec<(usize, Check)>,
    key: Vec<u8>,
}

impl Admission {
    /// `max_bytes` is shared equally by the policies' windows; `seed` must be random. The verifier must require `sub` and
    /// `exp`, or every token is refused.
    pub fn new(
        verifier: TokenVerifier,
        policies: Vec<Policy>,
        max_bytes: usize,
        seed: (u64, u64),
    ) -> Result<Self, Unusable> {
        let share = max_bytes / policies.len().max(1);
        let mut lanes: Vec<Lane> = Vec::with_capacity(policies.len());
        for policy in policies {
            if policy.name.is_empty() || lanes.iter().any(|lane| lane.policy.name == policy.name) {
                return Err(Unusable("policies have unique names that are not empty"));
            }
            if policy.cost == 0 || policy.cost > policy.limit {
                return Err(Unusable("a policy's cost is between 1 and its limit"));
            }
            let rate = Rate { limit: policy.limit, window_ms: policy.window_ms, max_cost: policy.cost };
            let window = SlidingWindow::on_heap(rate, share, seed)?;
            lanes.push(Lane { policy, window });
        }
        Ok(Self { verifier, lanes, checks: Vec::new(), key: Vec::new() })
    }

    /// The policy a [`Quota`] speaks of.
    #[must_use]
    pub fn policy(&self, index: usize) -> &Policy {
        &self.lanes[index].policy
    }

    /// Decides about one request.
    pub fn admit(&mut self, token: Token<'_>, client_ip: &str, now_s: f64, now_ns: u64) -> Decision {
        let mut decision = Decision { refusal: None, principal: None, quota: None, shadow: Vec::new() };
        self.checks.clear();
        client::write_key(client_ip, &mut self.key);
        if !self.check(By::Ip, now_ns, &mut decision) {
            return decision;
        }
        if let Token::Presented(token) = token {
            let verified = token.and_then(|token| self.verifier.verify(token, now_s));
            match verified.and_then(|claims| Principal::of(claims).ok_or(Reason::MissingClaim)) {
                Ok(principal) => {
                    write_subject_key(&principal, &mut self.key);
                    if !self.check(By::Subject, now_ns, &mut decision) {
                        return decision;
                    }
                    decision.principal = Some(principal);
                }
                Err(reason) => decision.refusal = Some(reason),
            }
        }
        for (lane, check) in self.checks.drain(..) {
            // Nobody else charges between check and charge here: it cannot fail.
            let _ = self.lanes[lane].window.charge(&check);
        }
        decision
    }

    /// Checks every window of a kind with the key at hand; false when one refuses.
    fn check(&mut self, by: By, now_ns: u64, decision: &mut Decision) -> bool {
        for (index, Lane { policy, window }) in self.lanes.iter().enumerate() {
            if policy.by != by {
                continue;
            }
            let check = window.check(window.identify(&self.key), now_ns, policy.cost);
            let quota = Quota { policy: index, remaining: check.remaining, reset_ns: check.reset_ns };
            let refused = decision.refusal == Some(Reason::RateLimited);
            if check.admitted {
                self.checks.push((index, check));
                let tightest = decision.quota.is_none_or(|known| check.remaining < known.remaining);
                if !policy.shadow && !refused && tightest {
                    decision.quota = Some(quota);
                }
            } else if policy.shadow {
                decision.shadow.push(index);
            } else {
                let longest = decision.quota.is_none_or(|known| check.reset_ns > known.reset_ns);
                if !refused || longest {
                    decision.quota = Some(quota);
                }
                decision.refusal = Some(Reason::RateLimited);
            }
        }
        decision.refusal.is_none()
    }
}

/// Subjects of different tenants never share a window; neither part can contain NUL.
fn write_subject_key(principal: &Principal, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(principal.tenant.as_deref().unwrap_or_default().as_bytes());
    key.push(0);
    key.extend_from_slice(principal.subject.as_bytes());
}
