//! The signature algorithms (RFC 7518 section 3, RFC 8037) and what each of them needs of a key.
//!
//! Rules: names are exact; `none` is not a name; the `Ed448` half of `EdDSA` is not here. The order of [`Algorithm::ALL`]
//! is the order in which a key that names no algorithm is bound to one.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self as sig, EcdsaVerificationAlgorithm, RsaParameters};

/// A signature algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256 and a salt of the hash's length.
    Ps256,
    /// RSASSA-PSS with SHA-384 and a salt of the hash's length.
    Ps384,
    /// RSASSA-PSS with SHA-512 and a salt of the hash's length.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// `EdDSA` with Ed25519.
    EdDsa,
}

/// What an algorithm works with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scheme {
    /// A secret.
    Hmac(hmac::Algorithm),
    /// An RSA key.
    Rsa(&'static RsaParameters),
    /// A point on one curve.
    Ec(&'static Curve),
    /// An Ed25519 key.
    Ed25519,
}

/// An elliptic curve of RFC 7518 section 6.2.
#[derive(Debug)]
pub(super) struct Curve {
    /// `crv`
    pub name: &'static str,
    /// Bytes of a coordinate.
    pub coordinate: usize,
    /// Signatures are r and s, each of the coordinate's length.
    pub verification: &'static EcdsaVerificationAlgorithm,
}

static P256: Curve = Curve { name: "P-256", coordinate: 32, verification: &sig::ECDSA_P256_SHA256_FIXED };
static P384: Curve = Curve { name: "P-384", coordinate: 48, verification: &sig::ECDSA_P384_SHA384_FIXED };
static P521: Curve = Curve { name: "P-521", coordinate: 66, verification: &sig::ECDSA_P521_SHA512_FIXED };

impl Algorithm {
    /// All of them, the one to prefer first.
    pub const ALL: [Self; 13] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The algorithm of exactly this name; never `none`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    pub(super) fn scheme(self) -> Scheme {
        match self {
            Self::Hs256 => Scheme::Hmac(hmac::HMAC_SHA256),
            Self::Hs384 => Scheme::Hmac(hmac::HMAC_SHA384),
            Self::Hs512 => Scheme::Hmac(hmac::HMAC_SHA512),
            Self::Rs256 => Scheme::Rsa(&sig::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Scheme::Rsa(&sig::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Scheme::Rsa(&sig::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Scheme::Rsa(&sig::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Scheme::Rsa(&sig::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Scheme::Rsa(&sig::RSA_PSS_2048_8192_SHA512),
            Self::Es256 => Scheme::Ec(&P256),
            Self::Es384 => Scheme::Ec(&P384),
            Self::Es512 => Scheme::Ec(&P521),
            Self::EdDsa => Scheme::Ed25519,
        }
    }

    /// Whether a signature of this algorithm needs a secret.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}
