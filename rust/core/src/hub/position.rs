//! A position: how far a reader of events has come, over all topics at once.
//!
//! Strategy: a hub hears all events in one order. A position is the state of that order after an event: the epoch, the
//! journal's sequence number, and for each log that was being written the number of its last line. It is the same for
//! everyone of a tenant who saw that event, so that a frame with its position is built once for all.
//!
//! A log that is missing from a position either began after it (its lines are new) or had ended and was complete before it
//! (nothing is new); when it began decides. Rules: clients see base64url of JSON `[epoch, seq, {execution: line}]` and never
//! look inside; what does not decode is refused, never guessed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::json::{self, Json};
use crate::jwt::base64url;

/// A log takes about 80 characters: this is some 600 that are written at once, and fits in a message of a client.
pub(super) const MAX_CHARS: usize = 49_152;
const MAX_EPOCH: usize = 128;
/// Sequence numbers are below this, so that JavaScript can count them.
pub const SEQ_END: u64 = 1 << 53;

/// Everything up to here was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The history that the numbers belong to.
    pub epoch: Box<str>,
    /// The journal's sequence number.
    pub seq: u64,
    /// The last line by execution, of logs that were being written.
    pub logs: BTreeMap<Box<str>, u64>,
}

impl Position {
    /// The opaque string that clients hand back as `from`.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(&self.epoch, self.seq, self.logs.iter().map(|(execution, line)| (&**execution, *line)))
    }

    /// The position of an opaque string; None when we did not make it.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_CHARS {
            return None;
        }
        let raw = base64url::decode(text.as_bytes()).ok()?;
        let Ok(Json::Array(items)) = json::parse(&raw) else { return None };
        let (epoch, seq, logs) = match <[Json<'_>; 3]>::try_from(items) {
            Ok([Json::Str(epoch), seq, Json::Object(logs)]) => (epoch, number(&seq)?, logs),
            Ok(_) => return None,
            Err(items) => match <[Json<'_>; 2]>::try_from(items) {
                Ok([Json::Str(epoch), seq]) => (epoch, number(&seq)?, Vec::new()),
                _ => return None,
            },
        };
        if epoch.chars().count() > MAX_EPOCH {
            return None;
        }
        let logs = logs.into_iter().map(|(execution, line)| Some((execution.into(), number(&line)?)));
        Some(Self { epoch: epoch.into(), seq, logs: logs.collect::<Option<_>>()? })
    }
}

fn number(value: &Json<'_>) -> Option<u64> {
    let Json::Int(number) = value else { return None };
    u64::try_from(*number).ok().filter(|number| *number < SEQ_END)
}

/// The opaque string of a position that need not be made.
pub(super) fn encode<'a>(epoch: &str, seq: u64, logs: impl Iterator<Item = (&'a str, u64)>) -> String {
    let mut text = String::with_capacity(64);
    text.push('[');
    quote(epoch, &mut text);
    let _ = write!(text, ",{seq},{{");
    for (index, (execution, line)) in logs.enumerate() {
        if index > 0 {
            text.push(',');
        }
        quote(execution, &mut text);
        let _ = write!(text, ":{line}");
    }
    text.push_str("}]");
    base64url::encode(text.as_bytes())
}

/// Writes a JSON string.
pub fn quote(value: &str, out: &mut String) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    out.push('"');
    let mut plain = 0;
    // Nearly all are plain, which is seen at once: this does not stop early, so that many bytes are looked at together.
    if !value.bytes().fold(true, |all, byte| all & is_plain(byte)) {
        for (index, byte) in value.bytes().enumerate() {
            if is_plain(byte) {
                continue;
            }
            out.push_str(&value[plain..index]);
            plain = index + 1;
            match byte {
                b'"' => out.push_str("\\\""),
                b'\\' => out.push_str("\\\\"),
                _ => {
                    let _ = write!(out, "\\u{byte:04x}");
                }
            }
        }
    }
    out.push_str(&value[plain..]);
    out.push('"');
}

/// The execution whose log lines a topic carries; None for any other topic.
#[must_use]
pub fn execution_of_log(topic: &str) -> Option<&str> {
    let execution = topic.strip_prefix("execution.")?.strip_suffix(".log")?;
    (!execution.is_empty() && !execution.contains('.')).then_some(execution)
}

/// The execution whose status a topic tells; None for any other topic.
pub(super) fn execution_of_status(topic: &str) -> Option<&str> {
    topic.strip_prefix("execution.")?.strip_suffix(".status")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_reads_as_it_always_did() {
        // Made by the Python that was here before.
        assert_eq!(Some("e".into()), Position::decode("WyJlIiwxMix7IngiOjN9XQ").map(|found| found.epoch));
        let position = Position { epoch: "e".into(), seq: 12, logs: [("x".into(), 3)].into() };
        assert_eq!("WyJlIiwxMix7IngiOjN9XQ", position.encode());
    }

    #[test]
    fn what_we_did_not_make_is_refused() {
        for json in [
            "",
            "[]",
            "{}",
            "[1,2,{}]",
            r#"["e",-1,{}]"#,
            r#"["e",9007199254740992,{}]"#,
            r#"["e",1.0,{}]"#,
            r#"["e",1,{"x":"1"}]"#,
            r#"["e",1,{},2]"#,
            r#"["e"]"#,
            r#"["e",1,[]]"#,
            r#"["e",1,{"x":1,"x":2}]"#,
        ] {
            assert_eq!(None, Position::decode(&base64url::encode(json.as_bytes())), "{json}");
        }
        assert_eq!(None, Position::decode("WyJlIiwxMix7IngiOjN9XQ=="));
        assert_eq!(None, Position::decode(&"A".repeat(MAX_CHARS + 4)));
        let long = Position { epoch: "é".repeat(129).into(), seq: 1, logs: BTreeMap::new() };
        assert_eq!(None, Position::decode(&long.encode()));
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(epoch in "\\PC{0,20}", seq in 0..SEQ_END,
                                    logs in prop::collection::btree_map("[\\x00-\\x7fé]{0,8}", 0..SEQ_END, 0..5)) {
            let logs = logs.into_iter().map(|(execution, line)| (execution.into(), line)).collect();
            let position = Position { epoch: epoch.into(), seq, logs };
            prop_assert_eq!(Some(position.clone()), Position::decode(&position.encode()));
        }

        #[test]
        fn a_quoted_string_is_json(text in any::<String>()) {
            let mut quoted = String::new();
            quote(&text, &mut quoted);
            prop_assert_eq!(text, serde_json::from_str::<String>(&quoted).expect("JSON"));
        }
    }

    #[test]
    fn a_log_topic_names_one_execution() {
        assert_eq!(Some("1"), execution_of_log("execution.1.log"));
        for topic in ["execution..log", "execution.1.2.log", "execution.1.status", "execution.log", "x.1.log"] {
            assert_eq!(None, execution_of_log(topic), "{topic}");
        }
    }
}
