//! What a client offers in `Sec-WebSocket-Extensions` (RFC 6455 section 9.1), and what of it is taken: `permessage-deflate`
//! (RFC 7692), or nothing.
//!
//! Rules:
//! - of several offers the first is taken that can be honoured; one with a parameter that is not known, comes twice or has
//!   another value than it may have is passed over (RFC 7692 section 5.1), and so is a window of 256 bytes, which the
//!   library that compresses has not;
//! - no context is taken over from message to message, either way: a frame that is compressed once can go to everybody, and
//!   nothing is kept for a connection. What the client's window is does not matter then;
//! - a header that is no list of extensions is refused whole (RFC 6455 section 9.1).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::num::NonZeroU8;

use crate::handshake::is_token_byte;

const NAME: &str = "permessage-deflate";
const LEAST_BITS: u8 = 9;
const MOST_BITS: u8 = 15;

/// How far back a compressed message refers at most: 2 to this power, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowBits(NonZeroU8);

impl WindowBits {
    /// How many there are.
    pub(crate) const COUNT: usize = (MOST_BITS - LEAST_BITS + 1) as usize;

    /// One that can be honoured.
    #[must_use]
    pub const fn new(bits: u8) -> Option<Self> {
        match NonZeroU8::new(bits) {
            Some(it) if bits >= LEAST_BITS && bits <= MOST_BITS => Some(Self(it)),
            _ => None,
        }
    }

    /// 9 to 15.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }

    /// Its place among all of them.
    pub(crate) const fn place(self) -> usize {
        (self.0.get() - LEAST_BITS) as usize
    }
}

impl Default for WindowBits {
    fn default() -> Self {
        Self(NonZeroU8::MIN.saturating_add(MOST_BITS - 1))
    }
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// The window of what is sent.
    pub window_bits: WindowBits,
    /// Whether the client asked for it, and so is told.
    is_asked: bool,
}

impl Deflate {
    /// The value of `Sec-WebSocket-Extensions` in the answer.
    #[must_use]
    pub fn answer(&self) -> String {
        let mut answer = format!("{NAME}; server_no_context_takeover; client_no_context_takeover");
        if self.is_asked {
            let _ = write!(answer, "; server_max_window_bits={}", self.window_bits.get());
        }
        answer
    }
}

/// The header is no list of extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedOffers;

/// What is taken of what is offered in all header lines of that name.
pub fn negotiate<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Option<Deflate>, MalformedOffers> {
    let mut taken = None;
    for value in values {
        let mut reader = Reader(value);
        loop {
            reader.blanks();
            if reader.0.is_empty() {
                break;
            }
            // An empty element of a list says nothing (RFC 9110 section 5.6.1).
            if reader.eat(b',') {
                continue;
            }
            let offered = reader.offer()?;
            taken = taken.or(offered);
            if !reader.0.is_empty() && !reader.eat(b',') {
                return Err(MalformedOffers);
            }
        }
    }
    Ok(taken)
}

/// What an offer asks for.
#[derive(Default)]
struct Terms<'a> {
    is_refused: bool,
    /// Names of its parameters, as long as it is not refused.
    seen: Vec<&'a str>,
    window_bits: Option<WindowBits>,
}

impl<'a> Terms<'a> {
    fn add(&mut self, name: &'a str, value: Option<&str>) {
        if self.is_refused {
            return;
        }
        let may_be = match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits", None) => true,
            ("client_max_window_bits", Some(value)) => bits(value).is_some(),
            ("server_max_window_bits", Some(value)) => {
                self.window_bits = bits(value).and_then(WindowBits::new);
                self.window_bits.is_some()
            }
            _ => false,
        };
        self.is_refused = !may_be || self.seen.contains(&name);
        self.seen.push(name);
    }

    fn taken(&self) -> Option<Deflate> {
        let window_bits = self.window_bits.unwrap_or_default();
        (!self.is_refused).then_some(Deflate { window_bits, is_asked: self.window_bits.is_some() })
    }
}

/// 8 to 15, in decimal digits and without a leading zero (RFC 7692 section 7.1.2).
fn bits(value: &str) -> Option<u8> {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit()) && !value.starts_with('0');
    value.parse().ok().filter(|bits| is_number && (8..=MOST_BITS).contains(bits))
}

/// What of a header is not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// One extension and its parameters; what is taken of it.
    fn offer(&mut self) -> Result<Option<Deflate>, MalformedOffers> {
        let mut terms = Terms { is_refused: self.token()? != NAME, ..Terms::default() };
        loop {
            self.blanks();
            if !self.eat(b';') {
                return Ok(terms.taken());
            }
            self.blanks();
            let name = self.token()?;
            self.blanks();
            let value = if self.eat(b'=') { Some(self.value()?) } else { None };
            terms.add(name, value.as_deref());
        }
    }

    fn value(&mut self) -> Result<Cow<'a, str>, MalformedOffers> {
        self.blanks();
        if self.eat(b'"') { self.quoted().map(Cow::Owned) } else { self.token().map(Cow::Borrowed) }
    }

    /// The rest of a quoted string, which is a token too when its quotes are gone.
    fn quoted(&mut self) -> Result<String, MalformedOffers> {
        let mut text = String::new();
        loop {
            let byte = match self.byte()? {
                b'"' if text.is_empty() => return Err(MalformedOffers),
                b'"' => return Ok(text),
                b'\\' => self.byte()?,
                byte => byte,
            };
            if !is_token_byte(byte) {
                return Err(MalformedOffers);
            }
            text.push(char::from(byte));
        }
    }

    fn token(&mut self) -> Result<&'a str, MalformedOffers> {
        let end = self.0.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        str::from_utf8(token).ok().filter(|token| !token.is_empty()).ok_or(MalformedOffers)
    }

    fn byte(&mut self) -> Result<u8, MalformedOffers> {
        let (first, rest) = self.0.split_first().ok_or(MalformedOffers)?;
        self.0 = rest;
        Ok(*first)
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.strip_prefix(&[byte]);
        self.0 = found.unwrap_or(self.0);
        found.is_some()
    }

    fn blanks(&mut self) {
        let end = self.0.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(self.0.len());
        self.0 = &self.0[end..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BARE: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn answer(lines: &[&str]) -> Result<Option<String>, MalformedOffers> {
        negotiate(lines.iter().map(|line| line.as_bytes())).map(|taken| taken.map(|taken| taken.answer()))
    }

    #[test]
    fn what_can_be_honoured_is_taken() {
        for (offer, bits) in [
            ("permessage-deflate", None),
            // What browsers offer.
            ("permessage-deflate; client_max_window_bits", None),
            ("permessage-deflate;client_max_window_bits=\"8\" ; server_no_context_takeover", None),
            (" permessage-deflate ;\tclient_no_context_takeover; server_no_context_takeover ", None),
            ("permessage-deflate; server_max_window_bits=15", Some(15)),
            ("permessage-deflate; server_max_window_bits = \"1\\2\"", Some(12)),
            ("permessage-deflate; client_max_window_bits=10; server_max_window_bits=9", Some(9)),
            // The second is taken where the first cannot be.
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", None),
            ("x-webkit-deflate-frame, , permessage-deflate; server_max_window_bits=10,", Some(10)),
            ("permessage-deflate; server_max_window_bits=10, permessage-deflate", Some(10)),
        ] {
            let bits = bits.map_or(String::new(), |bits| format!("; server_max_window_bits={bits}"));
            assert_eq!(Ok(Some(format!("{BARE}{bits}"))), answer(&[offer]), "{offer}");
        }
        assert_eq!(Ok(Some(BARE.to_owned())), answer(&["mux; max-channels=4", "permessage-deflate"]));
    }

    #[test]
    fn what_cannot_be_honoured_is_passed_over() {
        for offer in [
            "",
            " , ",
            "Permessage-Deflate",
            "deflate",
            "permessage-deflate; unknown",
            "permessage-deflate; unknown=\"15\"",
            "permessage-deflate; Server_No_Context_Takeover",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits=+10",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=x",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        ] {
            assert_eq!(Ok(None), answer(&[offer]), "{offer}");
        }
        assert_eq!(Ok(None), answer(&[]));
    }

    #[test]
    fn what_is_no_list_of_extensions_is_refused() {
        for offer in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; ;",
            "permessage-deflate; =10",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=\"10",
            "permessage-deflate; server_max_window_bits=\"1 0\"",
            "permessage-deflate; server_max_window_bits=\"10\\",
            "permessage-deflate; server_max_window_bits=10 11",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate, \"x\"",
            "permessage-deflate, a/b",
            "\u{e9}",
        ] {
            assert_eq!(Err(MalformedOffers), answer(&[offer]), "{offer}");
        }
    }

    /// The twin: the same list, taken apart at its separators, which are nowhere else when there are no quotes.
    fn naive(text: &str) -> Result<Option<String>, MalformedOffers> {
        let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_token_byte);
        let mut taken = None;
        for offer in text.split(',').map(|offer| offer.trim_matches([' ', '\t'])).filter(|offer| !offer.is_empty()) {
            let (name, parameters) = offer.split_once(';').map_or((offer, None), |(name, rest)| (name, Some(rest)));
            let mut is_good = name.trim_matches([' ', '\t']) == NAME;
            let (mut seen, mut bits) = (Vec::new(), String::new());
            if !is_token(name.trim_matches([' ', '\t'])) {
                return Err(MalformedOffers);
            }
            for parameter in parameters.iter().flat_map(|rest| rest.split(';')) {
                let (name, value) = parameter.split_once('=').map_or((parameter, None), |(name, it)| (name, Some(it)));
                let name = name.trim_matches([' ', '\t']);
                let value = value.map(|value| value.trim_matches([' ', '\t']));
                if !is_token(name) || !value.is_none_or(is_token) {
                    return Err(MalformedOffers);
                }
                let is_window = |from: usize| {
                    let windows = ["8", "9", "10", "11", "12", "13", "14", "15"];
                    value.is_some_and(|value| windows[from..].contains(&value))
                };
                is_good &= !seen.contains(&name)
                    && match name {
                        "server_no_context_takeover" | "client_no_context_takeover" => value.is_none(),
                        "client_max_window_bits" => value.is_none() || is_window(0),
                        "server_max_window_bits" => is_window(1),
                        _ => false,
                    };
                if name == "server_max_window_bits" {
                    bits = format!("; server_max_window_bits={}", value.unwrap_or_default());
                }
                seen.push(name);
            }
            taken = taken.or(is_good.then(|| format!("{BARE}{bits}")));
        }
        Ok(taken)
    }

    fn words() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            NAME,
            NAME,
            ";",
            "; ",
            ";",
            ",",
            " ",
            "=",
            "=",
            "server_no_context_takeover",
            "client_no_context_takeover",
            "server_max_window_bits",
            "client_max_window_bits",
            "server_max_window_bits=10",
            "client_max_window_bits=15",
            "8",
            "9",
            "15",
            "16",
            "x",
        ]);
        prop::collection::vec(word, 0..12).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn offers_are_read_as_they_are_written(text in words()) {
            prop_assert_eq!(naive(&text), answer(&[&text]));
        }

        #[test]
        fn any_bytes_are_survived(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..3)) {
            let _ = negotiate(lines.iter().map(|line| &**line));
        }
    }
}
