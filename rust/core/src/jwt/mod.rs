//! JSON Web Tokens, read literally (RFC 7515, 7519, 8725).
//!
//! The path of a token, cheapest refusal first: size ([`jws`]) → three parts → base64url ([`base64url`]) → header
//! ([`json`](crate::json)) → key by `kid` and the algorithm bound to it ([`keys`], read by `jwk` and `pem`) → signature
//! → `typ` → claims ([`claims`]).
//! Nothing of the payload is read before the signature stands. [`cache`] remembers what was verified.

mod algorithm;
pub mod base64url;
pub mod cache;
pub mod claims;
mod jwk;
pub mod jws;
pub mod keys;
mod pem;
pub mod revocation;

use crate::error::{Reason, Unusable};
use claims::{Claims, Expected};
use jws::Scratch;
use keys::KeySet;

/// Realms in one verifier.
pub const MAX_REALMS: usize = 16;

/// Keys together with what the tokens they sign must say.
///
/// A verifier has one realm or several, such as our own issuer and a foreign one. The key decides the realm, so no issuer
/// can speak for another; a `kid` is unique over all realms.
#[derive(Debug)]
pub struct TokenVerifier {
    keys: KeySet,
    /// The realm of each key.
    realm_of: Vec<usize>,
    realms: Vec<Expected>,
}

/// An acceptable token.
#[derive(Debug)]
pub struct Accepted<'k, 'b> {
    /// What it says.
    pub claims: Claims<'b>,
    /// The `kid` of the key it stood with, whether the token names it or not.
    pub kid: Option<&'k str>,
    /// When it ends: `exp` and the leeway of its realm.
    pub ends_at_s: Option<f64>,
}

impl TokenVerifier {
    /// Binds `keys` to `expected`; refuses an expectation that could not be meant.
    pub fn new(keys: KeySet, expected: Expected) -> Result<Self, Unusable> {
        Self::of(vec![(keys, expected)])
    }

    /// Several issuers at once, each with its keys.
    pub fn of(realms: Vec<(KeySet, Expected)>) -> Result<Self, Unusable> {
        if realms.is_empty() || realms.len() > MAX_REALMS {
            return Err(Unusable("a verifier has between 1 and 16 realms"));
        }
        let mut made = Self { keys: KeySet::default(), realm_of: Vec::new(), realms: Vec::new() };
        for (realm, (keys, expected)) in realms.into_iter().enumerate() {
            expected.check()?;
            made.keys.append(keys)?;
            made.realm_of.resize(made.keys.len(), realm);
            made.realms.push(expected);
        }
        Ok(made)
    }

    /// The claims of an acceptable token at `now_s` (seconds since 1970).
    pub fn verify(&self, token: &[u8], now_s: f64) -> Result<Claims<'static>, Reason> {
        self.verify_full(token, now_s, &mut Scratch::default()).map(|accepted| accepted.claims.into_owned())
    }

    /// The same with everything a caller may want to know, without copying.
    pub fn verify_full<'k, 'b>(
        &'k self,
        token: &[u8],
        now_s: f64,
        scratch: &'b mut Scratch,
    ) -> Result<Accepted<'k, 'b>, Reason> {
        let jws = jws::verify(token, &self.keys, scratch)?;
        let expected = &self.realms[self.realm_of[jws.place]];
        expected.typ_matches(jws.typ)?;
        let (claims, ends_at_s) = expected.read(jws.payload, now_s)?;
        Ok(Accepted { claims, kid: jws.key.kid(), ends_at_s })
    }

    /// How many keys are usable.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }
}
