//! Walking over JSON text without building anything.
//!
//! Strategy: a cursor over the bytes of one line. Names and the few wanted values are compared as slices; everything else is
//! skipped: strings by `memchr`, objects and arrays by counting their own kind of bracket outside strings. Bytes from 0x80 on
//! are never looked at, so any ASCII-compatible encoding passes. Rule: reading never goes past the end and never recurses.

use std::borrow::Cow;

use memchr::memchr2;

/// What must be read cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The inside of a JSON string, as written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    raw: &'a [u8],
    escaped: bool,
}

impl<'a> Text<'a> {
    /// Reads the string that `text` begins with and says what follows it.
    fn read(text: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let inside = text.strip_prefix(b"\"").ok_or(Malformed)?;
        let mut at = 0;
        let mut escaped = false;
        loop {
            at += memchr2(b'"', b'\\', inside.get(at..).ok_or(Malformed)?).ok_or(Malformed)?;
            if inside[at] == b'"' {
                return Ok((Self { raw: &inside[..at], escaped }, &inside[at + 1..]));
            }
            escaped = true;
            at += 2;
        }
    }

    /// Whether the string means `name`.
    pub(super) fn is(&self, name: &str) -> bool {
        if self.escaped {
            self.decode().is_ok_and(|text| *text == *name.as_bytes())
        } else {
            self.raw == name.as_bytes()
        }
    }

    /// The string with its escapes decoded; half a surrogate pair becomes U+FFFD.
    pub(super) fn decode(&self) -> Result<Cow<'a, [u8]>, Malformed> {
        if !self.escaped {
            return Ok(Cow::Borrowed(self.raw));
        }
        let mut out = Vec::with_capacity(self.raw.len());
        let mut rest = self.raw;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            out.extend_from_slice(&rest[..at]);
            let (&code, after) = rest[at + 1..].split_first().ok_or(Malformed)?;
            rest = after;
            match code {
                b'"' | b'\\' | b'/' => out.push(code),
                b'b' => out.push(8),
                b'f' => out.push(12),
                b'n' => out.push(b'\n'),
                b'r' => out.push(b'\r'),
                b't' => out.push(b'\t'),
                b'u' => {
                    let (character, after) = unicode(rest)?;
                    rest = after;
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => return Err(Malformed),
            }
        }
        out.extend_from_slice(rest);
        Ok(Cow::Owned(out))
    }
}

/// The character after `\u`, its second half included.
fn unicode(text: &[u8]) -> Result<(char, &[u8]), Malformed> {
    let (first, rest) = hex4(text)?;
    if (0xd800..0xdc00).contains(&first)
        && let Some(low) = rest.strip_prefix(b"\\u")
        && let Ok((second, after)) = hex4(low)
        && (0xdc00..0xe000).contains(&second)
    {
        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return Ok((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), after));
    }
    Ok((char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), rest))
}

fn hex4(text: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (digits, rest) = text.split_at_checked(4).ok_or(Malformed)?;
    let mut value = 0;
    for &digit in digits {
        value = value << 4 | char::from(digit).to_digit(16).ok_or(Malformed)?;
    }
    Ok((value, rest))
}

fn space(text: &[u8]) -> &[u8] {
    match text.first() {
        // The common case first: nothing to skip.
        Some(b' ' | b'\t' | b'\n' | b'\r') => text.trim_ascii_start(),
        _ => text,
    }
}

/// What follows the value `text` begins with.
fn after_value(text: &[u8]) -> Result<&[u8], Malformed> {
    match text.first().ok_or(Malformed)? {
        b'"' => Text::read(text).map(|(_, rest)| rest),
        b'{' => after_nested(text, b'{', b'}'),
        b'[' => after_nested(text, b'[', b']'),
        _ => {
            let end = text.iter().position(|byte| b",}] \t\r\n".contains(byte)).unwrap_or(text.len());
            if end == 0 { Err(Malformed) } else { Ok(&text[end..]) }
        }
    }
}

fn after_nested(text: &[u8], open: u8, close: u8) -> Result<&[u8], Malformed> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        let byte = *text.get(at).ok_or(Malformed)?;
        at += 1;
        if byte == b'"' {
            loop {
                at += memchr2(b'"', b'\\', text.get(at..).ok_or(Malformed)?).ok_or(Malformed)?;
                if text[at] == b'"' {
                    at += 1;
                    break;
                }
                at += 2;
            }
        } else if byte == open {
            depth += 1;
        } else if byte == close {
            depth -= 1;
            if depth == 0 {
                return Ok(&text[at..]);
            }
        }
    }
}

/// The members of an object, one after another. After each name its value must be taken with [`Self::text`] or passed with
/// [`Self::skip`], or the walk ends there.
#[derive(Debug)]
pub(super) struct Members<'a> {
    rest: &'a [u8],
    first: bool,
}

impl<'a> Members<'a> {
    /// The members of the object that `text` begins with.
    pub(super) fn of(text: &'a [u8]) -> Result<Self, Malformed> {
        let rest = space(text).strip_prefix(b"{").ok_or(Malformed)?;
        Ok(Self { rest, first: true })
    }

    /// The next name, or none at the end of the object.
    pub(super) fn next_name(&mut self) -> Result<Option<Text<'a>>, Malformed> {
        let mut rest = space(self.rest);
        match rest.first() {
            Some(b'}') => return Ok(None),
            Some(b',') if !self.first => rest = space(&rest[1..]),
            _ if self.first => {}
            _ => return Err(Malformed),
        }
        self.first = false;
        let (name, rest) = Text::read(rest)?;
        self.rest = space(space(rest).strip_prefix(b":").ok_or(Malformed)?);
        Ok(Some(name))
    }

    /// Takes a string value.
    pub(super) fn text(&mut self) -> Result<Text<'a>, Malformed> {
        let (text, rest) = Text::read(self.rest)?;
        self.rest = rest;
        Ok(text)
    }

    /// Passes a value and says how it was written.
    pub(super) fn skip(&mut self) -> Result<&'a [u8], Malformed> {
        let rest = after_value(self.rest)?;
        let raw = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        Ok(raw)
    }

    /// Everything from the present value on.
    pub(super) fn remaining(&self) -> &'a [u8] {
        self.rest
    }
}

/// The strings of the array that `text` begins with; `null` is an empty one.
pub(super) fn names(text: &[u8]) -> Result<Vec<String>, Malformed> {
    if text.starts_with(b"null") {
        return Ok(Vec::new());
    }
    let mut rest = space(text.strip_prefix(b"[").ok_or(Malformed)?);
    let mut names = Vec::new();
    if rest.starts_with(b"]") {
        return Ok(names);
    }
    loop {
        let (name, after) = Text::read(rest)?;
        names.push(String::from_utf8_lossy(&name.decode()?).into_owned());
        rest = space(after);
        match rest.split_first() {
            Some((b']', _)) => return Ok(names),
            Some((b',', after)) => rest = space(after),
            _ => return Err(Malformed),
        }
    }
}

/// What a key value is compared by: strings by meaning, everything else as written.
pub(super) fn meaning(raw: &[u8]) -> Result<(bool, Cow<'_, [u8]>), Malformed> {
    if raw.starts_with(b"\"") { Ok((true, Text::read(raw)?.0.decode()?)) } else { Ok((false, Cow::Borrowed(raw))) }
}
