//! Admission: one decision per request, out of its head, its token and every window that applies.
//!
//! The order, and why:
//! 1. windows by address (or API key) are **checked** first: a flooding address costs no signature;
//! 2. the token is looked at, when the route needs one ([`tokens`]: remembered, or verified);
//! 3. windows by subject and tenant are checked, so only for a verified principal;
//! 4. only when all admit are all **charged**: a refusal never eats another window's quota.
//!
//! A request without an acceptable token is charged to the open windows alone, and refused. A shadow policy is evaluated and
//! counted like any other but never refuses. Between check and charge another worker may have taken the last units of a
//! window that all share: then what was charged is given back and the request is decided anew. The caller passes both clocks
//! in: seconds since 1970 for tokens, monotonic nanoseconds for windows.
//!
//! Where several hosts share the limits, every window is a lease of the fleet's in place of one of this host's; the order is
//! the same. A strict lease may have to be waited for: then the request is asked about again.
//!
//! [`path`] and [`head`] read what the request is, [`client`] whose it is, [`policy`] what it passes. What stays open after a
//! request was admitted is in the [`roster`], so that it can be judged again.

pub mod client;
pub mod credentials;
pub mod head;
pub mod path;
pub mod policy;
pub mod roster;
pub mod tokens;

use std::sync::Arc;

use crate::error::{Reason, Unusable};
use crate::json::Json;
use crate::jwt::TokenVerifier;
use crate::jwt::claims::Claims;
use crate::limit::lease::{self, LeaseBook, Verdict};
use crate::limit::{Check, Identity, Memory, Rate, SlidingWindow};
use policy::Classes;
pub use policy::{By, Policy, Toll};
pub use tokens::{InForce, Known, Tokens};

/// Races with other workers that are decided anew; more in a row mean that the window is used up in all but name.
const RETRIES: usize = 4;

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
    /// `sid`
    pub session: Option<String>,
    /// `iat` in whole seconds, rounded down
    pub issued_at: Option<i64>,
    /// `exp` in whole seconds, rounded down
    pub expires_at: i64,
    /// `kid` of the key the token stood with
    pub key_id: Option<String>,
}

impl Principal {
    /// The principal of claims that have `sub` and `exp`, verified by a key of this name.
    #[must_use]
    pub fn of(claims: &Claims<'_>, key_id: Option<&str>) -> Option<Self> {
        let text = |name| claims.get(name).and_then(Json::as_str).map(str::to_owned);
        let seconds = |name| match claims.get(name) {
            Some(Json::Int(seconds)) => Some(*seconds),
            Some(Json::Float(seconds)) => Some(seconds.floor() as i64),
            _ => None,
        };
        let roles = match claims.get("roles") {
            Some(Json::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        Some(Self {
            subject: text("sub")?,
            tenant: text("tenant"),
            roles,
            token_id: text("jti"),
            session: text("sid"),
            issued_at: seconds("iat"),
            expires_at: seconds("exp")?,
            key_id: key_id.map(str::to_owned),
        })
    }
}

/// What one window said; for `RateLimit` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Index of the policy.
    pub policy: usize,
    /// Units left.
    pub remaining: u32,
    /// Nanoseconds until quota grows, or until this request would fit when it was refused.
    pub reset_ns: u64,
}

/// What the request brings to prove who it is.
#[derive(Clone, Copy, Debug)]
pub enum Token<'a> {
    /// The route needs none; whatever was sent is not looked at.
    NotNeeded,
    /// The token found, or why there is none.
    Presented(Result<&'a [u8], Reason>),
}

/// One request, as far as admission cares.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// What it is: index of its class.
    pub class: usize,
    /// What it proves.
    pub token: Token<'a>,
    /// The client's address.
    pub client: &'a str,
    /// Its `X-API-Key`.
    pub api_key: Option<&'a [u8]>,
    /// What is in force against tokens.
    pub revocations: &'a dyn InForce,
    /// Seconds since 1970.
    pub now_s: f64,
    /// Monotonic nanoseconds.
    pub now_ns: u64,
}

/// The answer to one request.
#[derive(Debug)]
pub struct Decision<P> {
    /// Why it was refused; none when admitted.
    pub refusal: Option<Reason>,
    /// Who asks, when a token was needed and acceptable.
    pub known: Option<Arc<Known<P>>>,
    /// The tightest window that applied, or the one that refuses the longest.
    pub quota: Option<Quota>,
    /// Shadow policies that would have refused.
    pub shadow: Vec<usize>,
}

impl<P> Default for Decision<P> {
    fn default() -> Self {
        Self { refusal: None, known: None, quota: None, shadow: Vec::new() }
    }
}

impl<P> Decision<P> {
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

/// What the windows of the request at hand said when they admitted, here or in the fleet; kept to save an allocation per
/// request. Apart, so that neither is copied to look like the other.
#[derive(Debug, Default)]
struct Checks {
    /// With the policy.
    windows: Vec<(usize, Check)>,
    leases: Vec<lease::Check>,
}

impl Checks {
    fn clear(&mut self) {
        self.windows.clear();
        self.leases.clear();
    }
}

/// Tokens, policies and windows of one gateway. `M` is where the windows lie, `P` what the shell makes of a principal.
#[derive(Debug)]
pub struct Admission<M, P> {
    /// Who is who.
    pub tokens: Tokens<P>,
    policies: Vec<Policy>,
    windows: Vec<SlidingWindow<M>>,
    classes: Classes,
    seed: (u64, u64),
    addresses: client::Addresses,
    checks: Checks,
    key: Vec<u8>,
}

/// Room for what is remembered of tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenRoom {
    /// Bytes of verified tokens.
    pub verified: usize,
    /// Bytes of refused ones.
    pub refused: usize,
}

impl<M: Memory, P> Admission<M, P> {
    /// `memory` gives each policy the words of its window; `classes` says what each class passes. `seed` must be random, and
    /// the same for all who share the memory. The verifier must require `sub` and `exp`, or every token is refused.
    pub fn new(
        verifier: Arc<TokenVerifier>,
        policies: Vec<Policy>,
        classes: Vec<Vec<Toll>>,
        room: TokenRoom,
        mut memory: impl FnMut(Rate) -> Result<M, Unusable>,
        seed: (u64, u64),
    ) -> Result<Self, Unusable> {
        let mut windows = Vec::with_capacity(policies.len());
        for (index, policy) in policies.iter().enumerate() {
            policy.check(&policies[..index])?;
            let rate = policy.rate();
            windows.push(SlidingWindow::new(rate, memory(rate)?, seed)?);
        }
        let classes = Classes::new(classes, &policies)?;
        let tokens = Tokens::new(verifier, room.verified, room.refused, seed)?;
        Ok(Self {
            tokens,
            policies,
            windows,
            classes,
            seed,
            addresses: client::Addresses::new(seed),
            checks: Checks::default(),
            key: Vec::new(),
        })
    }

    /// The policy a [`Quota`] speaks of.
    #[must_use]
    pub fn policy(&self, index: usize) -> &Policy {
        &self.policies[index]
    }

    /// Decides about one request. `shell` makes what is kept of a principal that was not known before.
    pub fn admit(
        &mut self,
        ask: &Ask<'_>,
        mut leases: Option<&mut LeaseBook>,
        mut shell: impl FnMut(&Principal) -> P,
    ) -> Decision<P> {
        self.settle_races(&mut leases, |admission, leases| {
            let mut decision = Decision::default();
            if admission.check_open(ask, leases, &mut decision)
                && let Token::Presented(token) = ask.token
            {
                match token.and_then(|token| admission.who(token, ask.now_s, ask.revocations, &mut shell)) {
                    Ok(known) => {
                        if admission.check_closed(ask, leases, &known, &mut decision) {
                            decision.known = Some(known);
                        }
                    }
                    Err(reason) => decision.refusal = Some(reason),
                }
            }
            decision
        })
    }

    /// Decides about what became known of a request later: the command in its body. `known` is that of its first decision.
    pub fn admit_later(
        &mut self,
        ask: &Ask<'_>,
        mut leases: Option<&mut LeaseBook>,
        known: Option<&Known<P>>,
    ) -> Decision<P> {
        self.settle_races(&mut leases, |admission, leases| {
            let mut decision = Decision::default();
            if admission.check_open(ask, leases, &mut decision)
                && let Some(known) = known
            {
                admission.check_closed(ask, leases, known, &mut decision);
            }
            decision
        })
    }

    /// Decides, and charges what was decided; anew when another worker was faster in between.
    fn settle_races(
        &mut self,
        leases: &mut Option<&mut LeaseBook>,
        mut decide: impl FnMut(&mut Self, &mut Option<&mut LeaseBook>) -> Decision<P>,
    ) -> Decision<P> {
        let mut retries = RETRIES;
        loop {
            self.checks.clear();
            let mut decision = decide(self, leases);
            if retries == 0 {
                // The last word of the windows that were lost to others every time: as good as used up for this request.
                self.checks.clear();
                decision.refusal = Some(Reason::RateLimited);
                decision.known = None;
                return decision;
            }
            if self.charge(leases, &mut decision) {
                return decision;
            }
            retries -= 1;
        }
    }

    /// Charges every window that admitted; false, and nothing charged, when one of them has no room any more. Leases are
    /// this process' own, so that nobody is faster. What is told of a window is what others left of it in between.
    fn charge(&mut self, leases: &mut Option<&mut LeaseBook>, decision: &mut Decision<P>) -> bool {
        let Self { checks, windows, policies, .. } = self;
        for at in 0..checks.windows.len() {
            let (policy, check) = &mut checks.windows[at];
            let (policy, seen, shadow) = (*policy, check.remaining, policies[*policy].shadow);
            match (windows[policy].take(check), shadow) {
                (true, false) if check.remaining != seen => follow(&mut decision.quota, policy, check),
                (true, _) => {}
                (false, true) => decision.shadow.push(policy),
                (false, false) => {
                    Self::give_back(&checks.windows[..at], windows);
                    return false;
                }
            }
        }
        if let Some(book) = leases {
            checks.leases.iter().for_each(|check| book.charge(check));
        }
        true
    }

    fn give_back(charged: &[(usize, Check)], windows: &[SlidingWindow<M>]) {
        for (policy, check) in charged.iter().filter(|(_, check)| check.admitted) {
            windows[*policy].give_back(check);
        }
    }

    /// Who a token speaks for; no window is asked.
    pub fn who(
        &mut self,
        token: &[u8],
        now_s: f64,
        revocations: &dyn InForce,
        mut shell: impl FnMut(&Principal) -> P,
    ) -> Result<Arc<Known<P>>, Reason> {
        let seed = self.seed;
        self.tokens.who(token, now_s, revocations, |principal| {
            let (key, tenant_len) = key_of(&principal);
            let (subject, tenant) = (Identity::new(seed, &key), Identity::new(seed, &key[..tenant_len]));
            Known { shell: shell(&principal), principal: Arc::new(principal), subject, tenant, key, tenant_len }
        })
    }

    /// The windows that need no principal; false when one refuses.
    fn check_open(&mut self, ask: &Ask<'_>, leases: &mut Option<&mut LeaseBook>, decision: &mut Decision<P>) -> bool {
        let Self { policies, windows, classes, checks, key, seed, addresses, .. } = self;
        let tolls = classes.of(ask.class).0;
        if tolls.is_empty() {
            return true;
        }
        if leases.is_some() {
            // The fleet knows it by its key.
            client::write_key(ask.client, key);
        }
        let mut address = None;
        for toll in tolls {
            let policy = &policies[toll.policy];
            let by_key = match (policy.by, ask.api_key) {
                (By::ApiKey, None) => continue,
                (By::ApiKey, Some(given)) => Some(given),
                _ => None,
            };
            let identity = match by_key {
                Some(given) => Identity::new(*seed, given),
                None => *address.get_or_insert_with(|| addresses.identity(ask.client, *seed, key)),
            };
            let window = &windows[toll.policy];
            decision.pass(toll, policy.shadow, (window, identity), (leases, by_key.unwrap_or(key)), ask.now_ns, checks);
        }
        settled(decision, checks)
    }

    /// The windows of a principal; false when one refuses.
    fn check_closed(
        &mut self,
        ask: &Ask<'_>,
        leases: &mut Option<&mut LeaseBook>,
        known: &Known<P>,
        decision: &mut Decision<P>,
    ) -> bool {
        let Self { policies, windows, classes, checks, .. } = self;
        for toll in classes.of(ask.class).1 {
            let policy = &policies[toll.policy];
            let window = &windows[toll.policy];
            let (identity, key) = match policy.by {
                By::Tenant => (known.tenant, &known.key[..known.tenant_len]),
                _ => (known.subject, &known.key[..]),
            };
            decision.pass(toll, policy.shadow, (window, identity), (leases, key), ask.now_ns, checks);
        }
        settled(decision, checks)
    }
}

/// A window that was judged anew: what is told of it is what is left now.
#[cold]
fn follow(told: &mut Option<Quota>, policy: usize, check: &Check) {
    if let Some(quota) = told
        && (quota.policy == policy || check.remaining < quota.remaining)
    {
        let (remaining, reset_ns) = (check.remaining, check.reset_ns);
        *quota = Quota { policy, remaining, reset_ns };
    }
}

/// Whether the request may go on. A refusal by a window charges nothing at all.
fn settled<P>(decision: &Decision<P>, checks: &mut Checks) -> bool {
    if decision.refusal.is_some() {
        checks.clear();
    }
    decision.refusal.is_none()
}

impl<P> Decision<P> {
    /// Asks one window, this host's or the fleet's, and takes in what it says.
    #[expect(clippy::inline_always, reason = "its many arguments are not worth their way through memory")]
    #[inline(always)]
    fn pass<M: Memory>(
        &mut self,
        toll: &Toll,
        shadow: bool,
        (window, identity): (&SlidingWindow<M>, Identity),
        (leases, key): (&mut Option<&mut LeaseBook>, &[u8]),
        now_ns: u64,
        checks: &mut Checks,
    ) {
        if let Some(book) = leases {
            let check = book.check(toll.policy, key, now_ns, toll.cost);
            let refusal = match check.verdict {
                Verdict::Admitted => None,
                Verdict::Refused => Some(Reason::RateLimited),
                Verdict::Unknown => Some(Reason::LeaseAwaited),
                Verdict::Unavailable => Some(Reason::LeaseUnavailable),
            };
            let (remaining, reset_ns) = (check.remaining, check.reset_ns);
            self.take(Quota { policy: toll.policy, remaining, reset_ns }, shadow, refusal);
            if refusal.is_none() {
                checks.leases.push(check);
            }
            return;
        }
        // The tightest of those that admit is told of.
        let mute = shadow || self.refusal.is_some();
        let tell_below = self.quota.map_or(u64::MAX, |quota| u64::from(quota.remaining));
        window.look(identity, now_ns, toll.cost, if mute { 0 } else { tell_below }, |check| {
            let refusal = (!check.admitted).then_some(Reason::RateLimited);
            let (remaining, reset_ns) = (check.remaining, check.reset_ns);
            self.take(Quota { policy: toll.policy, remaining, reset_ns }, shadow, refusal);
            if refusal.is_none() {
                checks.windows.push((toll.policy, check));
            }
        });
    }

    fn take(&mut self, quota: Quota, shadow: bool, refusal: Option<Reason>) {
        let refused = self.refusal.is_some();
        match refusal {
            None => {
                let tightest = self.quota.is_none_or(|known| quota.remaining < known.remaining);
                if !shadow && !refused && tightest {
                    self.quota = Some(quota);
                }
            }
            Some(_) if shadow => self.shadow.push(quota.policy),
            Some(reason) => {
                let longest = self.quota.is_none_or(|known| quota.reset_ns > known.reset_ns);
                if !refused || longest {
                    self.quota = Some(quota);
                }
                // A window that is used up is the better answer than one that may have to be waited for.
                if self.refusal != Some(Reason::RateLimited) {
                    self.refusal = Some(reason);
                }
            }
        }
    }
}

/// What a principal is counted under, and how much of it its tenant is. Subjects of different tenants never share a window;
/// neither part can contain NUL.
fn key_of(principal: &Principal) -> (Box<[u8]>, usize) {
    let tenant = principal.tenant.as_deref().unwrap_or_default();
    (format!("{tenant}\0{}", principal.subject).into_bytes().into(), tenant.len())
}
