//! Compact JWS (RFC 7515): `header.payload.signature`.
//!
//! Rules: the size is bounded before anything is decoded; the header is one object with unique names; a header that
//! brings a key (`jku`, `jwk`, `x5u`, `x5c`) or asks for an extension (`crit`, `b64`, `zip`) is refused; other unknown
//! names are ignored as section 4 demands. The payload is handed out only after the signature stood.

use std::borrow::Cow;

use memchr::memchr_iter;

use super::base64url;
use super::keys::{Algorithm, Key, KeySet, MAX_TRIES};
use crate::error::Reason;
use crate::json::{self, Json};

/// Bytes of a whole token.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Bytes of the longest signature: RSA with 8192 bits.
const MAX_SIGNATURE_BYTES: usize = 1024;

/// Where the parts of a token are decoded to. Keep it to spare allocations, and to read a header but once that many tokens
/// share; whose keys they are held to does not matter.
#[derive(Debug, Default)]
pub struct Scratch {
    known: Option<KnownHeader>,
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// The header that was read last, as it was encoded, which is the only way to encode it.
#[derive(Debug)]
struct KnownHeader {
    text: Box<[u8]>,
    header: Header,
}

/// The names of a header that matter here.
#[derive(Debug)]
struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
    typ: Option<String>,
}

/// A JWS whose signature stood.
#[derive(Debug)]
pub struct Verified<'k, 'b> {
    /// The key it stood with.
    pub key: &'k Key,
    /// The key's place in its set.
    pub(super) place: usize,
    /// `typ`
    pub typ: Option<&'b str>,
    /// The decoded payload.
    pub payload: &'b [u8],
}

/// Checks form, header, key and signature of `token`.
pub fn verify<'k, 'b>(token: &[u8], keys: &'k KeySet, scratch: &'b mut Scratch) -> Result<Verified<'k, 'b>, Reason> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Reason::TokenTooLarge);
    }
    let mut dots = memchr_iter(b'.', token);
    let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
        return Err(Reason::MalformedToken);
    };
    let (signed, signature) = (&token[..second], &token[second + 1..]);
    let (header, payload) = (&token[..first], &token[first + 1..second]);
    if header.is_empty() || payload.is_empty() {
        return Err(Reason::MalformedToken);
    }
    let known = match scratch.known.take() {
        Some(known) if *known.text == *header => known,
        _ => {
            base64url::decode_into(header, &mut scratch.header)?;
            KnownHeader { text: header.into(), header: read_header(&scratch.header)? }
        }
    };
    let header = &scratch.known.insert(known).header;
    if signature.len() > MAX_SIGNATURE_BYTES / 3 * 4 + 2 {
        return Err(Reason::InvalidSignature);
    }
    base64url::decode_into(signature, &mut scratch.signature)?;
    let (place, key) = signing_key(header, keys, signed, &scratch.signature)?;
    base64url::decode_into(payload, &mut scratch.payload)?;
    Ok(Verified { key, place, typ: header.typ.as_deref(), payload: &scratch.payload })
}

fn signing_key<'k>(
    header: &Header,
    keys: &'k KeySet,
    signed: &[u8],
    signature: &[u8],
) -> Result<(usize, &'k Key), Reason> {
    let mut refusal = Reason::UnknownKey;
    let fitting = |key: &Key| key.algorithm() == header.algorithm;
    if keys.candidates(header.kid.as_deref()).filter(|(_, key)| fitting(key)).nth(MAX_TRIES).is_some() {
        return Err(Reason::UnknownKey);
    }
    for (place, key) in keys.candidates(header.kid.as_deref()) {
        if !fitting(key) {
            refusal = if refusal == Reason::UnknownKey { Reason::AlgorithmMismatch } else { refusal };
        } else if key.verify(signed, signature) {
            return Ok((place, key));
        } else {
            refusal = Reason::InvalidSignature;
        }
    }
    Err(refusal)
}

fn read_header(text: &[u8]) -> Result<Header, Reason> {
    let Ok(Json::Object(members)) = json::parse(text) else {
        return Err(Reason::InvalidHeader);
    };
    let (mut alg, mut kid, mut typ) = (None, None, None);
    for (name, value) in members {
        match (&*name, value) {
            ("jku" | "jwk" | "x5u" | "x5c", _) => return Err(Reason::UntrustedKeyHeader),
            ("crit" | "b64" | "zip", _) => return Err(Reason::UnsupportedHeader),
            ("alg", Json::Str(text)) => alg = Some(text),
            ("kid", Json::Str(text)) => kid = Some(text),
            ("typ", Json::Str(text)) => typ = Some(text),
            ("cty", Json::Str(_)) => {}
            ("alg" | "kid" | "typ" | "cty", _) => return Err(Reason::InvalidHeader),
            _ => {}
        }
    }
    let alg = alg.ok_or(Reason::InvalidHeader)?;
    let algorithm = Algorithm::named(&alg).ok_or(Reason::UnsupportedAlgorithm)?;
    Ok(Header { algorithm, kid: kid.map(Cow::into_owned), typ: typ.map(Cow::into_owned) })
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::hmac;
    use proptest::prelude::*;

    use super::*;

    pub(crate) const SECRET: [u8; 32] = *b"0123456789abcdef0123456789ABCDEF";

    pub(crate) fn keys() -> KeySet {
        let k = base64url::encode(&SECRET);
        KeySet::parse(format!(r#"{{"keys":[{{"kty":"oct","kid":"k1","alg":"HS256","k":"{k}"}}]}}"#).as_bytes()).unwrap()
    }

    pub(crate) fn sign(header: &str, payload: &[u8]) -> String {
        let signed = format!("{}.{}", base64url::encode(header.as_bytes()), base64url::encode(payload));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), signed.as_bytes());
        format!("{signed}.{}", base64url::encode(tag.as_ref()))
    }

    fn fault(token: &[u8]) -> Option<Reason> {
        verify(token, &keys(), &mut Scratch::default()).err()
    }

    #[test]
    fn the_example_of_rfc_7515_appendix_a_1_verifies() {
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9\
                     leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let k = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let keys = KeySet::parse(format!(r#"{{"keys":[{{"kty":"oct","k":"{k}"}}]}}"#).as_bytes()).unwrap();
        assert_eq!(
            Some("JWT".to_owned()),
            verify(token.as_bytes(), &keys, &mut Scratch::default()).unwrap().typ.map(str::to_owned)
        );
    }

    #[test]
    fn headers_are_read_literally() {
        let cases = [
            (r#"{"alg":"HS256"}"#, None),
            (r#"{"alg":"HS256","kid":"k1","typ":"JWT","extra":{"a":[1]}}"#, None),
            (r#"{"alg":"none"}"#, Some(Reason::UnsupportedAlgorithm)),
            (r#"{"alg":"nOnE"}"#, Some(Reason::UnsupportedAlgorithm)),
            (r#"{"alg":"hs256"}"#, Some(Reason::UnsupportedAlgorithm)),
            (r#"{"alg":""}"#, Some(Reason::UnsupportedAlgorithm)),
            (r#"{"alg":"RS256"}"#, Some(Reason::AlgorithmMismatch)),
            (r#"{"alg":"RS257"}"#, Some(Reason::UnsupportedAlgorithm)),
            (r#"{"alg":null}"#, Some(Reason::InvalidHeader)),
            (r#"{"alg":["HS256"]}"#, Some(Reason::InvalidHeader)),
            (r#"{"typ":"JWT"}"#, Some(Reason::InvalidHeader)),
            (r#"{"alg":"HS256","alg":"HS256"}"#, Some(Reason::InvalidHeader)),
            (r#"{"alg":"none","alg":"HS256"}"#, Some(Reason::InvalidHeader)),
            (r#"{"alg":"HS256","kid":1}"#, Some(Reason::InvalidHeader)),
            (r#"{"alg":"HS256","typ":null}"#, Some(Reason::InvalidHeader)),
            (r#"["HS256"]"#, Some(Reason::InvalidHeader)),
            ("\u{feff}{\"alg\":\"HS256\"}", Some(Reason::InvalidHeader)),
            (r#"{"alg":"HS256","kid":"k2"}"#, Some(Reason::UnknownKey)),
            (r#"{"alg":"HS256","kid":"k1\u0000"}"#, Some(Reason::UnknownKey)),
            (r#"{"alg":"HS256","kid":"../../dev/null"}"#, Some(Reason::UnknownKey)),
            (r#"{"alg":"HS256","crit":["exp"]}"#, Some(Reason::UnsupportedHeader)),
            (r#"{"alg":"HS256","crit":[]}"#, Some(Reason::UnsupportedHeader)),
            (r#"{"alg":"HS256","crit":"b64"}"#, Some(Reason::UnsupportedHeader)),
            (r#"{"alg":"HS256","b64":true}"#, Some(Reason::UnsupportedHeader)),
            (r#"{"alg":"HS256","zip":"DEF"}"#, Some(Reason::UnsupportedHeader)),
            (r#"{"alg":"HS256","jku":"https://a"}"#, Some(Reason::UntrustedKeyHeader)),
            (r#"{"alg":"HS256","jwk":{}}"#, Some(Reason::UntrustedKeyHeader)),
            (r#"{"alg":"HS256","x5u":"https://a"}"#, Some(Reason::UntrustedKeyHeader)),
            (r#"{"alg":"HS256","x5c":[]}"#, Some(Reason::UntrustedKeyHeader)),
        ];
        for (header, expected) in cases {
            assert_eq!(expected, fault(sign(header, b"{}").as_bytes()), "{header}");
        }
    }

    #[test]
    fn form_is_checked_before_content() {
        let good = sign(r#"{"alg":"HS256"}"#, b"{}");
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let huge = "A".repeat(MAX_TOKEN_BYTES + 1);
        let cases = [
            (String::new(), Reason::MalformedToken),
            (signed.to_owned(), Reason::MalformedToken),
            (format!("{good}.x"), Reason::MalformedToken),
            ("..".to_owned(), Reason::MalformedToken),
            (format!(".e30.{signature}"), Reason::MalformedToken),
            (format!("{good}="), Reason::InvalidBase64),
            (format!("{good}\n"), Reason::InvalidBase64),
            (format!(" {good}"), Reason::InvalidBase64),
            (format!("{signed}."), Reason::InvalidSignature),
            (format!("{signed}.{}", &signature[..40]), Reason::InvalidSignature),
            (format!("{good}AAAA"), Reason::InvalidSignature),
            (huge, Reason::TokenTooLarge),
        ];
        for (token, expected) in cases {
            assert_eq!(Some(expected), fault(token.as_bytes()), "{token:.60}");
        }
        assert_eq!(Some(Reason::TokenTooLarge), fault(&vec![b'.'; 1 << 20]));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_refused(at in 0_usize..70, byte in any::<u8>()) {
            let mut token = sign(r#"{"alg":"HS256"}"#, br#"{"sub":"a"}"#).into_bytes();
            let at = at % token.len();
            prop_assume!(token[at] != byte);
            token[at] = byte;
            prop_assert!(fault(&token).is_some());
        }

        #[test]
        fn no_bytes_make_it_panic(token in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(fault(&token).is_some());
        }
    }
}
