//! JWK sets (RFC 7517, RFC 7518 section 6, RFC 8037) as text.
//!
//! Rules: strict JSON; every number is canonical base64url without leading zeros, every coordinate has its curve's length.
//! What is not for verifying here is left out unread, but a private key is never left out in silence: it has no business
//! in a set that verifies.

use super::algorithm::{Algorithm, Scheme};
use super::base64url;
use super::keys::{Key, Kid, MAX_KEYS, MAX_SET_BYTES, MISFIT, Terms};
use super::pem;
use crate::error::Unusable;
use crate::json::{self, Json};

/// The usable keys of `{"keys": [...]}`.
pub(super) fn read(text: &[u8], terms: &Terms) -> Result<Vec<Key>, Unusable> {
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
        let kid = kid.map_or(Kid::Unnamed, |kid| Kid::Named(kid.to_owned()));
        keys.extend(read_key(jwk, kid, terms)?);
    }
    Ok(keys)
}

fn text_of<'a>(jwk: &'a Json<'_>, name: &str) -> Result<Option<&'a str>, Unusable> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Json::Str(text)) => Ok(Some(text)),
        Some(_) => Err(Unusable("key set: the members of a key are strings")),
    }
}

/// A member that must be there, decoded.
fn bytes_of(jwk: &Json<'_>, name: &str) -> Result<Vec<u8>, Unusable> {
    let text = text_of(jwk, name)?.ok_or(Unusable("key set: a key without k, n, e, x or y"))?;
    base64url::decode(text.as_bytes()).map_err(|_| Unusable("key set: a member that is not strict base64url"))
}

/// A number (RFC 7518 section 2, `Base64urlUInt`): the fewest bytes.
fn number_of(jwk: &Json<'_>, name: &str) -> Result<Vec<u8>, Unusable> {
    let bytes = bytes_of(jwk, name)?;
    match bytes.first() {
        None | Some(0) => Err(Unusable("key set: n or e begins with a zero byte")),
        Some(_) => Ok(bytes),
    }
}

/// One member of the set; `None` when it is sound but not for us.
fn read_key(jwk: &Json<'_>, kid: Kid, terms: &Terms) -> Result<Option<Key>, Unusable> {
    let kty = text_of(jwk, "kty")?.ok_or(Unusable("key set: a key without kty"))?;
    let alg = text_of(jwk, "alg")?;
    let usable = is_for_verifying(jwk)?;
    if kty != "oct" && jwk.get("d").is_some() {
        return Err(Unusable("key set: a private key (member d)"));
    }
    if kty == "oct" && !terms.secrets {
        // Whatever it is for: who publishes a secret has made a mistake.
        return Err(Unusable("key set: holds a secret where only public keys are accepted"));
    }
    if !usable {
        return Ok(None);
    }
    let Some(algorithm) = bind(kty, text_of(jwk, "crv")?, alg, &terms.algorithms)? else {
        return Ok(None);
    };
    let key = match algorithm.scheme() {
        Scheme::Hmac(_) => {
            let secret = bytes_of(jwk, "k")?;
            refuse_public(&secret)?;
            Key::secret(kid, algorithm, &secret)
        }
        Scheme::Rsa(_) => Key::rsa(kid, algorithm, &number_of(jwk, "n")?, &number_of(jwk, "e")?),
        Scheme::Ec(curve) => Key::point(kid, algorithm, curve, &bytes_of(jwk, "x")?, &bytes_of(jwk, "y")?),
        Scheme::Ed25519 => Key::ed25519(kid, algorithm, &bytes_of(jwk, "x")?),
    };
    key.map(Some)
}

/// The one algorithm of a key; `None` when it is of a kind, curve or algorithm not known here or not allowed.
fn bind(kty: &str, crv: Option<&str>, alg: Option<&str>, allowed: &[Algorithm]) -> Result<Option<Algorithm>, Unusable> {
    let fits = |algorithm: Algorithm| match algorithm.scheme() {
        Scheme::Hmac(_) => kty == "oct",
        Scheme::Rsa(_) => kty == "RSA",
        Scheme::Ec(curve) => kty == "EC" && crv == Some(curve.name),
        Scheme::Ed25519 => kty == "OKP" && crv == Some("Ed25519"),
    };
    if matches!(kty, "EC" | "OKP") && crv.is_none() {
        return Err(Unusable("key set: a key without crv"));
    }
    match alg {
        None => Ok(allowed.iter().copied().find(|algorithm| fits(*algorithm))),
        Some(name) => match Algorithm::named(name) {
            Some(algorithm) if fits(algorithm) => Ok(allowed.contains(&algorithm).then_some(algorithm)),
            Some(_) if Algorithm::ALL.into_iter().any(fits) => Err(MISFIT),
            _ => Ok(None),
        },
    }
}

/// `use` and `key_ops` (RFC 7517 sections 4.2 and 4.3).
fn is_for_verifying(jwk: &Json<'_>) -> Result<bool, Unusable> {
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

/// Refuses a secret that everybody knows because it is a public key.
fn refuse_public(secret: &[u8]) -> Result<(), Unusable> {
    let text = secret.strip_prefix(b"\xef\xbb\xbf").unwrap_or(secret).trim_ascii_start();
    let is_pem = text.starts_with(b"-----BEGIN") || text.starts_with(b"ssh-") || text.starts_with(b"ecdsa-");
    let is_jwk = json::parse(text).is_ok_and(|json| json.get("kty").is_some() || json.get("keys").is_some());
    if is_pem || is_jwk || pem::is_der(secret) {
        return Err(Unusable("key set: an HMAC secret that is a public key"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::base64url::encode;
    use super::super::keys::KeySet;
    use super::*;

    fn set(keys: &[&str]) -> Result<KeySet, Unusable> {
        KeySet::parse(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    fn oct(secret: &[u8], rest: &str) -> String {
        format!("{{\"kty\":\"oct\",\"k\":\"{}\"{rest}}}", encode(secret))
    }

    #[test]
    fn keys_for_other_uses_are_left_out() {
        let good = oct(&[7; 32], "");
        let foreign = r#"{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB","kid":"r"}"#;
        for other in [r#","use":"enc""#, r#","key_ops":["sign"]"#, r#","alg":"A128KW""#, r#","alg":"none""#] {
            assert_eq!(1, set(&[&good, &oct(&[8; 32], other)]).unwrap().len(), "{other}");
        }
        for other in
            [foreign, r#"{"kty":"XYZ"}"#, r#"{"kty":"EC","crv":"secp256k1"}"#, r#"{"kty":"OKP","crv":"X25519"}"#]
        {
            assert_eq!(1, set(&[&good, other]).unwrap().len(), "{other}");
        }
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
    const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMs\
                     D1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVM\
                     TBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

    fn rsa(n: &str, e: &str, rest: &str) -> String {
        format!("{{\"kty\":\"RSA\",\"n\":\"{n}\",\"e\":\"{e}\"{rest}}}")
    }

    fn ec(crv: &str, x: &str, y: &str, rest: &str) -> String {
        format!("{{\"kty\":\"EC\",\"crv\":\"{crv}\",\"x\":\"{x}\",\"y\":\"{y}\"{rest}}}")
    }

    /// What the first key of a one-key set is bound to.
    fn bound(jwk: &str, algorithms: &[Algorithm]) -> Option<Algorithm> {
        let text = format!("{{\"keys\":[{jwk}]}}");
        let terms = Terms { algorithms: algorithms.to_vec(), ..Terms::default() };
        read(text.as_bytes(), &terms).unwrap().first().map(Key::algorithm)
    }

    #[test]
    fn a_key_is_bound_to_one_algorithm() {
        let all = &Algorithm::ALL[..];
        let (rsa, ec) = (|rest: &str| rsa(N, "AQAB", rest), |rest: &str| ec("P-256", X, Y, rest));
        let okp = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        for (jwk, allowed, expected) in [
            (oct(&[7; 32], ""), all, Some(Algorithm::Hs256)),
            (oct(&[7; 64], r#","alg":"HS512""#), all, Some(Algorithm::Hs512)),
            (oct(&[7; 64], ""), &[Algorithm::Rs256, Algorithm::Hs384, Algorithm::Hs256], Some(Algorithm::Hs384)),
            (rsa(""), all, Some(Algorithm::Rs256)),
            (rsa(""), &[Algorithm::Ps384, Algorithm::Rs256], Some(Algorithm::Ps384)),
            (rsa(r#","alg":"PS512""#), all, Some(Algorithm::Ps512)),
            (rsa(r#","alg":"PS512""#), &[Algorithm::Rs256], None),
            (rsa(r#","alg":"RSA-OAEP""#), all, None),
            (ec(""), all, Some(Algorithm::Es256)),
            (ec(""), &[Algorithm::Es384], None),
            (okp.to_owned(), all, Some(Algorithm::EdDsa)),
            (okp.to_owned(), &[Algorithm::Es256], None),
        ] {
            assert_eq!(expected, bound(&jwk, allowed), "{jwk}");
        }
    }

    #[test]
    fn bad_public_keys_make_the_set_unusable() {
        let short = encode(&[0xff; 255]);
        let long = encode(&[0xff; 1025]);
        let even = format!("{}g", &N[..N.len() - 1]);
        for bad in [
            rsa(&short, "AQAB", ""),
            rsa(&long, "AQAB", ""),
            rsa(&even, "AQAB", ""),
            rsa(&encode(&[&[0][..], &[0xff; 256]].concat()), "AQAB", ""),
            rsa(N, "AAEAAQ", ""),
            rsa(N, "AQ", ""),
            rsa(N, "BA", ""),
            rsa(N, "_________w", ""),
            rsa(N, "", ""),
            rsa(&format!("{N}="), "AQAB", ""),
            rsa(N, "AQAB", r#","alg":"HS256""#),
            rsa(N, "AQAB", r#","alg":"ES256""#),
            rsa(N, "AQAB", r#","d":"AQAB""#),
            rsa(N, "AQAB", r#","d":"AQAB","use":"enc""#),
            r#"{"kty":"RSA","e":"AQAB"}"#.to_owned(),
            ec("P-256", X, X, ""),
            ec("P-256", Y, X, ""),
            ec("P-384", X, Y, ""),
            ec("P-256", X, &Y[..42], ""),
            ec("P-256", X, Y, r#","alg":"ES384""#),
            ec("P-256", X, Y, r#","d":"AQAB""#),
            ec("P-256", &encode(&[0; 32]), &encode(&[0; 32]), ""),
            r#"{"kty":"EC","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"AA"}"#.to_owned(),
            oct(&[7; 32], r#","alg":"HS384""#),
            oct(&[7; 32], r#","alg":"RS256""#),
            oct(&[7; 63], r#","alg":"HS512""#),
            oct(&[7; 1025], ""),
        ] {
            assert!(set(&[&bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_and_public_keys_are_mixed_on_purpose_only() {
        let (secret, public) = (oct(&[7; 32], r#","kid":"a""#), ec("P-256", X, Y, r#","kid":"b""#));
        let both = format!("{{\"keys\":[{secret},{public}]}}");
        let one = format!("{{\"keys\":[{public}]}}");
        let read = |text: &str, terms: Terms| KeySet::read(text.as_bytes(), &terms).map(|keys| keys.len()).ok();
        assert_eq!(None, read(&both, Terms::default()));
        assert_eq!(Some(2), read(&both, Terms { mixed: true, ..Terms::default() }));
        assert_eq!(None, read(&both, Terms { secrets: false, mixed: true, ..Terms::default() }));
        assert_eq!(Some(1), read(&one, Terms { secrets: false, ..Terms::default() }));
        assert_eq!(Some(1), read(&both, Terms { algorithms: vec![Algorithm::Es256], ..Terms::default() }));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            text in r#"\{"keys":\[\{("(kty|crv|alg|k|n|e|x|y|use|kid|d)":("(oct|RSA|EC|OKP|P-256|Ed25519|HS256|RS256|ES256|EdDSA|[A-Za-z0-9_-]{0,90})"|1|\[\]),){0,6}"kty":"(oct|RSA|EC|OKP)"\}\]\}"#,
            cut in any::<prop::sample::Index>(),
        ) {
            let _ = KeySet::parse(text.as_bytes());
            let _ = KeySet::parse(&text.as_bytes()[..cut.index(text.len())]);
        }
    }
}
