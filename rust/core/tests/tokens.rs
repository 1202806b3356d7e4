//! Every algorithm: the vectors of the RFCs, fresh keys, and signatures that are nearly right.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use aws_lc_rs::{encoding::AsDer as _, hmac};
use flx_core::error::Reason;
use flx_core::jwt::TokenVerifier;
use flx_core::jwt::claims::Expected;
use flx_core::jwt::jws::{Scratch, verify};
use flx_core::jwt::keys::{Algorithm, KeySet, Terms};
use proptest::prelude::*;

fn base64url(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bit = |place: usize| bytes.get(place / 8).map_or(0, |byte| usize::from(byte >> (7 - place % 8) & 1));
    let digit = |index: usize| (index * 6..index * 6 + 6).fold(0, |sum, place| sum * 2 + bit(place));
    (0..(bytes.len() * 8).div_ceil(6)).map(|index| alphabet[digit(index)] as char).collect()
}

fn fault(token: &str, jwks: &str) -> Option<Reason> {
    let keys = KeySet::parse(jwks.as_bytes()).unwrap_or_else(|error| panic!("{error}: {jwks}"));
    verify(token.as_bytes(), &keys, &mut Scratch::default()).err()
}

const RFC_RSA: &str = r#"{"kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}"#;
const RFC_P256: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
const RFC_P521: &str = r#"{"kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"}"#;
const RFC_ED25519: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

/// RFC 7515 appendix A.2 to A.4 and RFC 8037 appendix A.4 (A.1 is beside the code).
#[test]
fn the_examples_of_the_rfcs_verify() {
    for (jwk, token) in [
        (
            RFC_RSA,
            format!(
                "eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
            ),
        ),
        (
            RFC_P256,
            format!(
                "eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
            ),
        ),
        (
            RFC_P521,
            "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn".to_owned(),
        ),
        (
            RFC_ED25519,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg".to_owned(),
        ),
    ] {
        let jwks = format!(r#"{{"keys":[{jwk}]}}"#);
        assert_eq!(None, fault(&token, &jwks));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { 'B' } else { 'A' };
        assert_eq!(Some(Reason::InvalidSignature), fault(&format!("{signed}.{other}{}", &signature[1..]), &jwks));
        assert_eq!(Some(Reason::InvalidSignature), fault(&format!("{signed}."), &jwks));
    }
}

/// Signs with fresh keys, and says the JWK that belongs to them.
struct Signers {
    rsa: RsaKeyPair,
    ec: [EcdsaKeyPair; 3],
    ed25519: Ed25519KeyPair,
    secret: [u8; 64],
}

impl Signers {
    fn new() -> Self {
        let curves = [
            &sig::ECDSA_P256_SHA256_FIXED_SIGNING,
            &sig::ECDSA_P384_SHA384_FIXED_SIGNING,
            &sig::ECDSA_P521_SHA512_FIXED_SIGNING,
        ];
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: curves.map(|curve| EcdsaKeyPair::generate(curve).unwrap()),
            ed25519: Ed25519KeyPair::generate().unwrap(),
            secret: [7; 64],
        }
    }

    fn curve(&self, algorithm: Algorithm) -> (&EcdsaKeyPair, &'static str) {
        match algorithm {
            Algorithm::Es256 => (&self.ec[0], "P-256"),
            Algorithm::Es384 => (&self.ec[1], "P-384"),
            _ => (&self.ec[2], "P-521"),
        }
    }

    fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
        let rsa = |encoding: &'static sig::RsaSignatureEncoding| {
            let mut out = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(encoding, &SystemRandom::new(), message, &mut out).unwrap();
            out
        };
        let hs = |hash| hmac::sign(&hmac::Key::new(hash, &self.secret), message).as_ref().to_vec();
        match algorithm {
            Algorithm::Hs256 => hs(hmac::HMAC_SHA256),
            Algorithm::Hs384 => hs(hmac::HMAC_SHA384),
            Algorithm::Hs512 => hs(hmac::HMAC_SHA512),
            Algorithm::Rs256 => rsa(&sig::RSA_PKCS1_SHA256),
            Algorithm::Rs384 => rsa(&sig::RSA_PKCS1_SHA384),
            Algorithm::Rs512 => rsa(&sig::RSA_PKCS1_SHA512),
            Algorithm::Ps256 => rsa(&sig::RSA_PSS_SHA256),
            Algorithm::Ps384 => rsa(&sig::RSA_PSS_SHA384),
            Algorithm::Ps512 => rsa(&sig::RSA_PSS_SHA512),
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {
                self.curve(algorithm).0.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
            }
            Algorithm::EdDsa => self.ed25519.sign(message).as_ref().to_vec(),
        }
    }

    fn jwk(&self, name: &str, rest: &str) -> String {
        let algorithm = Algorithm::named(name).unwrap();
        match algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                format!(r#"{{"kty":"oct","alg":"{name}","k":"{}"{rest}}}"#, base64url(&self.secret))
            }
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {
                let (key, crv) = self.curve(algorithm);
                let (x, y) = key.public_key().as_ref()[1..].split_at(key.public_key().as_ref().len() / 2);
                let (x, y) = (base64url(x), base64url(y));
                format!(r#"{{"kty":"EC","crv":"{crv}","x":"{x}","y":"{y}"{rest}}}"#)
            }
            Algorithm::EdDsa => {
                let x = base64url(self.ed25519.public_key().as_ref());
                format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"{rest}}}"#)
            }
            _ => {
                let n = self.rsa.public_key().modulus();
                let n = base64url(n.big_endian_without_leading_zero());
                format!(r#"{{"kty":"RSA","alg":"{name}","n":"{n}","e":"AQAB"{rest}}}"#)
            }
        }
    }

    fn token(&self, name: &str, header: &str) -> String {
        let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(br#"{"sub":"ann"}"#));
        let signature = self.sign(Algorithm::named(name).unwrap(), signed.as_bytes());
        format!("{signed}.{}", base64url(&signature))
    }
}

const NAMES: [&str; 13] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
];

#[test]
fn each_algorithm_verifies_with_its_key_and_with_no_other() {
    let signers = Signers::new();
    for name in NAMES {
        let token = signers.token(name, &format!(r#"{{"alg":"{name}"}}"#));
        for other in NAMES {
            let expected = (name != other).then_some(Reason::AlgorithmMismatch);
            assert_eq!(
                expected,
                fault(&token, &format!(r#"{{"keys":[{}]}}"#, signers.jwk(other, ""))),
                "{name} {other}"
            );
            // Signed rightly, but the header claims another algorithm.
            let lying = signers.token(name, &format!(r#"{{"alg":"{other}"}}"#));
            let jwks = format!(r#"{{"keys":[{}]}}"#, signers.jwk(name, ""));
            assert_eq!(expected, fault(&lying, &jwks), "{name} {other}");
        }
    }
}

#[test]
fn the_key_is_found_by_its_kid() {
    let signers = Signers::new();
    let keys: Vec<String> = NAMES.iter().map(|name| signers.jwk(name, &format!(r#","kid":"k-{name}""#))).collect();
    let text = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
    let keys = KeySet::read(text.as_bytes(), &Terms { mixed: true, ..Terms::default() }).unwrap();
    let verifier = TokenVerifier::new(keys, Expected::default()).unwrap();
    assert_eq!(13, verifier.key_count());
    let mut scratch = Scratch::default();
    for name in NAMES {
        for (header, expected) in [
            (format!(r#"{{"alg":"{name}","kid":"k-{name}"}}"#), None),
            (format!(r#"{{"alg":"{name}"}}"#), None),
            (format!(r#"{{"alg":"{name}","kid":"k"}}"#), Some(Reason::UnknownKey)),
        ] {
            let token = signers.token(name, &header);
            let accepted = verifier.verify_full(token.as_bytes(), 0.0, &mut scratch);
            match accepted {
                Ok(accepted) => assert_eq!(Some(format!("k-{name}").as_str()), accepted.kid),
                Err(reason) => assert_eq!(expected, Some(reason), "{header}"),
            }
        }
    }
}

#[test]
fn a_key_in_pem_or_der_answers_for_any_kid() {
    let signers = Signers::new();
    let rsa: Vec<u8> = signers.rsa.public_key().as_der().unwrap().as_ref().to_vec();
    let pkcs1 = signers.rsa.public_key().as_ref().to_vec();
    for (name, der) in [
        ("RS256", rsa),
        ("RS256", pkcs1),
        ("ES256", signers.ec[0].public_key().as_der().unwrap().as_ref().to_vec()),
        ("ES384", signers.ec[1].public_key().as_der().unwrap().as_ref().to_vec()),
        ("ES512", signers.ec[2].public_key().as_der().unwrap().as_ref().to_vec()),
        ("EdDSA", signers.ed25519.public_key().as_der().unwrap().as_ref().to_vec()),
    ] {
        let keys = KeySet::read(&der, &Terms::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for header in [format!(r#"{{"alg":"{name}"}}"#), format!(r#"{{"alg":"{name}","kid":"any"}}"#)] {
            let token = signers.token(name, &header);
            assert_eq!(None, verify(token.as_bytes(), &keys, &mut Scratch::default()).err(), "{name}");
        }
    }
}

#[test]
fn each_realm_speaks_for_itself() {
    let signers = Signers::new();
    let set = |name: &str, kid: &str| {
        let text = format!(r#"{{"keys":[{}]}}"#, signers.jwk(name, &format!(r#","kid":"{kid}""#)));
        KeySet::parse(text.as_bytes()).unwrap()
    };
    let expected = |issuer: &str, leeway_s| Expected { issuer: Some(issuer.into()), leeway_s, ..Expected::default() };
    let verifier =
        TokenVerifier::of(vec![(set("HS256", "a"), expected("us", 0)), (set("ES256", "b"), expected("them", 30))])
            .unwrap();
    let mut scratch = Scratch::default();
    for (name, kid, issuer, ends) in [
        ("HS256", "a", "us", Ok(1000.0)),
        ("ES256", "b", "them", Ok(1030.0)),
        ("HS256", "a", "them", Err(Reason::WrongIssuer)),
        ("ES256", "b", "us", Err(Reason::WrongIssuer)),
        ("HS256", "b", "us", Err(Reason::AlgorithmMismatch)),
    ] {
        let header = base64url(format!(r#"{{"alg":"{name}","kid":"{kid}"}}"#).as_bytes());
        let signed = format!("{header}.{}", base64url(format!(r#"{{"iss":"{issuer}","exp":1000}}"#).as_bytes()));
        let signature = base64url(&signers.sign(Algorithm::named(name).unwrap(), signed.as_bytes()));
        let token = format!("{signed}.{signature}");
        let accepted = verifier.verify_full(token.as_bytes(), 999.0, &mut scratch);
        assert_eq!(ends, accepted.map(|accepted| accepted.ends_at_s.unwrap()), "{name} {kid} {issuer}");
    }
    let twice = vec![(set("HS256", "a"), expected("us", 0)), (set("ES256", "a"), expected("them", 30))];
    assert!(TokenVerifier::of(twice).is_err());
    assert!(TokenVerifier::of(vec![]).is_err());
}

#[test]
fn a_token_without_kid_costs_few_signatures() {
    let keys: Vec<String> = (0..5).map(|n| format!(r#"{{"kty":"oct","k":"{}"}}"#, base64url(&[n; 32]))).collect();
    let signed = format!("{}.e30", base64url(br#"{"alg":"HS256"}"#));
    let token = |secret: u8| {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[secret; 32]), signed.as_bytes());
        format!("{signed}.{}", base64url(tag.as_ref()))
    };
    assert_eq!(None, fault(&token(3), &format!(r#"{{"keys":[{}]}}"#, keys[..4].join(","))));
    assert_eq!(Some(Reason::UnknownKey), fault(&token(3), &format!(r#"{{"keys":[{}]}}"#, keys.join(","))));
}

/// The order of P-256's group.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7,
    0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
/// The order of Ed25519's group, little-endian.
const ED25519_ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

#[test]
fn signatures_that_are_nearly_right_are_refused() {
    let signers = Signers::new();
    for name in NAMES {
        let jwks = format!(r#"{{"keys":[{}]}}"#, signers.jwk(name, ""));
        let signed = format!("{}.e30", base64url(format!(r#"{{"alg":"{name}"}}"#).as_bytes()));
        let good = signers.sign(Algorithm::named(name).unwrap(), signed.as_bytes());
        let verdict = |signature: &[u8]| fault(&format!("{signed}.{}", base64url(signature)), &jwks);
        assert_eq!(None, verdict(&good));
        let (half, zeros) = (good.len() / 2, vec![0; good.len()]);
        let mut bad = vec![
            vec![],
            zeros.clone(),
            vec![0xff; good.len()],
            good[1..].to_vec(),
            good[..good.len() - 1].to_vec(),
            [&good[..], &[0]].concat(),
            [&[0], &good[..]].concat(),
            [&good[..half], &zeros[half..]].concat(),
            [&zeros[..half], &good[half..]].concat(),
            [&good[..], &good[..]].concat(),
        ];
        if name == "ES256" {
            let one = [&[0; 31][..], &[1]].concat();
            bad.extend([
                [&one[..], &one].concat(),
                [&P256_ORDER[..], &good[32..]].concat(),
                [&good[..32], &P256_ORDER].concat(),
            ]);
            bad.push([&[0x30, 68, 2, 32], &good[..32], &[2, 32], &good[32..]].concat());
            // r and s of 33 bytes with a leading zero: right numbers, wrong length.
            bad.push([&[0], &good[..32], &[0], &good[32..]].concat());
        }
        if name == "EdDSA" {
            let mut more = good.clone();
            let mut carry = 0;
            for (byte, order) in more[32..].iter_mut().zip(ED25519_ORDER) {
                let sum = u16::from(*byte) + u16::from(order) + carry;
                (*byte, carry) = (sum as u8, sum >> 8);
            }
            bad.push(more);
        }
        for signature in bad {
            assert_eq!(Some(Reason::InvalidSignature), verdict(&signature), "{name}: {} bytes", signature.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_header_makes_it_panic(
        header in r#"\{("(alg|kid|typ|crit|zip|cty|x)":("(HS256|ES256|none|k)"|1|null|\[\]|\{\}),){0,4}"alg":"(ES256|RS256|EdDSA)"\}"#,
        payload in proptest::collection::vec(any::<u8>(), 0..40),
        signature in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let jwks = format!(r#"{{"keys":[{RFC_P256},{RFC_RSA},{RFC_ED25519}]}}"#);
        let token = format!("{}.{}.{}", base64url(header.as_bytes()), base64url(&payload), base64url(&signature));
        prop_assert!(fault(&token, &jwks).is_some());
    }
}
