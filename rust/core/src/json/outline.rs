//! The outline of a value: what a message is, without what is in it.

use std::borrow::Cow;

use super::{Malformed, Refusal, Value, is_deeper, read};

/// The texts in an object; whatever else is in it was read, too, but is not kept.
#[derive(Debug)]
pub enum Outline<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// `null`
    Null,
    /// An object.
    Object(Vec<(Cow<'a, str>, Outline<'a>)>),
    /// Anything else.
    Other,
}

/// Reads exactly one value as [`check`] does, and keeps its outline.
pub fn outline(text: &[u8], max_depth: usize) -> Result<Outline<'_>, Refusal> {
    read(text, max_depth).map_err(|refusal| if is_deeper(text, max_depth) { Refusal::TooDeep } else { refusal })
}

impl<'a> Value<'a> for Outline<'a> {
    fn null() -> Self {
        Self::Null
    }

    fn bool(_: bool) -> Self {
        Self::Other
    }

    fn integer(text: &str) -> Result<Self, Malformed> {
        <()>::integer(text).map(|()| Self::Other)
    }

    fn float(_: f64) -> Self {
        Self::Other
    }

    fn string(text: Cow<'a, str>) -> Self {
        Self::Text(text)
    }

    fn array(_: Vec<Self>) -> Self {
        Self::Other
    }

    fn object(members: Vec<(Cow<'a, str>, Self)>) -> Self {
        Self::Object(members)
    }
}
