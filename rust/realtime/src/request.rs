//! The head of a request: a handshake (RFC 6455 section 4.2.1), or one that asks for no upgrade (RFC 9112).
//!
//! Rules:
//! - one request a connection: whatever is refused, and whatever was answered, nothing is read as a second request, so that
//!   nothing can hide behind the first. A request that says it has a body is refused, and so is one whose lines end in
//!   anything but CR LF, or that says twice what may be said once: two readers could understand it differently;
//! - sizes are bounded before anything is looked at.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64ct::{Base64, Encoding};
use httparse::{EMPTY_HEADER, Header, Status};
use memchr::memmem;

/// Bytes of a whole head: a token of 8 KiB twice, and what browsers add.
pub const MAX_HEAD_BYTES: usize = 24 * 1024;
/// Header lines of a head.
pub const MAX_HEADERS: usize = 64;
/// What the key of a handshake is hashed with (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const END: &[u8] = b"\r\n\r\n";

/// Why a request cannot be served, or comes at the wrong time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not HTTP/1.1 as it must be written.
    Malformed,
    /// It has a body, or might have one.
    Body,
    /// More bytes or header lines than are read.
    TooLarge,
    /// It came too slowly.
    Timeout,
    /// Another method than GET; HEAD and OPTIONS are no handshakes.
    Method,
    /// No `Host`, or several.
    Host,
    /// It does not ask for a WebSocket.
    NoUpgrade,
    /// Another version of the protocol than 13.
    Version,
    /// `Sec-WebSocket-Key` is not 16 bytes in base64.
    Key,
    /// `Sec-WebSocket-Extensions` is no list of extensions; looked at where one of them may be taken.
    Extensions,
    /// As many connections as there may be.
    Full,
    /// The listener drains or stops; come back in so many seconds, elsewhere.
    Draining(u32),
}

/// Where the head ends in what was received, when it has; `looked` bytes were searched before.
#[must_use]
pub fn end_of_head(received: &[u8], looked: usize) -> Option<usize> {
    let from = looked.saturating_sub(END.len() - 1);
    memmem::find(&received[from..], END).map(|at| from + at + END.len())
}

/// A request of HTTP/1.1 without a body.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// GET, HEAD or OPTIONS; GET where it asks to become a WebSocket.
    pub method: &'a str,
    /// The target up to the question mark.
    pub path: &'a str,
    /// What follows it.
    pub query: Option<&'a str>,
    /// Where it was sent to.
    pub host: &'a str,
    /// All header lines, in their order.
    pub headers: &'a [Header<'a>],
    /// Of a handshake.
    key: Option<&'a [u8]>,
}

/// Room for the header lines of a request.
#[derive(Debug)]
pub struct Room<'a>([Header<'a>; MAX_HEADERS]);

impl Default for Room<'_> {
    fn default() -> Self {
        Self([EMPTY_HEADER; MAX_HEADERS])
    }
}

impl<'a> Request<'a> {
    /// Reads a whole head, with the empty line at its end.
    pub fn parse(head: &'a [u8], room: &'a mut Room<'a>) -> Result<Self, Fault> {
        if memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r') {
            return Err(Fault::Malformed);
        }
        let mut parsed = httparse::Request::new(&mut room.0);
        match parsed.parse(head) {
            Ok(Status::Complete(size)) if size == head.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Fault::TooLarge),
            Ok(_) | Err(_) => return Err(Fault::Malformed),
        }
        let (Some(method), Some(target), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Fault::Malformed);
        };
        let headers: &'a [Header<'a>] = parsed.headers;
        let is_plain = named(headers, "upgrade").next().is_none();
        if method != "GET" && !(is_plain && matches!(method, "HEAD" | "OPTIONS")) {
            return Err(Fault::Method);
        }
        // An absolute or any other form of target is a proxy's, and this is none (RFC 9112 section 3.2).
        if !target.starts_with('/') || target.contains('#') {
            return Err(Fault::Malformed);
        }
        if named(headers, "content-length").next().is_some() || named(headers, "transfer-encoding").next().is_some() {
            return Err(Fault::Body);
        }
        let host = only(headers, "host").and_then(|host| str::from_utf8(host).ok()).ok_or(Fault::Host)?;
        let key = if is_plain { None } else { Some(key_of(headers)?) };
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        Ok(Self { method, path, query, host, headers, key })
    }

    /// Whether it asks to become a WebSocket.
    #[must_use]
    pub const fn is_handshake(&self) -> bool {
        self.key.is_some()
    }

    /// The values of all header lines of this name, which is written small.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        named(self.headers, name)
    }

    /// The answer that makes a handshake a WebSocket.
    #[must_use]
    pub fn accepted(&self, protocol: Option<&str>, extensions: Option<&str>) -> Option<Vec<u8>> {
        let key = self.key?;
        let mut answer = Vec::with_capacity(192);
        answer.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n");
        for (name, value) in [("sec-websocket-protocol: ", protocol), ("sec-websocket-extensions: ", extensions)] {
            if let Some(value) = value {
                for part in [name, value, "\r\n"] {
                    answer.extend_from_slice(part.as_bytes());
                }
            }
        }
        answer.extend_from_slice(b"sec-websocket-accept: ");
        answer.extend_from_slice(accept(key).as_bytes());
        answer.extend_from_slice(END);
        Some(answer)
    }
}

/// The key of a handshake.
fn key_of<'a>(headers: &'a [Header<'a>]) -> Result<&'a [u8], Fault> {
    if !has_token(headers, "upgrade", "websocket") || !has_token(headers, "connection", "upgrade") {
        return Err(Fault::NoUpgrade);
    }
    if only(headers, "sec-websocket-version") != Some(b"13") {
        return Err(Fault::Version);
    }
    only(headers, "sec-websocket-key").filter(|key| is_key(key)).ok_or(Fault::Key)
}

/// `Sec-WebSocket-Accept` for a key (section 4.2.2).
fn accept(key: &[u8]) -> String {
    Base64::encode_string(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()).as_ref())
}

fn named<'a>(headers: &'a [Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// The value of a header that may be there once.
fn only<'a>(headers: &'a [Header<'a>], name: &'static str) -> Option<&'a [u8]> {
    let mut values = named(headers, name);
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// Whether a token is in a list that may be spread over several lines; its case does not matter.
fn has_token(headers: &[Header<'_>], name: &'static str, token: &str) -> bool {
    named(headers, name)
        .flat_map(|value| value.split(|&byte| byte == b','))
        .any(|entry| entry.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn is_key(key: &[u8]) -> bool {
    let mut bytes = [0; 16];
    key.len() == 24 && Base64::decode(key, &mut bytes).is_ok_and(|bytes| bytes.len() == 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "GET /ws/a?x=1 HTTP/1.1\r\nHost: a.example:8001\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn parse(head: &str) -> Result<(String, Option<String>, String), Fault> {
        let mut room = Room::default();
        let request = Request::parse(head.as_bytes(), &mut room)?;
        Ok((request.path.to_owned(), request.query.map(str::to_owned), request.host.to_owned()))
    }

    #[test]
    fn the_example_of_section_1_3_is_accepted_as_it_says() {
        let mut room = Room::default();
        let request = Request::parse(GOOD.as_bytes(), &mut room).unwrap();
        let answer = |subprotocol| String::from_utf8(request.accepted(subprotocol, subprotocol).unwrap()).unwrap();
        assert!(request.is_handshake() && !answer(None).contains("protocol:") && !answer(None).contains("extensions:"));
        let answer = answer(Some("flx.v1"));
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"));
        assert!(answer.contains("\r\nsec-websocket-protocol: flx.v1\r\nsec-websocket-extensions: flx.v1\r\n"));
        assert_eq!(("/ws/a", Some("x=1"), "a.example:8001"), (request.path, request.query, request.host));
    }

    #[test]
    fn lists_are_lists_and_their_case_does_not_matter() {
        for (from, to) in [
            ("Connection: Upgrade", "connection: keep-alive, UPGRADE"),
            ("Connection: Upgrade", "Connection: keep-alive\r\nConnection: upgrade"),
            ("Upgrade: websocket", "UPGRADE: WebSocket"),
            ("Host: a.example:8001", "Host:\ta.example:8001 "),
        ] {
            assert!(parse(&GOOD.replace(from, to)).is_ok(), "{to}");
        }
    }

    #[test]
    fn what_is_no_handshake_is_told_what_it_lacks() {
        for (from, to, fault) in [
            ("GET ", "POST ", Fault::Method),
            ("GET ", "HEAD ", Fault::Method),
            ("HTTP/1.1", "HTTP/1.0", Fault::Malformed),
            ("HTTP/1.1", "HTTP/2.0", Fault::Malformed),
            ("GET /ws/a?x=1 HTTP/1.1", "PRI * HTTP/2.0", Fault::Malformed),
            ("/ws/a?x=1", "http://evil/ws/a", Fault::Malformed),
            ("/ws/a?x=1", "/ws/a#b", Fault::Malformed),
            ("/ws/a?x=1", "", Fault::Malformed),
            ("Host: a.example:8001\r\n", "", Fault::Host),
            ("Host:", "Host: b\r\nHost:", Fault::Host),
            ("Host: a.example", "Host: \u{e9}\u{0}", Fault::Malformed),
            ("Upgrade: websocket", "Upgrade: websockets", Fault::NoUpgrade),
            ("Connection: Upgrade", "Connection: close", Fault::NoUpgrade),
            ("Version: 13", "Version: 8", Fault::Version),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13", Fault::Version),
            ("Version: 13", "Version: 13, 8", Fault::Version),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", Fault::Key),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", Fault::Key),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZSE=", Fault::Key),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZR==", Fault::Key),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub2-_ZQ==", Fault::Key),
        ] {
            assert_ne!(GOOD, GOOD.replace(from, to), "{from}");
            assert_eq!(Err(fault), parse(&GOOD.replace(from, to)), "{to}");
        }
    }

    #[test]
    fn what_asks_for_no_upgrade_is_no_handshake() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let head = GOOD.replace("Upgrade: websocket\r\n", "").replace("GET", method);
            let mut room = Room::default();
            let request = Request::parse(head.as_bytes(), &mut room).unwrap();
            assert_eq!((method, false, None), (request.method, request.is_handshake(), request.accepted(None, None)));
        }
        for method in ["POST", "DELETE", "CONNECT"] {
            let head = GOOD.replace("Upgrade: websocket\r\n", "").replace("GET", method);
            assert_eq!(Err(Fault::Method), parse(&head));
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (to, fault) in [
            ("Content-Length: 0\r\nHost:", Fault::Body),
            ("Content-Length: 5\r\nHost:", Fault::Body),
            ("Transfer-Encoding: chunked\r\nHost:", Fault::Body),
            ("transfer-encoding: identity\r\nHost:", Fault::Body),
            ("X-A: 1\nHost:", Fault::Malformed),
            ("X-A: 1\n\nHost:", Fault::Malformed),
            ("X-A : 1\r\nHost:", Fault::Malformed),
            (" X-A: 1\r\nHost:", Fault::Malformed),
            ("X-A: 1\r\n folded\r\nHost:", Fault::Malformed),
            ("X-A: 1\rX-B: 2\r\nHost:", Fault::Malformed),
            ("X-A: a\0b\r\nHost:", Fault::Malformed),
            ("X A: 1\r\nHost:", Fault::Malformed),
            (": 1\r\nHost:", Fault::Malformed),
            ("no colon\r\nHost:", Fault::Malformed),
        ] {
            assert_eq!(Err(fault), parse(&GOOD.replace("Host:", to)), "{to}");
        }
        assert_eq!(Err(Fault::Malformed), parse(&GOOD.replace("\r\n", "\n")));
        let many = "X-A: 1\r\n".repeat(MAX_HEADERS);
        assert_eq!(Err(Fault::TooLarge), parse(&GOOD.replace("Host:", &format!("{many}Host:"))));
    }

    proptest! {
        #[test]
        fn the_end_is_found_in_whatever_pieces_it_comes(before in "[a\r\n]{0,12}", sizes in prop::collection::vec(1_usize..4, 1..4)) {
            let stream = format!("{before}\r\n\r\nrest");
            let expected = stream.find("\r\n\r\n").map(|at| at + 4);
            let (mut received, mut sizes) = (0, sizes.iter().cycle());
            let found = loop {
                let looked = received;
                received = stream.len().min(received + sizes.next().copied().unwrap_or(1));
                if let Some(end) = end_of_head(&stream.as_bytes()[..received], looked) {
                    break Some(end);
                }
            };
            prop_assert_eq!(expected, found);
        }

        /// One slip anywhere in a good head: it is refused, or no handshake, or one with a key still.
        #[test]
        fn a_slip_makes_no_other_handshake(at in 0..GOOD.len(), byte: u8) {
            let mut head = GOOD.as_bytes().to_vec();
            head[at] = byte;
            let mut room = Room::default();
            if let Ok(request) = Request::parse(&head, &mut room) {
                prop_assert!(request.key.is_none_or(is_key));
                prop_assert!(request.headers.len() <= 5 && request.path.starts_with('/'));
            }
        }

        #[test]
        fn any_bytes_are_survived(mut head: Vec<u8>) {
            head.extend_from_slice(END);
            let mut room = Room::default();
            let _ = Request::parse(&head, &mut room);
        }
    }
}
