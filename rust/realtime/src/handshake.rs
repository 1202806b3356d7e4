//! What a WebSocket handshake is answered with, before anything is accepted.
//!
//! Rules:
//! - `Sec-WebSocket-Protocol` is a list of unique tokens (RFC 6455 section 4.1). `flx.v1` may be chosen; one
//!   `bearer.<token>` entry carries the credentials, because a browser can set no other header, and is never chosen, so
//!   that it is not echoed. Other names are ignored. A list that is malformed is refused whole;
//! - `Origin` is compared as scheme, host and port with an allow-list, or with the host the request was sent to. Nothing is
//!   matched by prefix or suffix, `null` is nobody, and only browsers send the header: absence is no offence.

/// The one subprotocol there is.
pub const SUBPROTOCOL: &str = "flx.v1";
/// The prefix of the entry that carries a token.
const BEARER: &str = "bearer.";
/// Bytes of the whole header: a token of 8 KiB and some names.
const MAX_HEADER_BYTES: usize = 9 * 1024;
/// Entries of the list.
const MAX_ENTRIES: usize = 16;

/// What a client offered in `Sec-WebSocket-Protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The subprotocol to answer with; none means the plain protocol and no answer header.
    pub subprotocol: Option<&'static str>,
    /// The token of a `bearer.` entry.
    pub token: Option<&'a str>,
}

/// The list of subprotocols is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedList;

/// Reads the header; several header lines are to be joined with a comma before.
pub fn negotiate(header: Option<&str>) -> Result<Offer<'_>, MalformedList> {
    let Some(header) = header else {
        return Ok(Offer::default());
    };
    if header.len() > MAX_HEADER_BYTES {
        return Err(MalformedList);
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut offer = Offer::default();
    for entry in header.split(',') {
        let entry = entry.trim_matches([' ', '\t']);
        if !is_token(entry) || seen.contains(&entry) || seen.len() == MAX_ENTRIES {
            return Err(MalformedList);
        }
        seen.push(entry);
        if entry == SUBPROTOCOL {
            offer.subprotocol = Some(SUBPROTOCOL);
        } else if let Some(token) = entry.strip_prefix(BEARER) {
            if token.is_empty() || offer.token.is_some() {
                return Err(MalformedList);
            }
            offer.token = Some(token);
        }
    }
    Ok(offer)
}

/// A token of RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a handshake from `origin`, sent to `host`, may go on.
pub fn origin_allowed<S: AsRef<str>>(origin: Option<&str>, host: Option<&str>, allowed: &[S]) -> bool {
    let Some(origin) = origin else {
        return true;
    };
    let Some(origin) = Origin::parse(origin) else {
        return false;
    };
    let listed = allowed.iter().any(|entry| Origin::parse(entry.as_ref()).is_some_and(|entry| entry.equals(&origin)));
    // Behind a proxy the scheme of the request is unknown; a page of this very host is welcome under either.
    listed || host.and_then(|host| Origin::of(origin.scheme, host)).is_some_and(|own| own.equals(&origin))
}

/// A serialised origin (RFC 6454 section 6.2) with its default port made explicit.
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: u16,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Self::of(scheme, authority)
    }

    fn of(scheme: &'a str, authority: &'a str) -> Option<Self> {
        let default = if scheme.eq_ignore_ascii_case("https") {
            443
        } else if scheme.eq_ignore_ascii_case("http") {
            80
        } else {
            return None;
        };
        // The last colon, unless it is inside the brackets of an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, parse_port(port)?),
            _ => (authority, default),
        };
        is_host(host).then_some(Self { scheme, host, port })
    }

    fn equals(&self, other: &Self) -> bool {
        self.port == other.port
            && self.scheme.eq_ignore_ascii_case(other.scheme)
            && self.host.eq_ignore_ascii_case(other.host)
    }
}

fn parse_port(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok().filter(|&port| port > 0) } else { None }
}

/// A name, an IPv4 address or a bracketed IPv6 address: no user, path or space can hide in it.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) => !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte)),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer(header: &str) -> Result<(Option<&str>, Option<&str>), MalformedList> {
        negotiate(Some(header)).map(|offer| (offer.subprotocol, offer.token))
    }

    #[test]
    fn subprotocol_and_token_are_found_in_any_order() {
        assert_eq!(Ok(Offer::default()), negotiate(None));
        assert_eq!(Ok((Some("flx.v1"), None)), offer("flx.v1"));
        assert_eq!(Ok((Some("flx.v1"), Some("a.b-c_d"))), offer("flx.v1, bearer.a.b-c_d"));
        assert_eq!(Ok((Some("flx.v1"), Some("a"))), offer(" bearer.a ,\tgraphql-ws,flx.v1"));
        assert_eq!(Ok((None, Some("a"))), offer("bearer.a"));
        assert_eq!(Ok((None, None)), offer("FLX.V1, flx.v2, Bearer.x"));
    }

    #[test]
    fn malformed_lists_are_refused_whole() {
        let many = (0..17).map(|n| format!("p{n}")).collect::<Vec<_>>().join(",");
        let long = format!("bearer.{}", "a".repeat(MAX_HEADER_BYTES));
        for bad in [
            "",
            " ",
            ",",
            "flx.v1,",
            ",flx.v1",
            "flx.v1,,x",
            "flx.v1 x",
            "flx.v1,flx.v1",
            "bearer.a,bearer.b",
            "bearer.",
            "flx.v1;x",
            "bearer.a=",
            "bearer.a/b",
            "\"flx.v1\"",
            "flx.v1\n",
            "é",
            &many,
            &long,
        ] {
            assert_eq!(Err(MalformedList), offer(bad), "{bad}");
        }
    }

    #[test]
    fn origins_are_compared_exactly() {
        let allowed = ["https://app.example.com", "http://localhost:3000", "https://[2001:db8::1]:8443"];
        let ask = |origin| origin_allowed(Some(origin), Some("api.example.com:8000"), &allowed);
        for good in [
            "https://app.example.com",
            "https://app.example.com:443",
            "HTTPS://APP.example.com",
            "http://localhost:3000",
            "https://[2001:db8::1]:8443",
            "https://api.example.com:8000",
            "http://api.example.com:8000",
        ] {
            assert!(ask(good), "{good}");
        }
        for bad in [
            "null",
            "",
            "https://app.example.com.evil",
            "https://evil-app.example.com",
            "https://app.example.com.",
            "https://app.example.com:444",
            "http://app.example.com",
            "https://app.example.com/",
            "https://x@app.example.com",
            "https://app.example.com https://evil",
            "https://app.example.com:",
            "https://app.example.com:+443",
            "https://evil/https://app.example.com",
            "file://",
            "app.example.com",
            "https://",
            "http://localhost",
            "https://example.com",
            "https://api.example.com",
            "ws://app.example.com",
            "https://app.example.com\0",
        ] {
            assert!(!ask(bad), "{bad}");
        }
    }

    #[test]
    fn absence_is_no_offence_and_null_is_nobody() {
        assert!(origin_allowed(None, None, &[] as &[&str]));
        assert!(!origin_allowed(Some("null"), Some("null"), &["null", "*"]));
        assert!(!origin_allowed(Some("https://a"), None, &["*"]));
        assert!(origin_allowed(Some("https://a"), Some("A:443"), &[] as &[&str]));
        assert!(!origin_allowed(Some("https://a"), Some("a:80"), &[] as &[&str]));
    }

    proptest! {
        #[test]
        fn an_unlisted_text_is_never_allowed(text in "\\PC{0,40}") {
            let allowed = ["https://app.example.com"];
            let expected = ["https://app.example.com", "https://app.example.com:443"].iter().any(|x| x.eq_ignore_ascii_case(&text));
            prop_assert_eq!(expected, origin_allowed(Some(&text), None, &allowed));
        }

        #[test]
        fn no_header_makes_it_panic(text in "\\PC{0,60}") {
            let _ = negotiate(Some(&text));
        }
    }
}
