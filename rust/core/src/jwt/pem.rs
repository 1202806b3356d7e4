//! Public keys in PEM (RFC 7468, strictly) and DER: `SubjectPublicKeyInfo`, or PKCS#1 for RSA.
//!
//! Rules: only blocks that hold a public key; a private key or a certificate is refused by name. Nothing but white space
//! stands between the blocks. Such a key cannot say a `kid`, so it answers for every token whose `kid` no other key has,
//! and cannot say an algorithm, so it is bound to the first allowed one that fits.

use aws_lc_rs::rsa::PublicKey;
use aws_lc_rs::signature::{ED25519, ParsedPublicKey};

use super::algorithm::Scheme;
use super::keys::{Key, Kid, MAX_KEYS, Terms};
use crate::error::Unusable;

const BEGIN: &str = "-----BEGIN ";
/// The object identifier of RSASSA-PSS keys, encoded.
const RSA_PSS: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];

/// Whether the bytes are meant to be PEM.
pub(super) fn is_pem(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"-----BEGIN")
}

/// Whether the bytes are a DER sequence whose length accounts for every byte.
pub(super) fn is_der(bytes: &[u8]) -> bool {
    match *bytes {
        [0x30, 0x81, a, ref rest @ ..] => rest.len() == usize::from(a),
        [0x30, 0x82, a, b, ref rest @ ..] => rest.len() == usize::from(a) << 8 | usize::from(b),
        [0x30, a, ref rest @ ..] => rest.len() == usize::from(a) && rest.starts_with(&[0x30]),
        _ => false,
    }
}

/// The usable keys of a PEM text.
pub(super) fn read(bytes: &[u8], terms: &Terms) -> Result<Vec<Key>, Unusable> {
    const MALFORMED: Unusable = Unusable("key set: not strict PEM");
    let text = std::str::from_utf8(bytes).map_err(|_| MALFORMED)?.trim_ascii();
    let starts: Vec<usize> = text.match_indices(BEGIN).map(|(at, _)| at).collect();
    if starts.first() != Some(&0) {
        return Err(MALFORMED);
    }
    if starts.len() > MAX_KEYS {
        return Err(Unusable("key set: too many keys"));
    }
    let mut keys = Vec::new();
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(text.len());
        let block = &text[start..end];
        // The kind is looked at before the content: a private key is named as such however it is wrapped.
        let label = block[BEGIN.len()..].split_once("-----").map(|(label, _)| label).ok_or(MALFORMED)?;
        if label.contains("PRIVATE KEY") {
            return Err(Unusable("key set: a private key (PEM); give the public one"));
        }
        if label != "PUBLIC KEY" && label != "RSA PUBLIC KEY" {
            return Err(Unusable("key set: a PEM block that is no public key (a certificate is not taken)"));
        }
        let (_, der) = pem_rfc7468::decode_vec(block.trim_ascii_end().as_bytes()).map_err(|_| MALFORMED)?;
        keys.extend(read_der(&der, terms)?);
    }
    Ok(keys)
}

/// One key in DER; `None` when no allowed algorithm fits it.
pub(super) fn read_der(der: &[u8], terms: &Terms) -> Result<Option<Key>, Unusable> {
    // 32 bytes could be taken for a raw Ed25519 key.
    if !is_der(der) || der.len() == 32 {
        return Err(Unusable("key set: not one whole DER key"));
    }
    if let Ok(key) = PublicKey::from_der(der) {
        if der.windows(RSA_PSS.len()).take(8).any(|window| window == RSA_PSS) {
            return Err(Unusable("key set: a DER key for RSASSA-PSS alone; give it as a JWK with alg"));
        }
        let (modulus, exponent) = (key.modulus(), key.exponent());
        let (modulus, exponent) =
            (modulus.big_endian_without_leading_zero(), exponent.big_endian_without_leading_zero());
        let fitting = terms.algorithms.iter().find(|algorithm| matches!(algorithm.scheme(), Scheme::Rsa(_)));
        return fitting.map(|&algorithm| Key::rsa(Kid::Any, algorithm, modulus, exponent)).transpose();
    }
    let mut known = false;
    for algorithm in super::algorithm::Algorithm::ALL {
        let parsed = match algorithm.scheme() {
            Scheme::Ec(curve) => ParsedPublicKey::new(curve.verification, der),
            Scheme::Ed25519 => ParsedPublicKey::new(&ED25519, der),
            Scheme::Hmac(_) | Scheme::Rsa(_) => continue,
        };
        if let Ok(parsed) = parsed {
            if terms.algorithms.contains(&algorithm) {
                return Key::public(Kid::Any, algorithm, Some(parsed)).map(Some);
            }
            known = true;
        }
    }
    if known { Ok(None) } else { Err(Unusable("key set: a DER key of no known kind, or malformed")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::{Algorithm, KeySet};
    use super::*;

    const EC: &str = "-----BEGIN PUBLIC KEY-----\n\
                      MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7\n\
                      6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==\n\
                      -----END PUBLIC KEY-----\n";
    const ED25519: &str = "-----BEGIN PUBLIC KEY-----\n\
                           MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                           -----END PUBLIC KEY-----\n";

    fn bound(bytes: &[u8], algorithms: &[Algorithm]) -> Result<Vec<Algorithm>, Unusable> {
        let terms = Terms { algorithms: algorithms.to_vec(), ..Terms::default() };
        let keys = KeySet::read(bytes, &terms)?;
        Ok(keys.candidates(None).map(|(_, key)| key.algorithm()).collect())
    }

    #[test]
    fn public_keys_are_read_in_pem_and_der() {
        let all = &Algorithm::ALL[..];
        assert_eq!(Ok(vec![Algorithm::Es256]), bound(EC.as_bytes(), all));
        assert_eq!(Ok(vec![Algorithm::EdDsa]), bound(ED25519.as_bytes(), all));
        assert_eq!(Ok(vec![Algorithm::Es256, Algorithm::EdDsa]), bound(format!("{EC}\n{ED25519}").as_bytes(), all));
        assert_eq!(Ok(vec![]), bound(EC.as_bytes(), &[Algorithm::Rs256]));
        let (_, der) = pem_rfc7468::decode_vec(EC.as_bytes()).unwrap();
        assert_eq!(Ok(vec![Algorithm::Es256]), bound(&der, all));
        assert!(bound(&[&der[..], b"\0"].concat(), all).is_err());
        assert!(bound(&der[..der.len() - 1], all).is_err());
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let private = EC.replace("PUBLIC KEY", "PRIVATE KEY");
        for bad in [
            private.clone(),
            private.replace("PRIVATE KEY", "EC PRIVATE KEY"),
            private.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            format!("{EC}{private}"),
            EC.replace("PUBLIC KEY", "CERTIFICATE"),
            EC.replace("PUBLIC KEY", "RSA PUBLIC KEY").replace("MFkw", "MFky"),
            EC.replace("MFkw", "MFky"),
            EC.replace("jlrQ==", "jlrQ="),
            EC.replace("jlrQ==", "jlrQ== x"),
            EC.replace("END PUBLIC", "END RSA PUBLIC"),
            format!("{EC}some text\n"),
            EC[..100].to_owned(),
            "-----BEGIN ".to_owned(),
            "-----BEGIN-----".to_owned(),
        ] {
            assert!(bound(bad.as_bytes(), &Algorithm::ALL).is_err(), "{bad}");
        }
        let said = bound(private.as_bytes(), &Algorithm::ALL).unwrap_err();
        assert!(said.0.contains("private key"), "{said}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0..EC.len(), with in any::<char>(), der in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut text = EC.to_owned();
            text.replace_range(at..=at, &with.to_string());
            let _ = bound(text.as_bytes(), &Algorithm::ALL);
            let _ = bound(&[&[0x30, der.len() as u8][..], &der].concat(), &Algorithm::ALL);
        }
    }
}
