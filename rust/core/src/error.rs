//! Why a request was refused: one list for the whole core.
//!
//! Rules: a reason is a short fixed word for logs and metrics. It never carries the token, a claim or a key. Clients see
//! only the problem code the gateway maps it to, the same one for every token fault.

use std::fmt;

/// Defines the reasons and their words in one place, so that they cannot drift apart.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why a token or a request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the checks.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word used in logs, metrics and `TokenRejected.reason`.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// No bearer credentials at all (no header, or another scheme).
    MissingToken = "missing_token",
    /// More than one `Authorization` header: the only fault that is the request's and not the token's.
    InvalidRequest = "invalid_request",
    /// The scheme is Bearer but what follows is not one space and one token68.
    MalformedCredentials = "malformed_credentials",
    /// More than 8 KiB; refused before anything is decoded.
    TokenTooLarge = "token_too_large",
    /// Not exactly three parts, or an empty header or payload part.
    MalformedToken = "malformed_token",
    /// A part is not canonical unpadded base64url.
    InvalidBase64 = "invalid_base64",
    /// The header is not one UTF-8 JSON object with unique names, or a known name has the wrong type.
    InvalidHeader = "invalid_header",
    /// `crit`, `b64` or `zip`: extensions this verifier does not understand and therefore may not ignore.
    UnsupportedHeader = "unsupported_header",
    /// `jku`, `jwk`, `x5u` or `x5c`: the token brings its own key.
    UntrustedKeyHeader = "untrusted_key_header",
    /// `alg` is not one this verifier knows.
    UnsupportedAlgorithm = "unsupported_algorithm",
    /// No key of the set is meant by this token.
    UnknownKey = "unknown_key",
    /// The key named by `kid` is bound to another algorithm.
    AlgorithmMismatch = "algorithm_mismatch",
    /// The signature does not verify.
    InvalidSignature = "invalid_signature",
    /// `typ` is not the configured one.
    WrongType = "wrong_type",
    /// The payload is not one UTF-8 JSON object with unique names within the depth bound.
    InvalidPayload = "invalid_payload",
    /// A required claim is absent.
    MissingClaim = "missing_claim",
    /// A registered claim has the wrong JSON type or is out of range.
    InvalidClaim = "invalid_claim",
    /// `now >= exp + leeway`.
    Expired = "expired",
    /// `now < nbf - leeway`.
    NotYetValid = "not_yet_valid",
    /// `iat` lies in the future by more than the leeway.
    IssuedInFuture = "issued_in_future",
    /// `iss` is not exactly the configured issuer.
    WrongIssuer = "wrong_issuer",
    /// `aud` does not contain exactly the configured audience (or is present where none is configured).
    WrongAudience = "wrong_audience",
    /// `sub` is not a non-empty string without NUL.
    InvalidSubject = "invalid_subject",
    /// `roles` is not an array of unique non-empty strings.
    InvalidRoles = "invalid_roles",
    /// `tenant` is not a non-empty string without NUL.
    InvalidTenant = "invalid_tenant",
    /// `sid` is not a non-empty string without NUL.
    InvalidSession = "invalid_session",
    /// The token, its session, its subject or its key was revoked.
    Revoked = "revoked",
    /// A window that applies is used up.
    RateLimited = "rate_limited",
    /// A strict policy needs a lease that is not there yet: ask again after the next sync.
    LeaseAwaited = "lease_awaited",
    /// A strict policy needs a lease, and none can be had.
    LeaseUnavailable = "lease_unavailable",
    /// No Host, two of them, or one that is not served here.
    InvalidHost = "invalid_host",
    /// The path is in doubt or leads nowhere.
    NotFound = "not_found",
    /// The path is known, the method is not one of its own.
    MethodNotAllowed = "method_not_allowed",
    /// Two headers tell where the body ends.
    TwoLengths = "two_lengths",
    /// More than one `Idempotency-Key`: which of them the command is remembered by would be a guess.
    TwoKeys = "two_keys",
    /// `Content-Length` is not a number.
    InvalidLength = "invalid_length",
    /// The body says that it is larger than the limit.
    PayloadTooLarge = "payload_too_large",
    /// The body is encoded.
    UnsupportedEncoding = "unsupported_encoding",
    /// The body is not JSON in UTF-8.
    UnsupportedMediaType = "unsupported_media_type",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl std::error::Error for Reason {}

/// A value given at construction (key set, limit, policy) that cannot be used. Names the rule, never the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusable(pub &'static str);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unusable {}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn words_are_unique_snake_case() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        assert!(
            words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
        words.sort_unstable();
        words.dedup();
        assert_eq!(Reason::ALL.len(), words.len());
    }
}
