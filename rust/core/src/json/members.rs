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

/// The same of a text in which the member of this name is a list of objects; and what `each` makes of the members of
/// each of those. Nothing also where it makes nothing of one.
#[must_use]
pub fn members_and_list<'a, T>(
    text: &'a [u8],
    max_depth: usize,
    list: &str,
    mut each: impl FnMut(Vec<Member<'a>>) -> Option<T>,
) -> Option<(Vec<Member<'a>>, Vec<T>)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut reader = Reader { text, at: 0, has_name_twice: false };
    let mut made = Vec::new();
    let found = reader.members_by(max_depth, |reader, name, depth| {
        if name == list {
            reader.objects(depth, |members| each(members).map(|one| made.push(one)).ok_or(Malformed))
        } else {
            reader.value::<()>(depth)
        }
    });
    let found = found.ok()?;
    reader.space();
    (reader.at == text.len() && !reader.has_name_twice).then_some((found, made))
}

impl<'a> Reader<'a> {
    fn members(&mut self, depth: usize) -> Result<Vec<Member<'a>>, Malformed> {
        self.members_by(depth, |reader, _, depth| reader.value::<()>(depth))
    }

    /// The same, where `value` reads the value of each name.
    fn members_by(
        &mut self,
        depth: usize,
        mut value: impl FnMut(&mut Self, &str, usize) -> Result<(), Malformed>,
    ) -> Result<Vec<Member<'a>>, Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        self.space();
        if self.peek() != Some(b'{') {
            return Err(Malformed);
        }
        self.each_member(|reader, name| {
            reader.space();
            let start = reader.at;
            value(reader, name, depth)?;
            Ok(&reader.text[start..reader.at])
        })
    }

    /// A list of objects, of each of which the members are given away.
    fn objects(
        &mut self,
        depth: usize,
        mut each: impl FnMut(Vec<Member<'a>>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        if !self.take(b'[') {
            return Err(Malformed);
        }
        self.space();
        if self.take(b']') {
            return Ok(());
        }
        loop {
            each(self.members(depth)?)?;
            self.space();
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(Malformed);
            }
        }
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

    /// What is made of each object here: how many members it has.
    fn counted(text: &[u8], max_depth: usize) -> Option<(Vec<Member<'_>>, Vec<usize>)> {
        members_and_list(text, max_depth, "l", |members| Some(members.len()))
    }

    #[test]
    fn a_list_is_read_with_its_object() {
        let text = br#" {"a":1, "l": [ {} , {"b":[{}],"c":2} ] } "#;
        let (found, counts) = counted(text, 5).expect("a list");
        assert_eq!((vec![0, 2], members(text, 5)), (counts, Some(found)));
        assert_eq!(None, counted(text, 4));
        assert_eq!(Some((Vec::new(), Vec::new())), counted(b"{}", 1));
        for wrong in [
            r#"{"l":{}}"#,
            r#"{"l":[1]}"#,
            r#"{"l":[{},]}"#,
            r#"{"l":[{}"#,
            r#"{"l":[{"a":1,"a":1}]}"#,
            r#"{"l":[],"l":[]}"#,
        ] {
            assert_eq!(None, counted(wrong.as_bytes(), 9), "{wrong}");
        }
        assert_eq!(None, members_and_list(text, 5, "l", |members| (members.len() < 2).then_some(())));
    }

    proptest! {
        #[test]
        fn a_list_is_what_its_members_say(text in r#"\{("a":1,)?"l":\[(\{("[a-c]":([0-9]|\[\]|\{\}),?){0,2}\},?){0,3}\]\}"#) {
            let text = text.as_bytes();
            let judge = check(text, 9).is_ok();
            prop_assert_eq!(judge, counted(text, 9).is_some());
            if let Some((found, counts)) = counted(text, 9) {
                prop_assert_eq!(members(text, 9), Some(found.clone()));
                let list = found.iter().find(|(name, _)| name == "l").map_or("", |(_, text)| text);
                let list: serde_json::Value = serde_json::from_str(list).expect("what was read");
                prop_assert_eq!(list.as_array().map(Vec::len), Some(counts.len()));
            }
        }

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
