//! Which address is the client's, and the key it is counted under.
//!
//! Rules:
//! - IPv4 whole; IPv6 by its /64, since one customer commonly holds one; an IPv4-mapped address is the IPv4 address it
//!   contains, so that two spellings are one client; a zone (`%eth0`) does not count;
//! - what a proxy says (RFC 7239 `Forwarded`, or `X-Forwarded-For`) is believed only of a peer that is trusted, and read
//!   from right to left: the client is the first address that no trusted hop has written about itself;
//! - the list ends where it cannot be read; whoever wrote that is not believed further.

use std::net::IpAddr;

use crate::error::Unusable;
use crate::limit::Identity;

/// Replaces `key` with the key of `address`. What is no IP address (a socket's path, nothing) is its own key.
pub fn write_key(address: &str, key: &mut Vec<u8>) {
    key.clear();
    match parsed(address) {
        Some(IpAddr::V4(ip)) => {
            key.push(4);
            key.extend_from_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            key.push(6);
            key.extend_from_slice(&ip.octets()[..8]);
        }
        None => {
            key.push(0);
            key.extend_from_slice(address.as_bytes());
        }
    }
}

/// Places of [`Addresses`]; a power of two.
const PLACES: usize = 256;
/// Longer texts are no addresses and not remembered.
const LONGEST: usize = 64;

/// The identities of addresses that came lately, by their text: it costs more to read an address and to hash its key than
/// to find that it is the one of a moment ago. One place per text; whoever makes two meet there only makes them be read.
#[derive(Debug)]
pub(super) struct Addresses(Box<[(Box<str>, Identity)]>);

impl Addresses {
    pub(super) fn new(seed: (u64, u64)) -> Self {
        let mut key = Vec::new();
        write_key("", &mut key);
        Self(vec![(Box::from(""), Identity::new(seed, &key)); PLACES].into())
    }

    /// The identity of an address under the one seed there is.
    #[inline]
    pub(super) fn identity(&mut self, address: &str, seed: (u64, u64), key: &mut Vec<u8>) -> Identity {
        let place = place_of(address.as_bytes());
        match self.0.get(place) {
            Some((known, identity)) if **known == *address => *identity,
            _ => self.read(place, address, seed, key),
        }
    }

    #[inline(never)]
    fn read(&mut self, place: usize, address: &str, seed: (u64, u64), key: &mut Vec<u8>) -> Identity {
        write_key(address, key);
        let identity = Identity::new(seed, key);
        if let Some(kept) = self.0.get_mut(place)
            && address.len() <= LONGEST
        {
            *kept = (address.into(), identity);
        }
        identity
    }
}

/// By the end, in which neighbours differ.
fn place_of(address: &[u8]) -> usize {
    let end = address.last_chunk::<8>().map_or_else(
        || address.iter().fold(0, |sum: u64, &byte| sum << 8 | u64::from(byte)),
        |end| u64::from_be_bytes(*end),
    );
    (end.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PLACES.ilog2())) as usize
}

fn parsed(address: &str) -> Option<IpAddr> {
    let bare = address.split_once('%').map_or(address, |(bare, _)| bare);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// The header trusted proxies write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

/// The proxies that are believed.
#[derive(Debug)]
pub struct Proxies {
    /// Networks as (address bits, prefix length), IPv4 as mapped IPv6.
    networks: Vec<(u128, u32)>,
    /// Which header they write; the other one is a stranger's.
    pub header: ProxyHeader,
}

impl Proxies {
    /// Reads networks such as `10.0.0.0/8`, `::1` or `fd00::/8`.
    pub fn new<'a>(networks: impl IntoIterator<Item = &'a str>, header: ProxyHeader) -> Result<Self, Unusable> {
        let read = |text: &str| {
            let (address, length) =
                text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
            let ip = address.parse::<IpAddr>().ok()?;
            let (offset, most) = if ip.is_ipv4() { (96, 32) } else { (0, 128) };
            let length = length.map_or(Some(most), |length| length.parse().ok()).filter(|&length| length <= most)?;
            let (bits, length) = (bits(ip), length + offset);
            (bits & !mask(length) == 0).then_some((bits, length))
        };
        let networks = networks.into_iter().map(read).collect::<Option<_>>();
        Ok(Self { networks: networks.ok_or(Unusable("a network is an address, or one and a prefix length"))?, header })
    }

    /// Whether anybody is trusted.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.networks.is_empty()
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        let address = bits(ip);
        self.networks.iter().any(|&(network, length)| address & mask(length) == network)
    }

    /// The client's address: the peer's own, or what trusted proxies say it is. `lines` are the header's lines in order.
    #[must_use]
    pub fn client<'a>(&self, peer: &'a str, lines: impl DoubleEndedIterator<Item = &'a [u8]>) -> &'a str {
        let mut client = peer;
        if !parsed(peer).is_some_and(|ip| self.trusts(ip)) {
            return client;
        }
        for line in lines.rev() {
            // Element by element: what stands before the word of a proxy may be anything, and must not spoil it.
            for element in from_right(line, b',', self.header == ProxyHeader::Forwarded) {
                let Ok(element) = std::str::from_utf8(element) else { return client };
                let address = match self.header {
                    ProxyHeader::ForwardedFor => Some(element.trim()),
                    ProxyHeader::Forwarded => forwarded_for(element),
                };
                let Some((address, ip)) = address.map(without_port).and_then(|text| Some((text, parsed(text)?))) else {
                    return client;
                };
                client = address;
                if !self.trusts(ip) {
                    return client;
                }
            }
        }
        client
    }
}

/// The parts between separators, the last one first. Where there are `quotes`, a separator in a quoted string (RFC 9110
/// section 5.6.4) is none. Strings are told from the right too: what is on the left may be anything, a lone quote included.
fn from_right(text: &[u8], separator: u8, quotes: bool) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut is_quoted = false;
        for (at, &byte) in text.iter().enumerate().rev() {
            if byte == b'"' && quotes {
                let escapes = text[..at].iter().rev().take_while(|&&before| before == b'\\').count();
                is_quoted ^= !is_quoted || escapes % 2 == 0;
            } else if byte == separator && !is_quoted {
                rest = Some(&text[..at]);
                return Some(&text[at + 1..]);
            }
        }
        Some(text)
    })
}

/// The node of a `for=` parameter (RFC 7239 section 4); obfuscated identifiers are no addresses and end the walk.
fn forwarded_for(element: &str) -> Option<&str> {
    from_right(element.as_bytes(), b';', true).find_map(|pair| {
        let (name, value) = std::str::from_utf8(pair).ok()?.trim().split_once('=')?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        name.eq_ignore_ascii_case("for").then_some(value)
    })
}

/// `1.2.3.4:5`, `[::1]:5` and `[::1]` without what is around the address.
fn without_port(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']').map_or(text, |(address, _)| address);
    }
    match text.split_once(':') {
        Some((address, port)) if !port.contains(':') => address,
        _ => text,
    }
}

fn bits(ip: IpAddr) -> u128 {
    let ip = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    u128::from(ip)
}

fn mask(length: u32) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> Vec<u8> {
        let mut key = b"left over".to_vec();
        write_key(address, &mut key);
        key
    }

    #[test]
    fn two_spellings_of_a_client_are_one_key() {
        for (one, other) in [
            ("10.0.0.1", "::ffff:10.0.0.1"),
            ("10.0.0.1", "::ffff:a00:1"),
            ("2001:db8::1", "2001:0db8:0:0:ffff::2"),
            ("fe80::1", "fe80::2%eth0"),
        ] {
            assert_eq!(key(one), key(other));
        }
    }

    #[test]
    fn different_clients_are_different_keys() {
        let keys = ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1", "", "unix:", "4"].map(key);
        assert!((0..keys.len()).all(|i| !keys[..i].contains(&keys[i])));
    }

    #[test]
    fn what_is_remembered_of_an_address_is_what_is_read() {
        let seed = (1, 2);
        let (mut addresses, mut left_over) = (Addresses::new(seed), Vec::new());
        let texts = (0..2_000).map(|number| match number % 4 {
            0 => format!("10.0.{}.{}", number / 250, number % 250),
            1 => format!("2001:db8::{number:x}"),
            2 => format!("{}/socket-{number}", "x".repeat(number % 80)),
            _ => format!("{}", number % 9),
        });
        for text in texts.chain([String::new(), "10.0.0.1".into(), "::ffff:10.0.0.1".into()]) {
            for _ in 0..2 {
                assert_eq!(Identity::new(seed, &key(&text)), addresses.identity(&text, seed, &mut left_over), "{text}");
            }
        }
    }

    fn told(header: ProxyHeader, peer: &str, lines: &[&str]) -> String {
        told_in_bytes(header, peer, &lines.iter().map(|line| line.as_bytes()).collect::<Vec<_>>())
    }

    fn told_in_bytes(header: ProxyHeader, peer: &str, lines: &[&[u8]]) -> String {
        let proxies = Proxies::new(["10.0.0.0/8", "::1"], header).unwrap();
        proxies.client(peer, lines.iter().copied()).to_owned()
    }

    #[test]
    fn what_a_client_puts_before_the_word_of_a_proxy_does_not_spoil_it() {
        let told = |header, line: &[u8]| told_in_bytes(header, "10.0.0.1", &[line]);
        assert_eq!("1.2.3.4", told(ProxyHeader::ForwardedFor, b"\xff, 1.2.3.4"));
        assert_eq!("1.2.3.4", told(ProxyHeader::ForwardedFor, b"\xff, 1.2.3.4, 10.2.2.2"));
        assert_eq!("10.0.0.1", told(ProxyHeader::ForwardedFor, b"6.6.6.6, \xff"));
        assert_eq!("1.2.3.4", told(ProxyHeader::Forwarded, b"for=\xff, for=1.2.3.4"));
    }

    #[test]
    fn proxies_are_read_from_right_to_left() {
        for (peer, lines, expected) in [
            ("10.0.0.1", &["1.2.3.4"][..], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("::1", &["6.6.6.6, 1.2.3.4, 10.9.9.9"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4, 10.9.9.9"], "1.2.3.4"),
            ("10.0.0.1", &["10.1.1.1"], "10.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6, , 10.9.9.9"], "10.9.9.9"),
            ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["1.2.3.4:80"], "1.2.3.4"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("9.9.9.9", &["1.2.3.4"], "9.9.9.9"),
            ("", &["1.2.3.4"], ""),
        ] {
            assert_eq!(expected, told(ProxyHeader::ForwardedFor, peer, lines), "{peer} {lines:?}");
        }
    }

    #[test]
    fn forwarded_names_its_nodes() {
        for (lines, expected) in [
            (&["for=1.2.3.4"][..], "1.2.3.4"),
            (&["For=\"[2001:db8::1]:4711\";proto=https"], "2001:db8::1"),
            (&["for=6.6.6.6, for=1.2.3.4;by=10.0.0.1, for=10.2.2.2"], "1.2.3.4"),
            (&["for=6.6.6.6, for=_hidden"], "10.0.0.1"),
            // What a proxy quotes may come from the client: its host, for one.
            (&["for=1.2.3.4;host=\"a, for=6.6.6.6;b\""], "1.2.3.4"),
            (&["host=\"a;for=6.6.6.6;b\";for=1.2.3.4"], "1.2.3.4"),
            (&["host=\"\\\", for=6.6.6.6, \\\"\";for=1.2.3.4"], "1.2.3.4"),
            (&["for=6.6.6.6;x=\", for=1.2.3.4;by=10.0.0.1"], "1.2.3.4"),
            (&["for=\"6.6.6.6, for=1.2.3.4\""], "10.0.0.1"),
            (&["proto=https"], "10.0.0.1"),
        ] {
            assert_eq!(expected, told(ProxyHeader::Forwarded, "10.0.0.1", lines), "{lines:?}");
        }
    }

    #[test]
    fn networks_are_written_exactly() {
        for bad in ["", "x", "10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(Proxies::new([bad], ProxyHeader::Forwarded).is_err(), "{bad}");
        }
        assert!(Proxies::new(["0.0.0.0/0", "fd00::/8"], ProxyHeader::Forwarded).is_ok());
    }
}
