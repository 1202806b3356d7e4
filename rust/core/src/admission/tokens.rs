//! From a token to who it speaks for: remembered when it was verified a moment ago, verified when not.
//!
//! Rules:
//! - a remembered token is as good as a verified one: it is forgotten with its end, with the key set it stood with, and
//!   it is held against every revocation that has come since;
//! - what the shell makes of a principal (an object of its language) is made once per token and kept beside it.

use std::sync::Arc;

use super::Principal;
use super::credentials::is_token68;
use crate::error::{Reason, Unusable};
use crate::jwt::TokenVerifier;
use crate::jwt::cache::{Lookup, TokenCache};
use crate::jwt::jws::Scratch;
use crate::jwt::revocation::Revocations;
use crate::limit::Identity;

/// What is in force against tokens: the set itself, or what guards it. Asking for the epoch must be cheap.
pub trait InForce {
    /// Moves with every change; a verdict holds until it has.
    fn epoch(&self) -> u64;
    /// Whether the token of this principal was revoked.
    fn revokes(&self, who: &Principal) -> bool;
}

impl InForce for Revocations {
    fn epoch(&self) -> u64 {
        self.epoch()
    }

    fn revokes(&self, who: &Principal) -> bool {
        !self.is_empty()
            && self.revokes(
                &who.subject,
                who.tenant.as_deref(),
                who.token_id.as_deref(),
                who.session.as_deref(),
                who.key_id.as_deref(),
                who.issued_at,
            )
    }
}

/// A principal whose token stood.
#[derive(Debug)]
pub struct Known<P> {
    /// Who. Apart: of a token that is remembered nearly nobody asks, and what everybody asks then fits two cache lines.
    pub principal: Arc<Principal>,
    /// What the shell made of it.
    pub shell: P,
    pub(super) subject: Identity,
    pub(super) tenant: Identity,
    /// Tenant, NUL, subject: what the two are counted under in the fleet.
    pub(super) key: Box<[u8]>,
    pub(super) tenant_len: usize,
}

/// Bytes of an entry besides its token and its value, roughly: the principal's texts and the shell's object.
const PRINCIPAL_BYTES: usize = 512;

/// Keys and remembered tokens of one gateway.
#[derive(Debug)]
pub struct Tokens<P> {
    verifier: Arc<TokenVerifier>,
    key_epoch: u64,
    cache: TokenCache<Arc<Known<P>>>,
    scratch: Scratch,
    /// Tokens that were answered from memory.
    pub hits: u64,
    /// Tokens that were verified.
    pub misses: u64,
    /// Tokens of a key that is not known: a newer key set may know it.
    pub unknown_keys: u64,
}

impl<P> Tokens<P> {
    pub(super) fn new(
        verifier: Arc<TokenVerifier>,
        max_bytes: usize,
        negative_max_bytes: usize,
        seed: (u64, u64),
    ) -> Result<Self, Unusable> {
        Ok(Self {
            verifier,
            key_epoch: 0,
            cache: TokenCache::new(max_bytes, negative_max_bytes, seed)?,
            scratch: Scratch::default(),
            hits: 0,
            misses: 0,
            unknown_keys: 0,
        })
    }

    /// Puts another key set in the place of the present one; what the old one has verified is forgotten at once.
    pub fn replace_keys(&mut self, verifier: Arc<TokenVerifier>) {
        self.verifier = verifier;
        self.key_epoch += 1;
        self.cache.clear();
    }

    /// How many keys are usable.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.verifier.key_count()
    }

    /// Bytes of remembered tokens, and how many they are.
    #[must_use]
    pub fn remembered(&self) -> (usize, usize) {
        (self.cache.bytes(), self.cache.len())
    }

    /// Who `token` speaks for at `now_s`. `known` makes what is kept of a principal that was not known before.
    pub(super) fn who(
        &mut self,
        token: &[u8],
        now_s: f64,
        revocations: &dyn InForce,
        known: impl FnOnce(Principal) -> Known<P>,
    ) -> Result<Arc<Known<P>>, Reason> {
        // Asked before the verdict: what comes in between makes it be asked anew, never be missed.
        let epoch = revocations.epoch();
        match self.cache.get(token, now_s, self.key_epoch) {
            Lookup::Hit { value, revocation_epoch } => {
                if *revocation_epoch != epoch {
                    if revocations.revokes(&value.principal) {
                        self.cache.remove(token);
                        return Err(Reason::Revoked);
                    }
                    *revocation_epoch = epoch;
                }
                self.hits += 1;
                return Ok(Arc::clone(value));
            }
            Lookup::Refused(reason) => return Err(reason),
            Lookup::Miss => {}
        }
        self.misses += 1;
        if !is_token68(token) {
            return Err(Reason::MalformedCredentials);
        }
        let accepted = match self.verifier.verify_full(token, now_s, &mut self.scratch) {
            Ok(accepted) => accepted,
            Err(reason) => {
                self.unknown_keys += u64::from(reason == Reason::UnknownKey);
                self.cache.refuse(token, reason, now_s, self.key_epoch);
                return Err(reason);
            }
        };
        let principal = Principal::of(&accepted.claims, accepted.kid).ok_or(Reason::MissingClaim)?;
        let ends_at_s = accepted.ends_at_s.ok_or(Reason::MissingClaim)?;
        if revocations.revokes(&principal) {
            return Err(Reason::Revoked);
        }
        let known = Arc::new(known(principal));
        self.cache.insert(token, Arc::clone(&known), ends_at_s, self.key_epoch, epoch, PRINCIPAL_BYTES);
        Ok(known)
    }
}
