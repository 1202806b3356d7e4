//! The header walk beside a slow reader that keeps all headers and looks through them for each question; any bytes will do.

use flx_core::admission::client::{Proxies, ProxyHeader};
use flx_core::admission::head::{Body, Field, Head};
use flx_core::error::Reason;
use proptest::collection::vec;
use proptest::prelude::*;

const LIMIT: u64 = 1_000;

type Header = (Vec<u8>, Vec<u8>);

/// The twin.
struct Slow<'a>(&'a [Header]);

impl<'a> Slow<'a> {
    fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let named = |header: &&Header| header.0.to_ascii_lowercase() == name.as_bytes();
        self.0.iter().filter(named).map(|header| &header.1[..]).collect()
    }

    fn body(&self, streams: bool) -> Result<Body, Reason> {
        let (lengths, chunked) = (self.all("content-length"), !self.all("transfer-encoding").is_empty());
        if lengths.len() > 1 || (chunked && !lengths.is_empty()) {
            return Err(Reason::TwoLengths);
        }
        if self.all("idempotency-key").len() > 1 {
            return Err(Reason::TwoKeys);
        }
        let encodings = self.all("content-encoding");
        if !encodings.is_empty() && (encodings.len() > 1 || !encodings[0].eq_ignore_ascii_case(b"identity")) {
            return Err(Reason::UnsupportedEncoding);
        }
        let Some(text) = lengths.first() else {
            return Ok(if chunked || streams { Body::Streamed } else { Body::Absent });
        };
        if text.is_empty() || text.iter().any(|byte| !byte.is_ascii_digit()) {
            return Err(Reason::InvalidLength);
        }
        let digits: Vec<u8> = text.iter().copied().skip_while(|&byte| byte == b'0').collect();
        if digits.is_empty() {
            return Ok(Body::Absent);
        }
        let length =
            digits.iter().fold(0_u64, |sum, byte| sum.saturating_mul(10).saturating_add(u64::from(byte - b'0')));
        if length > LIMIT {
            return Err(Reason::PayloadTooLarge);
        }
        let media = self.all("content-type");
        let plain = |text: &[u8]| -> Vec<u8> {
            text.iter().filter(|&&byte| byte != b' ' && byte != b'"').map(u8::to_ascii_lowercase).collect()
        };
        let json = media.len() == 1
            && [&b"application/json"[..], b"application/json;charset=utf-8"].contains(&&plain(media[0])[..]);
        if json { Ok(Body::Sized(length)) } else { Err(Reason::UnsupportedMediaType) }
    }

    fn request_id(&self) -> Option<String> {
        let last = String::from_utf8(self.all("x-request-id").last()?.to_vec()).ok()?;
        let sane = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        ((1..=128).contains(&last.len()) && last.chars().all(sane)).then_some(last)
    }

    fn host_is_sound(&self) -> bool {
        let hosts = self.all("host");
        let Ok(text) = hosts.first().map_or(Err(()), |host| str::from_utf8(host).map_err(|_| ())) else { return false };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((inner, "")) => (format!("[{inner}]"), "0"),
                Some((inner, port)) if port.starts_with(':') => (format!("[{inner}]"), &port[1..]),
                _ => return false,
            },
            None => text.split_once(':').map_or((text.to_owned(), "0"), |(host, port)| (host.to_owned(), port)),
        };
        let named = match host.strip_prefix('[') {
            Some(inner) => {
                let inner = inner.trim_end_matches(']');
                (2..=45).contains(&inner.len()) && inner.chars().all(|it| it.is_ascii_hexdigit() || ".:".contains(it))
            }
            None => {
                (1..=253).contains(&host.len())
                    && host.chars().all(|it| it.is_ascii_alphanumeric() || "._-".contains(it))
            }
        };
        hosts.len() == 1 && named && (1..=5).contains(&port.len()) && port.chars().all(|it| it.is_ascii_digit())
    }
}

fn header() -> impl Strategy<Value = Header> {
    let names = prop::sample::select(vec![
        "host",
        "Host",
        "content-length",
        "Content-Length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "Transfer-Encoding",
        "x-request-id",
        "X-Request-ID",
        "idempotency-key",
        "Idempotency-Key",
        "x-forwarded-for",
        "forwarded",
        "authorization",
        "proxy-length",
        "content-lengtj",
    ]);
    let values = prop_oneof![
        prop::sample::select(vec![
            &b"0"[..],
            b"00",
            b"12",
            b"1000",
            b"1001",
            b"+1",
            b"99999999999999999999999999",
            b"application/json",
            b"Application/JSON; charset=\"utf-8\"",
            b"application/json; charset=latin-1",
            b"identity",
            b"gzip",
            b"chunked",
            b"a.example",
            b"a.example:80",
            b"a.example:",
            b"[::1]:8000",
            b"[::1]",
            b"[",
            b"10.0.0.9, 10.0.0.1",
            b"for=10.0.0.9;by=x, for=\"[::1]:5\"",
        ])
        .prop_map(<[u8]>::to_vec),
        vec(any::<u8>(), 0..20),
        "[ -~]{0,12}".prop_map(String::into_bytes),
    ];
    let any_name = prop_oneof![
        8 => names.prop_map(|name| name.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..18),
    ];
    (any_name, values)
}

proptest! {
    #[test]
    fn the_walk_answers_as_the_slow_reader_does(headers in vec(header(), 0..8), streams in any::<bool>()) {
        let mut head = Head::default();
        for (name, value) in &headers {
            if let Some(field) = Field::of(name) {
                head.take(field, value.clone());
            }
        }
        let slow = Slow(&headers);
        prop_assert_eq!(slow.body(streams), head.body(LIMIT, streams));
        prop_assert_eq!(slow.request_id(), head.sane_request_id().and_then(|it| String::from_utf8(it.clone()).ok()));
        prop_assert_eq!(slow.host_is_sound(), head.host_is_sound(&[]));
        let lengths = slow.all("content-length").len();
        let chunked = !slow.all("transfer-encoding").is_empty();
        prop_assert_eq!(lengths > 1 || (chunked && lengths > 0), head.has_two_lengths());
        prop_assert_eq!(slow.all("x-forwarded-for"), head.forwarded_for.iter().map(|it| &it[..]).collect::<Vec<_>>());
        prop_assert_eq!(slow.all("forwarded"), head.forwarded.iter().map(|it| &it[..]).collect::<Vec<_>>());
    }

    /// Whatever a client writes there: the address is one that is in the headers, or the peer's.
    #[test]
    fn no_forwarded_header_makes_it_panic(lines in vec(vec(any::<u8>(), 0..40), 0..4), plain in "[0-9a-f.:\\[\\]\", ;=for]{0,60}") {
        for kind in [ProxyHeader::ForwardedFor, ProxyHeader::Forwarded] {
            let proxies = Proxies::new(["10.0.0.0/8", "::1/128"], kind).unwrap();
            let all: Vec<&[u8]> = lines.iter().map(|line| &line[..]).chain([plain.as_bytes()]).collect();
            let found = proxies.client("10.0.0.1", all.iter().copied());
            let text = String::from_utf8_lossy(&all.concat()).into_owned();
            prop_assert!(found == "10.0.0.1" || text.contains(found), "{found}");
        }
    }
}
