//! The head of a request: one walk over its headers takes what admission decides by.
//!
//! Rules:
//! - a header that decides something may occur once; where a second one could be read by somebody else, that is remembered;
//! - values are kept as they were given and are judged only when they are needed;
//! - names are compared without case, although servers send them in lower case.

use super::credentials::Presented;
use crate::error::Reason;

/// A header that may occur at most once.
#[derive(Debug)]
pub enum Once<V> {
    /// Not given.
    Absent,
    /// Given.
    One(V),
    /// Given twice or more.
    Several,
}

impl<V> Once<V> {
    fn see(&mut self, value: V) {
        *self = match self {
            Self::Absent => Self::One(value),
            Self::One(_) | Self::Several => Self::Several,
        };
    }

    /// The value, if there is exactly one.
    pub fn one(&self) -> Option<&V> {
        match self {
            Self::One(value) => Some(value),
            Self::Absent | Self::Several => None,
        }
    }
}

/// What is in the headers, `V` being whatever keeps a value alive.
#[derive(Debug)]
pub struct Head<V> {
    /// `Authorization`
    pub authorization: Presented<V>,
    /// `Host`
    pub host: Once<V>,
    /// `Content-Length`
    pub length: Once<V>,
    /// `Content-Encoding`
    pub encoding: Once<V>,
    /// `Content-Type`
    pub media: Once<V>,
    /// `X-Request-ID`, the last one.
    pub request_id: Option<V>,
    /// `X-API-Key`, the last one.
    pub api_key: Option<V>,
    /// `Idempotency-Key`
    pub idempotency_key: Once<V>,
    /// `traceparent`, the last one.
    pub traceparent: Option<V>,
    /// `X-Forwarded-For`, all of them in order.
    pub forwarded_for: Vec<V>,
    /// `Forwarded`, all of them in order.
    pub forwarded: Vec<V>,
    /// Whether there is a `Transfer-Encoding`.
    pub chunked: bool,
    /// Whether there is an `Origin`.
    pub origin: bool,
}

impl<V> Default for Head<V> {
    fn default() -> Self {
        Self {
            authorization: Presented::Nothing,
            host: Once::Absent,
            length: Once::Absent,
            encoding: Once::Absent,
            media: Once::Absent,
            request_id: None,
            api_key: None,
            idempotency_key: Once::Absent,
            traceparent: None,
            forwarded_for: Vec::new(),
            forwarded: Vec::new(),
            chunked: false,
            origin: false,
        }
    }
}

/// What a body is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    Absent,
    /// So many bytes.
    Sized(u64),
    /// It ends when it ends.
    Streamed,
}

/// A header that decides something, or travels with a command.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// `Authorization`
    Authorization,
    /// `Host`
    Host,
    /// `Origin`
    Origin,
    /// `X-API-Key`
    ApiKey,
    /// `Idempotency-Key`
    IdempotencyKey,
    /// `traceparent`
    Traceparent,
    /// `Forwarded`
    Forwarded,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `X-Request-ID`
    RequestId,
    /// `Content-Type`
    Media,
    /// `Content-Length`
    Length,
    /// `Content-Encoding`
    Encoding,
    /// `Transfer-Encoding`
    Chunked,
}

impl Field {
    /// The field of this name, if it is one.
    #[must_use]
    #[inline]
    pub fn of(name: &[u8]) -> Option<Self> {
        // Nearly all names end here, without a comparison.
        let place = PLACES.get(usize::from(name.first()? & 0x1f) << 5 | name.len())?;
        let (lower, field) = FIELDS.get(usize::from(*place))?;
        (name == *lower || name.eq_ignore_ascii_case(lower)).then_some(*field)
    }
}

/// The fields by their names in lower case, as nearly all servers send them.
static FIELDS: [(&[u8], Field); 13] = [
    (b"host", Field::Host),
    (b"authorization", Field::Authorization),
    (b"content-length", Field::Length),
    (b"content-type", Field::Media),
    (b"x-request-id", Field::RequestId),
    (b"origin", Field::Origin),
    (b"x-forwarded-for", Field::ForwardedFor),
    (b"forwarded", Field::Forwarded),
    (b"x-api-key", Field::ApiKey),
    (b"idempotency-key", Field::IdempotencyKey),
    (b"traceparent", Field::Traceparent),
    (b"content-encoding", Field::Encoding),
    (b"transfer-encoding", Field::Chunked),
];

/// Which field it may be, by the place of its first letter in the alphabet and its length; no two have both in common, and
/// none is longer than 31.
static PLACES: [u8; 1 << 10] = {
    let (mut places, mut at) = ([u8::MAX; 1 << 10], 0);
    while at < FIELDS.len() {
        let name = FIELDS[at].0;
        places[((name[0] & 0x1f) as usize) << 5 | name.len()] = at as u8;
        at += 1;
    }
    places
};

impl<V: AsRef<[u8]>> Head<V> {
    /// Takes in one header.
    pub fn take(&mut self, field: Field, value: V) {
        match field {
            Field::Authorization => self.authorization.take(value),
            Field::Host => self.host.see(value),
            Field::Origin => self.origin = true,
            Field::ApiKey => self.api_key = Some(value),
            Field::IdempotencyKey => self.idempotency_key.see(value),
            Field::Traceparent => self.traceparent = Some(value),
            Field::Forwarded => self.forwarded.push(value),
            Field::ForwardedFor => self.forwarded_for.push(value),
            Field::RequestId => self.request_id = Some(value),
            Field::Media => self.media.see(value),
            Field::Length => self.length.see(value),
            Field::Encoding => self.encoding.see(value),
            Field::Chunked => self.chunked = true,
        }
    }

    /// The client's own request id, when it is a sane token.
    #[must_use]
    pub fn sane_request_id(&self) -> Option<&V> {
        let given = self.request_id.as_ref()?;
        let text = given.as_ref();
        (!text.is_empty() && text.len() <= 128 && in_names(text)).then_some(given)
    }

    /// Whether there is one acceptable Host, and one of `hosts` unless that is empty (lower case, without a port).
    #[must_use]
    pub fn host_is_sound(&self, hosts: &[Vec<u8>]) -> bool {
        let Some(host) = self.host.one().and_then(|value| bare_host(value.as_ref())) else {
            return false;
        };
        hosts.is_empty() || hosts.iter().any(|known| **known == *host || known.eq_ignore_ascii_case(host))
    }

    /// Whether both headers tell where the body ends, so that two readers may disagree on it (RFC 9112 section 6.3).
    #[must_use]
    pub fn has_two_lengths(&self) -> bool {
        self.chunked && !matches!(self.length, Once::Absent) || matches!(self.length, Once::Several)
    }

    /// What the body is said to be, or why it is refused unread. `streams`: one may follow although nothing says so.
    pub fn body(&self, limit: u64, streams: bool) -> Result<Body, Reason> {
        if self.has_two_lengths() {
            return Err(Reason::TwoLengths);
        }
        if matches!(self.idempotency_key, Once::Several) {
            return Err(Reason::TwoKeys);
        }
        let identity = |value: &V| value.as_ref().eq_ignore_ascii_case(b"identity");
        if !matches!(self.encoding, Once::Absent) && !self.encoding.one().is_some_and(identity) {
            return Err(Reason::UnsupportedEncoding);
        }
        let body = match &self.length {
            Once::One(value) => match length(value.as_ref()).ok_or(Reason::InvalidLength)? {
                0 => Body::Absent,
                length if length > limit => return Err(Reason::PayloadTooLarge),
                length => Body::Sized(length),
            },
            _ if self.chunked || streams => Body::Streamed,
            _ => Body::Absent,
        };
        if matches!(body, Body::Sized(_)) && !self.media_is_json() {
            return Err(Reason::UnsupportedMediaType);
        }
        Ok(body)
    }

    /// Whether the body is JSON in UTF-8 (RFC 8259; a charset parameter may only confirm it).
    #[must_use]
    pub fn media_is_json(&self) -> bool {
        let Some(value) = self.media.one() else { return false };
        let mut rest = &b"application/json;charset=utf-8"[..];
        let mut taken = 0;
        for &byte in value.as_ref().iter().filter(|&&byte| byte != b' ' && byte != b'"') {
            let [expected, tail @ ..] = rest else { return false };
            if !byte.eq_ignore_ascii_case(expected) {
                return false;
            }
            rest = tail;
            taken += 1;
        }
        taken == 16 || rest.is_empty()
    }
}

/// The bytes of a host's name, and of a request's id.
static IN_NAMES: [bool; 256] = {
    let mut found = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        found[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'.' | b'_' | b'-');
        byte += 1;
    }
    found
};

/// Whether all bytes may stand in a name; without a way out in between, which costs more than it saves on short texts.
fn in_names(text: &[u8]) -> bool {
    text.iter().fold(true, |all, &byte| all & IN_NAMES[usize::from(byte)])
}

/// A host without its port, when it is a name, an IPv4 address, or an IPv6 address in brackets.
fn bare_host(text: &[u8]) -> Option<&[u8]> {
    let (end, sound) = if let [b'[', rest @ ..] = text {
        let end = rest.iter().position(|&byte| byte == b']')?;
        let inner = &rest[..end];
        let sound = inner.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
        (end + 2, sound && (2..=45).contains(&inner.len()))
    } else {
        // Whatever ends the name is the colon of a port, or it must not be there: then it is no port either.
        let end = text.iter().position(|&byte| !IN_NAMES[usize::from(byte)]).unwrap_or(text.len());
        (end, (1..=253).contains(&end))
    };
    let (host, port) = text.split_at(end);
    let port_is_sound = match port {
        [] => true,
        [b':', digits @ ..] => (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    (sound && port_is_sound).then_some(host)
}

fn length(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    // More digits than a number holds is as good as the largest number: it is over any limit.
    digits.then(|| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(headers: &[(&str, &str)]) -> Head<Vec<u8>> {
        let mut head = Head::default();
        for (name, value) in headers {
            if let Some(field) = Field::of(name.as_bytes()) {
                head.take(field, value.as_bytes().to_vec());
            }
        }
        head
    }

    #[test]
    fn names_have_no_case_and_no_neighbours() {
        let decides = |name: &str| Field::of(name.as_bytes()).is_some();
        for name in [
            "authorization",
            "host",
            "origin",
            "x-api-key",
            "forwarded",
            "x-forwarded-for",
            "x-request-id",
            "content-type",
            "content-length",
            "content-encoding",
            "transfer-encoding",
        ] {
            let upper = name.to_uppercase();
            assert!(decides(name) && decides(&upper) && decides(&[&upper[..1], &name[1..]].concat()), "{name}");
            let other = [&name[..name.len() - 1], "_"].concat();
            assert!(!decides(&other) && !decides(&name[1..]) && !decides(&[name, "x"].concat()), "{name}");
        }
        assert!(!decides("") && !decides("x-authorization") && !decides("\u{8}ost"));
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for good in ["a", "a.example:80", "127.0.0.1:8000", "[::1]", "[::1]:8000", "A_b-c.d"] {
            assert!(head(&[("host", good)]).host_is_sound(&[]), "{good}");
        }
        for bad in ["", "a@b/c", "a:", "a:b", "a:123456", "[::1", "[]", "[::1]x", "a b", "[::g]", ":80"] {
            assert!(!head(&[("host", bad)]).host_is_sound(&[]), "{bad}");
        }
        assert!(!head(&[("host", "a"), ("Host", "a")]).host_is_sound(&[]));
        assert!(!head(&[]).host_is_sound(&[]));
        let known = [b"api.example".to_vec()];
        assert!(head(&[("host", "API.example:1")]).host_is_sound(&known));
        assert!(!head(&[("host", "api.example.evil")]).host_is_sound(&known));
    }

    /// Piece by piece, as the rule has it.
    fn bare_host_twin(text: &[u8]) -> Option<&[u8]> {
        let end = match text {
            [b'[', rest @ ..] => rest.iter().position(|&byte| byte == b']')? + 2,
            _ => text.iter().position(|&byte| byte == b':').unwrap_or(text.len()),
        };
        let (host, port) = text.split_at(end);
        let sound = match host {
            [b'[', inner @ .., b']'] => {
                (2..=45).contains(&inner.len())
                    && inner.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
            }
            name => (1..=253).contains(&name.len()) && in_names(name),
        };
        let port_is_sound = match port {
            [] => true,
            [b':', digits @ ..] => (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        (sound && port_is_sound).then_some(host)
    }

    proptest! {
        #[test]
        fn hosts_are_read_as_by_the_rule(text in r"(\[?[a-f0-9:.\]]{0,4}|[a-z._ @é-]{0,4}|a{250,256})\]?(:[0-9]{0,6}|)[x:]?") {
            prop_assert_eq!(bare_host_twin(text.as_bytes()), bare_host(text.as_bytes()));
        }
    }

    #[test]
    fn bodies_are_of_one_length_one_kind_and_within_the_limit() {
        let json = ("content-type", "application/json");
        for (headers, streams, expected) in [
            (&[][..], false, Ok(Body::Absent)),
            (&[], true, Ok(Body::Streamed)),
            (&[("content-length", "0")], true, Ok(Body::Absent)),
            (&[("content-length", "10"), json], false, Ok(Body::Sized(10))),
            (&[("content-length", "11"), json], false, Err(Reason::PayloadTooLarge)),
            (&[("content-length", "99999999999999999999999"), json], false, Err(Reason::PayloadTooLarge)),
            (&[("content-length", "+2"), json], false, Err(Reason::InvalidLength)),
            (&[("content-length", ""), json], false, Err(Reason::InvalidLength)),
            (&[("content-length", "1, 1"), json], false, Err(Reason::InvalidLength)),
            (&[("content-length", "1"), ("content-length", "1"), json], false, Err(Reason::TwoLengths)),
            (&[("content-length", "1"), ("transfer-encoding", "chunked"), json], false, Err(Reason::TwoLengths)),
            (&[("transfer-encoding", "chunked")], false, Ok(Body::Streamed)),
            (&[("content-encoding", "gzip")], false, Err(Reason::UnsupportedEncoding)),
            (&[("content-encoding", "Identity")], false, Ok(Body::Absent)),
            (&[("content-length", "1")], false, Err(Reason::UnsupportedMediaType)),
        ] {
            assert_eq!(expected, head(headers).body(10, streams), "{headers:?}");
        }
    }

    #[test]
    fn json_is_utf_8() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=\"UTF-8\"",
            "application/json;charset=utf-8",
        ] {
            assert!(head(&[("content-type", good)]).media_is_json(), "{good}");
        }
        for bad in [
            "",
            "text/json",
            "application/json;",
            "application/json; charset=latin1",
            "application/jsonx",
            "application/js",
        ] {
            assert!(!head(&[("content-type", bad)]).media_is_json(), "{bad}");
        }
        assert!(!head(&[("content-type", "application/json"), ("content-type", "application/json")]).media_is_json());
    }

    #[test]
    fn request_ids_are_sane_or_not_taken() {
        assert_eq!(Some(&b"a-B_1.2".to_vec()), head(&[("x-request-id", "a-B_1.2")]).sane_request_id());
        for bad in ["", "a b", "é", "a\"", &"x".repeat(129)] {
            assert_eq!(None, head(&[("x-request-id", bad)]).sane_request_id(), "{bad}");
        }
    }
}
