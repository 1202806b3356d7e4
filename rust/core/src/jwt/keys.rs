//! Key sets (RFC 7517): which key may verify which token.
//!
//! Strategy: a set is read once, from a JWK set ([`super::jwk`]) or from PEM or DER ([`super::pem`]), into prepared keys.
//! Rules:
//! - the algorithm belongs to the key; a token's `alg` can only agree with it, never choose it. A key that names none is
//!   bound to the first allowed algorithm that fits it; one whose algorithm is not allowed is left out;
//! - `kid`, `alg`, `use` and `key_ops` are honoured; a key for another use or of a kind not known here is left out, as
//!   RFC 7517 section 5 says, so that one set can serve several verifiers;
//! - a weak or mistaken key (a secret shorter than its hash, a secret that is really a public key, RSA under 2048 or over
//!   8192 bits, a point off its curve, a private key), a `kid` given twice, and secrets beside public keys that nobody
//!   asked for make the whole set unusable: better no start than a silent hole.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{ED25519, ParsedPublicKey};

pub use super::algorithm::Algorithm;
use super::algorithm::{Curve, Scheme};
use super::{jwk, pem};
use crate::error::Unusable;

/// Keys in one set.
pub const MAX_KEYS: usize = 64;
/// Bytes of a set's text.
pub const MAX_SET_BYTES: usize = 256 * 1024;
/// Signatures that one token may cost: a token without `kid` is refused when more keys than this could be meant.
pub const MAX_TRIES: usize = 4;

/// Which keys the caller means to use.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The algorithms that may be used, the one to prefer first.
    pub algorithms: Vec<Algorithm>,
    /// Whether the set may hold secrets.
    pub secrets: bool,
    /// Whether it may hold secrets and public keys together.
    pub mixed: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { algorithms: Algorithm::ALL.to_vec(), secrets: true, mixed: false }
    }
}

#[derive(Debug)]
enum Material {
    /// Prepared, it is large: many of them would push a key set out of the near caches.
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

/// Whose tokens a key is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kid {
    /// Of tokens that name this one, and of those that name none.
    Named(String),
    /// Of tokens that name none.
    Unnamed,
    /// Of any token whose `kid` no other key has: PEM and DER cannot say one.
    Any,
}

/// A prepared verification key.
#[derive(Debug)]
pub struct Key {
    kid: Kid,
    algorithm: Algorithm,
    material: Material,
}

impl Key {
    pub(super) fn secret(kid: Kid, algorithm: Algorithm, secret: &[u8]) -> Result<Self, Unusable> {
        let Scheme::Hmac(hash) = algorithm.scheme() else {
            return Err(MISFIT);
        };
        if secret.len() < hash.digest_algorithm().output_len() {
            return Err(Unusable("key set: an HMAC secret shorter than its hash (32, 48 or 64 bytes)"));
        }
        if secret.len() > MAX_SECRET_BYTES {
            return Err(Unusable("key set: an HMAC secret over 1024 bytes"));
        }
        Ok(Self { kid, algorithm, material: Material::Secret(Box::new(hmac::Key::new(hash, secret))) })
    }

    /// `modulus` and `exponent` are big-endian and begin with a byte that is not 0.
    pub(super) fn rsa(kid: Kid, algorithm: Algorithm, modulus: &[u8], exponent: &[u8]) -> Result<Self, Unusable> {
        let Scheme::Rsa(parameters) = algorithm.scheme() else {
            return Err(MISFIT);
        };
        let bits = |number: &[u8]| number.len() * 8 - number.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits(modulus)) || modulus.last().is_none_or(|byte| byte % 2 == 0) {
            return Err(Unusable("key set: an RSA modulus that is even or not of 2048 to 8192 bits"));
        }
        if !(2..=33).contains(&bits(exponent)) || exponent.last().is_none_or(|byte| byte % 2 == 0) {
            return Err(Unusable("key set: an RSA exponent that is even, 1 or over 33 bits"));
        }
        let parsed = PublicKeyComponents { n: modulus, e: exponent }.to_parsed_public_key(parameters);
        Self::public(kid, algorithm, parsed.ok())
    }

    /// An uncompressed point.
    pub(super) fn point(kid: Kid, algorithm: Algorithm, curve: &Curve, x: &[u8], y: &[u8]) -> Result<Self, Unusable> {
        if x.len() != curve.coordinate || y.len() != curve.coordinate {
            return Err(Unusable("key set: x or y has not the length of its curve"));
        }
        let point = [&[4], x, y].concat();
        Self::public(kid, algorithm, ParsedPublicKey::new(curve.verification, point).ok())
    }

    pub(super) fn ed25519(kid: Kid, algorithm: Algorithm, x: &[u8]) -> Result<Self, Unusable> {
        if x.len() != 32 {
            return Err(Unusable("key set: x has not the length of its curve"));
        }
        Self::public(kid, algorithm, ParsedPublicKey::new(&ED25519, x).ok())
    }

    pub(super) fn public(kid: Kid, algorithm: Algorithm, parsed: Option<ParsedPublicKey>) -> Result<Self, Unusable> {
        let parsed = parsed.ok_or(Unusable("key set: a public key that is none (off its curve, or malformed)"))?;
        Ok(Self { kid, algorithm, material: Material::Public(parsed) })
    }

    /// The algorithm this key is bound to.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key's own `kid`.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        match &self.kid {
            Kid::Named(kid) => Some(kid),
            Kid::Unnamed | Kid::Any => None,
        }
    }

    /// Whether `signature` is this key's for `message`; in constant time for secrets.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

/// A key that names an algorithm it cannot be used with.
pub(super) const MISFIT: Unusable = Unusable("key set: a key and its alg do not fit");
/// More is a file that was taken for a secret.
const MAX_SECRET_BYTES: usize = 1024;

/// The usable keys of a set.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads a JWK set `{"keys": [...]}` on the default terms.
    pub fn parse(text: &[u8]) -> Result<Self, Unusable> {
        Self::parse_on(text, &Terms::default())
    }

    /// Reads a JWK set and nothing else.
    pub fn parse_on(text: &[u8], terms: &Terms) -> Result<Self, Unusable> {
        Self::of(jwk::read(text, terms)?, terms)
    }

    /// Reads a JWK set, or public keys in PEM (one or several) or DER (one).
    pub fn read(bytes: &[u8], terms: &Terms) -> Result<Self, Unusable> {
        if bytes.len() > MAX_SET_BYTES {
            return Err(Unusable("key set: too large"));
        }
        let keys = if pem::is_pem(bytes) {
            pem::read(bytes, terms)?
        } else if pem::is_der(bytes) {
            pem::read_der(bytes, terms)?.into_iter().collect()
        } else {
            jwk::read(bytes, terms)?
        };
        Self::of(keys, terms)
    }

    fn of(keys: Vec<Key>, terms: &Terms) -> Result<Self, Unusable> {
        let secrets = keys.iter().filter(|key| key.algorithm.is_symmetric()).count();
        if secrets > 0 && !terms.secrets {
            return Err(Unusable("key set: holds a secret where only public keys are accepted"));
        }
        if secrets > 0 && secrets < keys.len() && !terms.mixed {
            return Err(Unusable("key set: secrets and public keys are mixed"));
        }
        Ok(Self(keys))
    }

    /// Adds the keys of another set; refuses a `kid` that both have.
    pub(super) fn append(&mut self, other: Self) -> Result<(), Unusable> {
        let known = |kid: &str| self.0.iter().any(|key| key.kid() == Some(kid));
        if other.0.iter().filter_map(Key::kid).any(known) {
            return Err(Unusable("key set: a kid occurs twice"));
        }
        self.0.extend(other.0);
        Ok(())
    }

    /// The keys a token may have been signed with, with their places: the one with its `kid`; when no key has it, those
    /// that cannot say one; when the token names none, all.
    pub(super) fn candidates<'k>(&'k self, kid: Option<&str>) -> impl Iterator<Item = (usize, &'k Key)> {
        let anonymous = kid.is_none();
        let named = kid.and_then(|kid| self.0.iter().position(|key| key.kid() == Some(kid)));
        self.0
            .iter()
            .enumerate()
            .filter(move |(place, key)| anonymous || named.map_or(key.kid == Kid::Any, |named| *place == named))
    }

    /// How many keys are usable.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether every token will be refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
