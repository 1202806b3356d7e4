//! The messages of clients and the answers to them: those of the ASGI face (`flx_api.websocket.protocol`), word for word.
//!
//! Rules: pure. What a client sent comes back in `echo` only, as the JSON it was; never in an error.

use std::fmt;
use std::sync::Arc;

use flx_core::hub::position::quote;
use flx_core::hub::{Dialect, Refused, stream_event};
use flx_core::json::{self, Outline, Refusal};

use crate::wire::Wire;

/// Objects and arrays inside one another in a message.
const MAX_DEPTH: usize = 32;

/// A token on its way to whoever judges it: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Box<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A sign of life.
    Ping,
    /// To hear a topic or a pattern, from a position on or from now on.
    Subscribe(String, Option<String>),
    /// To hear it no longer.
    Unsubscribe(String),
    /// To go on with another token.
    Refresh(Secret),
    /// Anything else.
    Other,
}

/// Something that a client asked for did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What programs look at.
    pub code: &'static str,
    /// What people read.
    pub message: &'static str,
}

const fn complaint(code: &'static str, message: &'static str) -> Complaint {
    Complaint { code, message }
}

/// More messages than may be.
pub const TOO_MANY_MESSAGES: Complaint = complaint("rate_limited", "Too many messages");

/// Reads a message.
pub fn parse(message: &[u8]) -> Result<Asked, Complaint> {
    let outline = json::outline(message, MAX_DEPTH).map_err(|refusal| match refusal {
        Refusal::TooDeep => complaint("json_too_deep", "The body is nested too deeply"),
        Refusal::NameTwice => complaint("invalid_json", "An object holds the same key twice"),
        Refusal::Malformed => complaint("invalid_json", "The body is not valid JSON"),
    })?;
    let unlike =
        complaint("invalid_request", "A message is an object with a `type`; `event`, `from` and `token` are strings");
    let Outline::Object(members) = outline else { return Err(unlike) };
    let (mut kind, mut event, mut from, mut token) = (None, None, None, None);
    for (name, value) in members {
        let place = match &*name {
            "type" => &mut kind,
            "event" => &mut event,
            "from" => &mut from,
            "token" => &mut token,
            _ => continue,
        };
        *place = match value {
            Outline::Text(text) => Some(text.into_owned()),
            Outline::Null if name != "type" => None,
            _ => return Err(unlike),
        };
    }
    let needed = complaint("invalid_request", "event: is needed");
    match kind.ok_or(unlike)?.as_str() {
        "ping" => Ok(Asked::Ping),
        "subscribe" => Ok(Asked::Subscribe(event.ok_or(needed)?, from)),
        "unsubscribe" => Ok(Asked::Unsubscribe(event.ok_or(needed)?)),
        "refresh" => {
            let token = token.ok_or(complaint("invalid_request", "token: is needed"))?;
            Ok(Asked::Refresh(Secret(token.into())))
        }
        _ => Ok(Asked::Other),
    }
}

/// Why a subscription was refused, for the client.
#[must_use]
pub const fn refused(why: Refused) -> Complaint {
    match why {
        Refused::NotAPattern => {
            complaint("invalid_request", "`event` is a topic, `*`, or a topic's beginning and `.*`")
        }
        Refused::NoSuchTopic => complaint("not_found", "There is no such topic"),
        Refused::Forbidden => complaint("forbidden", "The token does not permit to hear this"),
        Refused::TooMany => complaint("invalid_request", "A connection has at most 256 subscriptions"),
        Refused::NotAPosition => complaint("invalid_request", "The position is not one that this service gave"),
        Refused::Busy => complaint("conflict", "An earlier subscription is still catching up"),
        Refused::Unknown => complaint("internal", "Something broke on our side"),
    }
}

/// The first message.
#[must_use]
pub fn connected(client_id: &str) -> Wire {
    with_text(r#"{"type":"connected","message":"connected","client_id":"#, client_id)
}

/// The answer to `ping`.
#[must_use]
pub fn pong(now_us: u64) -> Wire {
    with_number(r#"{"type":"pong","timestamp":"#, now_us)
}

/// A sign of life, for programs that see no Pings; in a stream a comment.
#[must_use]
pub fn heartbeat(now_us: u64, dialect: Dialect) -> Wire {
    match dialect {
        Dialect::EventStream => Wire::chunk(b": heartbeat\n\n"),
        _ => with_number(r#"{"type":"heartbeat","ts":"#, now_us),
    }
}

/// What the hub has said.
#[must_use]
pub fn wire(payload: Arc<[u8]>, dialect: Dialect) -> Wire {
    match dialect {
        Dialect::Plain | Dialect::Batched => Wire::text(payload),
        Dialect::EventStream => Wire::chunk(&payload),
    }
}

/// The beginning of a stream: how long its client waits before it comes again. Those who were lost together do not come back
/// together.
#[must_use]
pub fn retry(ms: u64) -> Wire {
    Wire::chunk(format!("retry: {ms}\n\n").as_bytes())
}

/// The answer to `unsubscribe`.
#[must_use]
pub fn unsubscribed(pattern: &str) -> Wire {
    with_text(r#"{"type":"unsubscribed","event":"#, pattern)
}

/// The answer to what the protocol does not know: JSON as it came.
#[must_use]
pub fn echo(message: &[u8]) -> Wire {
    Wire::text([br#"{"type":"echo","data":"#, message.trim_ascii(), b"}"].concat())
}

/// Tells of something that did not happen.
#[must_use]
pub fn error(complaint: Complaint) -> Wire {
    let mut text = String::from(r#"{"type":"error","code":"#);
    quote(complaint.code, &mut text);
    text.push_str(r#","message":"#);
    quote(complaint.message, &mut text);
    text.push('}');
    Wire::text(text.into_bytes())
}

/// Tells a client that its token ends.
#[must_use]
pub fn expiring(in_s: u64, dialect: Dialect) -> Wire {
    notice("expiring", "in_s", in_s, dialect)
}

/// Tells a client when it should come back.
#[must_use]
pub fn reconnect(in_ms: u64, dialect: Dialect) -> Wire {
    notice("reconnect", "in_ms", in_ms, dialect)
}

/// A message of ours that is no answer, with one number.
fn notice(kind: &str, member: &str, value: u64, dialect: Dialect) -> Wire {
    let json = format!(r#"{{"type":"{kind}","{member}":{value}}}"#);
    match dialect {
        Dialect::EventStream => Wire::chunk(&stream_event(kind, &json, None)),
        _ => Wire::text(json.into_bytes()),
    }
}

fn with_number(head: &str, value: u64) -> Wire {
    Wire::text(format!("{head}{value}}}").into_bytes())
}

fn with_text(head: &str, value: &str) -> Wire {
    let mut text = String::from(head);
    quote(value, &mut text);
    text.push('}');
    Wire::text(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_they_say() {
        for (message, expected) in [
            (r#"{"type":"ping"}"#, Asked::Ping),
            (r#" {"x":[1.5,{"y":99999999999999999999}],"type":"ping","event":null} "#, Asked::Ping),
            (r#"{"type":"subscribe","event":"app.\u0061"}"#, Asked::Subscribe("app.a".into(), None)),
            (r#"{"type":"subscribe","event":"*","from":"p"}"#, Asked::Subscribe("*".into(), Some("p".into()))),
            (r#"{"type":"unsubscribe","event":""}"#, Asked::Unsubscribe(String::new())),
            (r#"{"type":"refresh","token":"a.b"}"#, Asked::Refresh(Secret("a.b".into()))),
            (r#"{"type":"Ping"}"#, Asked::Other),
            (r#"{"type":""}"#, Asked::Other),
        ] {
            assert_eq!(Ok(expected), parse(message.as_bytes()), "{message}");
        }
    }

    #[test]
    fn what_is_no_message_is_told_why() {
        let deep = "[".repeat(40);
        for (message, code, part) in [
            ("", "invalid_json", "valid"),
            ("{", "invalid_json", "valid"),
            ("\u{feff}{}", "invalid_json", "valid"),
            (r#"{"type":"ping","type":"ping"}"#, "invalid_json", "twice"),
            (&*deep, "json_too_deep", "deep"),
            ("[]", "invalid_request", "object"),
            ("{}", "invalid_request", "object"),
            (r#"{"type":1}"#, "invalid_request", "object"),
            (r#"{"type":null}"#, "invalid_request", "object"),
            (r#"{"type":"ping","event":1}"#, "invalid_request", "object"),
            (r#"{"type":"ping","from":{}}"#, "invalid_request", "object"),
            (r#"{"type":"subscribe"}"#, "invalid_request", "event: is needed"),
            (r#"{"type":"ping","token":1}"#, "invalid_request", "object"),
            (r#"{"type":"refresh"}"#, "invalid_request", "token: is needed"),
            (r#"{"type":"unsubscribe","event":null}"#, "invalid_request", "event: is needed"),
        ] {
            let complaint = parse(message.as_bytes()).unwrap_err();
            assert!(complaint.code == code && complaint.message.contains(part), "{message} {complaint:?}");
        }
    }

    #[test]
    fn a_stream_is_told_in_chunks() {
        let chunk = |wire: Wire| String::from_utf8(wire.rest(0).concat()).unwrap();
        assert_eq!("d\r\n: heartbeat\n\n\r\n", chunk(heartbeat(6, Dialect::EventStream)));
        let expiring = chunk(expiring(8, Dialect::EventStream));
        assert_eq!("34\r\nevent: expiring\ndata: {\"type\":\"expiring\",\"in_s\":8}\n\n\r\n", expiring);
        let last = chunk(Wire::farewell(4401, "the token has expired"));
        assert!(
            last.contains("\nevent: closed\ndata: {\"type\":\"closed\",\"code\":4401,\"reason\":\"the token"),
            "{last}"
        );
        assert!(last.ends_with("\n\n\r\n0\r\n\r\n"));
    }

    #[test]
    fn answers_are_json_whatever_is_in_them() {
        let payload = |wire: Wire| String::from_utf8(wire.rest(2).concat()).unwrap();
        assert_eq!(r#"{"type":"unsubscribed","event":"a\"\\"}"#, payload(unsubscribed("a\"\\")));
        assert_eq!(r#"{"type":"echo","data":{"type":"x"}}"#, payload(echo(b" {\"type\":\"x\"}\n")));
        assert_eq!(r#"{"type":"connected","message":"connected","client_id":"a.b"}"#, payload(connected("a.b")));
        assert_eq!(r#"{"type":"pong","timestamp":5}"#, payload(pong(5)));
        assert_eq!(r#"{"type":"heartbeat","ts":6}"#, payload(heartbeat(6, Dialect::Plain)));
        assert_eq!(r#"{"type":"expiring","in_s":8}"#, payload(expiring(8, Dialect::Plain)));
        assert_eq!(r#"{"type":"reconnect","in_ms":7}"#, payload(reconnect(7, Dialect::Batched)));
        let text = payload(error(TOO_MANY_MESSAGES));
        assert_eq!(r#"{"type":"error","code":"rate_limited","message":"Too many messages"}"#, text);
    }
}
