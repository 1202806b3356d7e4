//! The body of `POST /v1/execute`, and of `POST /v1/batch`.
//!
//! Rules: what is accepted here means the same to the general way (`flx_api.gateway.routes_fast`, the judge of the property
//! test); what is refused or hesitated about there is nothing here.

use crate::json::{Member, members, members_and_list};

/// As `flx_api.models.strict_json.MAX_DEPTH`.
pub const MAX_DEPTH: usize = 64;
const OPERATIONS: &str = "operations";
const MAX_KEY: usize = 255;
const MAX_ENVIRONMENT: usize = 64;
const MAX_OPERATIONS: usize = 1000;
const MAX_DEADLINE_MS: u32 = 3_600_000;

/// A request that asks for nothing special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain<'a> {
    /// The name of the command.
    pub command: &'a str,
    /// A JSON object, as it came.
    pub args: &'a str,
    /// The key in the body.
    pub idempotency_key: Option<&'a str>,
    /// The environment.
    pub environment: Option<&'a str>,
    /// Milliseconds that it may take.
    pub deadline_ms: Option<u32>,
}

/// Reads a body; nothing, when it is not certain that all of it is acceptable and plain.
#[must_use]
pub fn plain(body: &[u8]) -> Option<Plain<'_>> {
    of_members(members(body, MAX_DEPTH)?)
}

/// Reads the body of a batch: its operations, each of which asks for nothing special, and neither does all of it.
#[must_use]
pub fn plain_batch(body: &[u8]) -> Option<Vec<Plain<'_>>> {
    let (members, operations) = members_and_list(body, MAX_DEPTH, OPERATIONS, of_members)?;
    let is_usual = members.iter().all(|(name, value)| {
        matches!((&**name, *value), (OPERATIONS, _) | ("mode", "\"parallel\"") | ("fail_fast" | "dry_run", "false"))
    });
    (is_usual && (1..=MAX_OPERATIONS).contains(&operations.len())).then_some(operations)
}

fn of_members(members: Vec<Member<'_>>) -> Option<Plain<'_>> {
    let mut found = Plain { command: "", args: "{}", idempotency_key: None, environment: None, deadline_ms: None };
    for (name, value) in members {
        match &*name {
            "command" => found.command = text(value)?,
            "args" => found.args = value.starts_with('{').then_some(value)?,
            "idempotency_key" | "environment" | "deadline_ms" if value == "null" => {}
            "idempotency_key" => found.idempotency_key = Some(text(value).filter(|key| is_key(key))?),
            "environment" => {
                let is_short = |name: &&str| name.chars().count() <= MAX_ENVIRONMENT;
                found.environment = Some(text(value).filter(is_short)?);
            }
            "deadline_ms" => found.deadline_ms = Some(deadline(value)?),
            "wait_ms" if matches!(value, "0" | "null") => {}
            "dry_run" if value == "false" => {}
            _ => return None,
        }
    }
    (!found.command.is_empty()).then_some(found)
}

/// Whether a key is one: printable ASCII without a blank, and not too long.
#[must_use]
pub fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A text that stands for itself.
fn text(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"').filter(|text| !text.contains('\\'))
}

fn deadline(value: &str) -> Option<u32> {
    value.parse().ok().filter(|ms| (1..=MAX_DEADLINE_MS).contains(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_is_read() {
        let bare = Plain { command: "a.b", args: "{}", idempotency_key: None, environment: None, deadline_ms: None };
        assert_eq!(Some(bare), plain(br#"{"command":"a.b"}"#));
        assert_eq!(
            Some(Plain {
                args: r#"{ "n": [1] }"#,
                idempotency_key: Some("k-1"),
                environment: Some("prød"),
                deadline_ms: Some(3_600_000),
                ..bare
            }),
            plain(
                r#" {"args" : { "n": [1] } ,"idempotency_key":"k-1","environment":"prød","deadline_ms":3600000,
                    "wait_ms":0,"dry_run":false,"command":"a.b"} "#
                    .as_bytes()
            )
        );
        let nulls = br#"{"command":"a.b","idempotency_key":null,"environment":null,"deadline_ms":null,"wait_ms":null}"#;
        assert_eq!(Some(bare), plain(nulls));
    }

    #[test]
    fn a_batch_is_its_operations() {
        let one = plain(br#"{"command":"a.b"}"#).expect("plain");
        let other = Plain { args: r#"{"n":[1]}"#, idempotency_key: Some("k"), ..one };
        let body = br#" {"mode":"parallel","operations":[{"command":"a.b"} , {"args":{"n":[1]},"command":"a.b",
            "idempotency_key":"k"}],"fail_fast":false,"dry_run":false}"#;
        assert_eq!(Some(vec![one, other]), plain_batch(body));
        assert_eq!(Some(vec![one]), plain_batch(br#"{"operations":[{"command":"a.b"}]}"#));
        let many = |count| format!(r#"{{"operations":[{}]}}"#, vec![r#"{"command":"a.b"}"#; count].join(","));
        assert_eq!(Some(1000), plain_batch(many(1000).as_bytes()).map(|all| all.len()));
        for body in [
            &many(1001),
            &many(0),
            "{}",
            "[]",
            "",
            r#"{"operations":[{"command":"a.b"},{"command":"a.b","dry_run":true}]}"#,
            r#"{"operations":[{"command":"a.b"}],"mode":"ordered"}"#,
            r#"{"operations":[{"command":"a.b"}],"fail_fast":true}"#,
            r#"{"operations":[{"command":"a.b"}],"dry_run":true}"#,
            r#"{"operations":[{"command":"a.b"}],"other":1}"#,
            r#"{"operations":[{"command":"a.b","args":{"a":1,"a":2}}]}"#,
        ] {
            assert_eq!(None, plain_batch(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn what_is_special_or_wrong_is_left_to_the_general_way() {
        let long = format!(r#"{{"command":"a","idempotency_key":"{}"}}"#, "k".repeat(256));
        for body in [
            r#"{"args":{}}"#,
            r#"{"command":""}"#,
            r#"{"command":1}"#,
            r#"{"command":"a\u002eb"}"#,
            r#"{"command":"a","args":[]}"#,
            r#"{"command":"a","args":null}"#,
            r#"{"command":"a","idempotency_key":""}"#,
            r#"{"command":"a","idempotency_key":"a b"}"#,
            r#"{"command":"a","idempotency_key":"ä"}"#,
            r#"{"command":"a","deadline_ms":0}"#,
            r#"{"command":"a","deadline_ms":3600001}"#,
            r#"{"command":"a","deadline_ms":1.0}"#,
            r#"{"command":"a","deadline_ms":"1"}"#,
            r#"{"command":"a","wait_ms":1}"#,
            r#"{"command":"a","dry_run":true}"#,
            r#"{"command":"a","dry_run":null}"#,
            r#"{"command":"a","other":1}"#,
            r#"{"command":"a","command":"a"}"#,
            "",
            &long,
        ] {
            assert_eq!(None, plain(body.as_bytes()), "{body}");
        }
        let name = "n".repeat(65);
        assert_eq!(None, plain(format!(r#"{{"command":"a","environment":"{name}"}}"#).as_bytes()));
    }
}
