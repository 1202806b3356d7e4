//! JSON Web Tokens, read literally (RFC 7515, 7519, 8725).
//!
//! The path of a token, cheapest refusal first: size ([`jws`]) → three parts → base64url ([`base64url`]) → header
//! ([`json`]) → key by `kid` and the algorithm bound to it ([`keys`]) → signature → `typ` → claims ([`claims`]).
//! Nothing of the payload is read before the signature stands.

pub mod base64url;
pub mod claims;
pub mod json;
pub mod jws;
pub mod keys;
pub mod revocation;

use crate::error::{Reason, Unusable};
use claims::{Claims, Expected};
use keys::KeySet;

/// A key set together with what its tokens must say.
#[derive(Debug)]
pub struct TokenVerifier {
    keys: KeySet,
    expected: Expected,
}

impl TokenVerifier {
    /// Binds `keys` to `expected`; refuses an expectation that could not be meant.
    pub fn new(keys: KeySet, expected: Expected) -> Result<Self, Unusable> {
        expected.check()?;
        Ok(Self { keys, expected })
    }

    /// The claims of an acceptable token at `now_s` (seconds since 1970).
    pub fn verify(&self, token: &[u8], now_s: f64) -> Result<Claims, Reason> {
        let jws = jws::verify(token, &self.keys)?;
        self.expected.typ_matches(jws.header.typ.as_deref())?;
        self.expected.read(&jws.payload, now_s)
    }
}
