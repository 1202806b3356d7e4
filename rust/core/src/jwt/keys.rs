//! Key sets (RFC 7517): which key may verify which token.
//!
//! Strategy: a JWK set is read once, at start-up, into prepared keys. Rules:
//! - the algorithm belongs to the key; a token's `alg` can only agree with it, never choose it;
//! - `kid`, `alg`, `use` and `key_ops` are honoured; a key for another use or of a kind not known here is left out, as
//!   RFC 7517 section 5 says, so that one set can serve several verifiers;
//! - a weak or mistaken secret (under 32 bytes, or really a public key in PEM, DER or JWK form) and a `kid` given twice
//!   make the whole set unusable: better no start than a silent hole.
//!
//! Another algorithm is one more arm in [`Algorithm`] and in [`Key::verify`].

use aws_lc_rs::hmac;

use super::base64url;
use super::json::{self, Json};
use crate::error::Unusable;

/// Keys in one set.
pub const MAX_KEYS: usize = 64;
/// Bytes of a set's text.
pub const MAX_SET_BYTES: usize = 256 * 1024;
/// Bytes of an HMAC secret: at least the hash's length (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// A signature algorithm (RFC 7518) this verifier knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
}

impl Algorithm {
    /// The algorithm of exactly this name; never `none`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        (name == "HS256").then_some(Self::Hs256)
    }
}

#[derive(Debug)]
enum Material {
    Hmac(hmac::Key),
}

/// A prepared verification key.
#[derive(Debug)]
pub struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    material: Material,
}

impl Key {
    /// The algorithm this key is bound to.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `signature` is this key's for `message`; in constant time for secrets.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

/// The usable keys of a JWK set.
#[derive(Debug)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads `{"keys": [...]}`.
    pub fn parse(text: &[u8]) -> Result<Self, Unusable> {
        if text.len() > MAX_SET_BYTES {
            return Err(Unusable("key set: too large"));
        }
        let set = json::parse(text).map_err(|_| Unusable("key set: not strict JSON"))?;
        let Some(Json::Array(jwks)) = set.get("keys") else {
            return Err(Unusable("key set: no array \"keys\""));
        };
        if jwks.len() > MAX_KEYS {
            return Err(Unusable("key set: too many keys"));
        }
        let mut seen: Vec<&str> = Vec::new();
        let mut keys = Vec::new();
        for jwk in jwks {
            let kid = text_of(jwk, "kid")?;
            if let Some(kid) = kid {
                if seen.contains(&kid) {
                    return Err(Unusable("key set: a kid occurs twice"));
                }
                seen.push(kid);
            }
            keys.extend(read_key(jwk, kid)?);
        }
        Ok(Self(keys))
    }

    /// The keys a token may have been signed with: the one with its `kid`, or, when the token names none, all of them
    /// (the caller still compares the algorithm, and the set is small).
    pub fn candidates<'a>(&'a self, kid: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| kid.is_none() || key.kid.as_deref() == kid)
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

fn text_of<'a>(jwk: &'a Json, name: &str) -> Result<Option<&'a str>, Unusable> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Json::Str(text)) => Ok(Some(text)),
        Some(_) => Err(Unusable("key set: kty, kid, alg, use and k are strings")),
    }
}

/// One member of the set; `None` when it is sound but not for us.
fn read_key(jwk: &Json, kid: Option<&str>) -> Result<Option<Key>, Unusable> {
    let kty = text_of(jwk, "kty")?.ok_or(Unusable("key set: a key without kty"))?;
    let alg = text_of(jwk, "alg")?;
    let usable = is_for_verifying(jwk)?;
    if kty != "oct" {
        return Ok(None);
    }
    // Without `alg` an octet key can only be meant for the one HMAC algorithm there is here.
    let Some(algorithm) = alg.map_or(Some(Algorithm::Hs256), Algorithm::named) else {
        return Ok(None);
    };
    if !usable {
        return Ok(None);
    }
    let text = text_of(jwk, "k")?.ok_or(Unusable("key set: an oct key without k"))?;
    let secret = base64url::decode(text.as_bytes()).map_err(|_| Unusable("key set: k is not strict base64url"))?;
    check_secret(&secret)?;
    let material = Material::Hmac(hmac::Key::new(hmac::HMAC_SHA256, &secret));
    Ok(Some(Key { kid: kid.map(str::to_owned), algorithm, material }))
}

/// `use` and `key_ops` (RFC 7517 sections 4.2 and 4.3).
fn is_for_verifying(jwk: &Json) -> Result<bool, Unusable> {
    let by_use = text_of(jwk, "use")?.is_none_or(|purpose| purpose == "sig");
    let by_ops = match jwk.get("key_ops") {
        None => true,
        Some(Json::Array(ops)) => {
            let mut names = Vec::with_capacity(ops.len());
            for op in ops {
                let name = op.as_str().ok_or(Unusable("key set: key_ops is an array of strings"))?;
                if names.contains(&name) {
                    return Err(Unusable("key set: key_ops has a name twice"));
                }
                names.push(name);
            }
            names.contains(&"verify")
        }
        Some(_) => return Err(Unusable("key set: key_ops is an array of strings")),
    };
    Ok(by_use && by_ops)
}

/// Refuses secrets that are too short, or that everybody knows because they are a public key.
fn check_secret(secret: &[u8]) -> Result<(), Unusable> {
    if secret.len() < MIN_SECRET_BYTES {
        return Err(Unusable("key set: an HMAC secret under 32 bytes"));
    }
    let text = secret.strip_prefix(b"\xef\xbb\xbf").unwrap_or(secret).trim_ascii_start();
    let is_pem = text.starts_with(b"-----BEGIN") || text.starts_with(b"ssh-") || text.starts_with(b"ecdsa-");
    // A DER sequence whose length field accounts for every byte.
    let is_der = match *secret {
        [0x30, 0x81, a, ref rest @ ..] => rest.len() == usize::from(a),
        [0x30, 0x82, a, b, ref rest @ ..] => rest.len() == usize::from(a) << 8 | usize::from(b),
        [0x30, a, ref rest @ ..] => rest.len() == usize::from(a) && rest.starts_with(&[0x30]),
        _ => false,
    };
    let is_jwk = json::parse(text).is_ok_and(|json| json.get("kty").is_some() || json.get("keys").is_some());
    if is_pem || is_der || is_jwk {
        return Err(Unusable("key set: an HMAC secret that is a public key"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[&str]) -> Result<KeySet, Unusable> {
        KeySet::parse(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    fn oct(secret: &[u8], rest: &str) -> String {
        format!("{{\"kty\":\"oct\",\"k\":\"{}\"{rest}}}", base64url::encode(secret))
    }

    #[test]
    fn keys_for_other_uses_are_left_out() {
        let good = oct(&[7; 32], "");
        for other in
            [r#","use":"enc""#, r#","key_ops":["sign"]"#, r#","alg":"HS512""#, r#","alg":"A128KW""#, r#","alg":"none""#]
        {
            assert_eq!(1, set(&[&good, &oct(&[8; 32], other)]).unwrap().len(), "{other}");
        }
        assert_eq!(1, set(&[&good, r#"{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"r"}"#]).unwrap().len());
        assert_eq!(
            1,
            set(&[&oct(&[7; 32], r#","use":"sig","key_ops":["sign","verify"],"alg":"HS256""#)]).unwrap().len()
        );
        assert!(set(&[]).unwrap().is_empty());
    }

    #[test]
    fn weak_or_mistaken_secrets_make_the_set_unusable() {
        let jwk = br#"  {"kty":"RSA","n":"AQABAQABAQABAQAB","e":"AQAB"}"#;
        let mut der = vec![0x30, 0x82, 0x01, 0x22];
        der.extend([0; 0x122]);
        for secret in [
            &[7_u8; 31][..],
            b"",
            b"secret",
            b"-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq",
            jwk,
            &der,
            b"\xef\xbb\xbf -----BEGIN RSA PUBLIC KEY-----",
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI",
        ] {
            assert!(set(&[&oct(secret, "")]).is_err(), "{secret:?}");
        }
    }

    #[test]
    fn sets_that_say_two_things_are_unusable() {
        let twice = oct(&[7; 32], r#","kid":"a""#);
        for bad in [
            &["{}"][..],
            &[&twice, &twice],
            &["1"],
            &[r#"{"kty":"oct"}"#],
            &[r#"{"kty":"oct","k":"AA="}"#],
            &[r#"{"kty":["oct"],"k":"AA"}"#],
            &[&oct(&[7; 32], r#","kid":1"#)],
            &[&oct(&[7; 32], r#","key_ops":"verify""#)],
            &[&oct(&[7; 32], r#","key_ops":["verify","verify"]"#)],
            &[&oct(&[7; 32], r#","kty":"oct""#)],
        ] {
            assert!(set(bad).is_err(), "{bad:?}");
        }
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]} "x""#] {
            assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
