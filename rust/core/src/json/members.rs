//! The members of an object as they stand in the text: what is read on the way, and what travels on unread.

use std::borrow::Cow;

use super::{Malformed, Reader};

/// A name, and the text of its value.
pub type Member<'a> = (Cow<'a, str>, &'a str);

/// The members of an object, in a text that [`check`](super::check) has nothing against; nothing for any other text.
#[must_use]
pub fn members(text: &[u8], max_depth: usize) -> Option<Vec<Member<'_>>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut reader = Reader { text, at: 0, has_name_twice: false };
    let found = reader.members(max_depth).ok()?;
    reader.space();
    (reader.at == text.len() && !reader.has_name_twice).then_some(found)
}

impl<'a> Reader<'a> {
    fn members(&mut self, depth: usize) -> Result<Vec<Member<'a>>, Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        self.space();
        if self.peek() != Some(b'{') {
            return Err(Malformed);
        }
        self.each_member(|reader| {
            reader.space();
            let start = reader.at;
            reader.value::<()>(depth)?;
            Ok(&reader.text[start..reader.at])
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::{Outline, check, outline};

    #[test]
    fn values_keep_their_text() {
        let text = b" {\"a\" : { \"b\": [1, 2] } ,\"\\u0063\":\"\\u0064\",\"e\":-1.50e1 } ";
        let expected: Vec<Member<'_>> =
            vec![("a".into(), r#"{ "b": [1, 2] }"#), ("c".into(), r#""\u0064""#), ("e".into(), "-1.50e1")];
        assert_eq!(Some(expected), members(text, 3));
        assert_eq!(None, members(text, 2));
        assert_eq!(Some(Vec::new()), members(b"{ }", 1));
    }

    #[test]
    fn nothing_else_has_members() {
        for text in ["[]", "1", "", "{", "{}{}", r#"{"a":1,"a":1}"#, r#"{"a":{"b":1,"b":1}}"#, r#"{"a":1,}"#, "{a:1}"] {
            assert_eq!(None, members(text.as_bytes(), 9), "{text}");
        }
        assert_eq!(None, members(b"{\"a\":\"\xff\"}", 9));
    }

    proptest! {
        #[test]
        fn members_are_those_of_an_outline(text in r#"\{?([\[\]{},: ]|"[a-c]?"|-?[0-9]{1,3}|true){0,12}\}?"#) {
            let text = text.as_bytes();
            let found = members(text, 4);
            if let Ok(Outline::Object(known)) = outline(text, 4) {
                let found = found.expect("an object");
                prop_assert_eq!(known.len(), found.len());
                for ((name, _), (other, value)) in known.iter().zip(&found) {
                    prop_assert_eq!(name, other);
                    prop_assert!(check(value.as_bytes(), 3).is_ok());
                }
            } else {
                prop_assert_eq!(None, found);
            }
        }
    }
}
