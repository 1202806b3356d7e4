//! The bearer token of a request (RFC 6750, RFC 9110 section 11).
//!
//! Rules: at most one `Authorization` header; the scheme in any case; then exactly one space and one token68. Another
//! scheme is no bearer credentials at all, which is a different answer from bad ones.

use crate::error::Reason;

/// The `Authorization` headers of a request, while its header list is walked.
#[derive(Debug)]
pub enum Presented<V> {
    /// None yet.
    Nothing,
    /// One.
    One(V),
    /// Two or more: nobody can say which one a proxy in front has looked at.
    Several,
}

impl<V> Presented<V> {
    /// Takes in one header.
    pub fn take(&mut self, value: V) {
        *self = match self {
            Self::Nothing => Self::One(value),
            Self::One(_) | Self::Several => Self::Several,
        };
    }

    /// Whether there is any.
    pub const fn is_given(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    /// The one value, or why there is none.
    pub fn only(&self) -> Result<&V, Reason> {
        match self {
            Self::Nothing => Err(Reason::MissingToken),
            Self::One(value) => Ok(value),
            Self::Several => Err(Reason::InvalidRequest),
        }
    }
}

/// What follows the scheme in the value of an `Authorization` header. Whether that is a token is asked of what is not known
/// yet ([`is_token68`]): a token that stood before is one.
pub fn bearer(value: &[u8]) -> Result<&[u8], Reason> {
    // As everybody writes it.
    if let Some((b"Bearer ", token)) = value.split_first_chunk() {
        return Ok(token);
    }
    match value.split_at_checked(6) {
        Some((scheme, [b' ', token @ ..])) if scheme.eq_ignore_ascii_case(b"bearer") => Ok(token),
        Some((scheme, [])) if scheme.eq_ignore_ascii_case(b"bearer") => Err(Reason::MalformedCredentials),
        _ => Err(Reason::MissingToken),
    }
}

/// Whether this is one token of RFC 9110 section 11.2, and nothing beside it.
#[must_use]
pub fn is_token68(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let body = &text[..text.len() - padding];
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    !body.is_empty() && body.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_is_one_space_and_one_token() {
        for good in [&b"Bearer a.b-c_d~e+f/g=="[..], b"bearer a", b"BEARER a"] {
            assert_eq!(Ok(&good[7..]), bearer(good));
            assert!(is_token68(&good[7..]));
        }
        for bad in [
            &b"Bearer"[..],
            b"Bearer ",
            b"Bearer  a",
            b"Bearer a b",
            b"Bearer a ",
            b"Bearer =",
            b"Bearer a,b",
            b"Bearer \xff",
        ] {
            assert!(bearer(bad).map_or(true, |token| !is_token68(token)), "{bad:?}");
        }
        for other in [&b""[..], b" ", b"Basic YTpi", b"Bearerx a", b"Bearer\ta", b" Bearer a"] {
            assert_eq!(Err(Reason::MissingToken), bearer(other), "{other:?}");
        }
    }

    #[test]
    fn two_headers_are_the_requests_fault() {
        let mut presented = Presented::Nothing;
        assert_eq!((Err(Reason::MissingToken), false), (presented.only(), presented.is_given()));
        presented.take(1);
        assert!(presented.is_given());
        assert_eq!(Ok(&1), presented.only());
        presented.take(2);
        presented.take(3);
        assert_eq!(Err(Reason::InvalidRequest), presented.only());
    }
}
