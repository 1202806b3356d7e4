//! What goes to clients: frames, and the turns in which connections take them.
//!
//! Strategy: a frame is a whole text message, built once for everyone who gets the same events. A turn is what one cohort gets
//! at once; it remembers the order after each frame, so that a connection that took only some of them goes on from there.
//!
//! Rules: what a client sees of an event is the JSON that was published; `s` is the list of numbers, or the first and the last
//! when there are more than two without a hole; positions are honest after each frame, and in an event stream after each event.

use std::fmt::Write as _;
use std::sync::Arc;

use super::log::{Kind, TopicLog};
use super::position::quote;
use super::reader::Joins;
use super::rights::PRESENCE;
use super::store::Store;
use crate::decimal::Decimal;

/// The `type` of nearly all events, and their name in a stream.
const EVENT: &str = "event";

/// What frames look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// One JSON object an event.
    Plain,
    /// `flx.v1`: events of a topic in batches.
    Batched,
    /// `text/event-stream`: the objects of `Plain`, as many in a frame as there are, each with its position as its id.
    EventStream,
}

/// One text message of the protocol, or a piece of an event stream, without the header of a transport.
#[derive(Clone, Debug)]
pub struct Frame {
    /// JSON in UTF-8; whole events of a stream.
    pub payload: Arc<[u8]>,
    /// Events in it.
    pub events: u32,
    /// In a turn: the order after it.
    pub(super) end: u64,
}

impl Frame {
    /// A message that is no event of a topic: its `type`, its JSON, and the position that it stands for.
    fn control(kind: &str, text: String, pos: Option<&str>, dialect: Dialect) -> Self {
        let payload = match dialect {
            Dialect::Plain | Dialect::Batched => text.into_bytes(),
            Dialect::EventStream => stream_event(kind, &text, pos),
        };
        Self { payload: payload.into(), events: 0, end: 0 }
    }
}

/// What a cohort gets at once: at least one frame.
#[derive(Debug)]
pub struct Turn {
    /// Different for each turn of a hub, for transports that keep something per turn.
    pub number: u64,
    /// What its frames look like.
    pub dialect: Dialect,
    /// The messages, in this order.
    pub frames: Vec<Frame>,
    /// The order before the first frame.
    pub(super) start: u64,
    pub(super) joins: Option<Arc<Joins>>,
    /// Whether the first frame tells of a restart.
    pub(super) reset: bool,
    /// Since when its readers are behind.
    pub(super) behind_ms: Option<u64>,
}

/// The entries `from..to` of a topic, next to one another for their reader too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) topic: u32,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Room in which frames are made, before they are copied to where they are shared.
#[derive(Debug, Default)]
pub(super) struct Bench {
    text: String,
    bytes: Vec<u8>,
}

/// Builds the frames of a run; `each` gets them with the order of their first event.
pub(super) fn frames_of(
    store: &Store,
    run: Run,
    dialect: Dialect,
    frame_bytes: usize,
    bench: &mut Bench,
    mut each: impl FnMut(Frame, u64),
) {
    let Some(topic) = store.topic(run.topic) else { return };
    let mut from = run.from;
    while from < run.to {
        let to = match dialect {
            Dialect::Plain => from + 1,
            Dialect::Batched | Dialect::EventStream => topic.within(from, run.to, frame_bytes),
        };
        let order = topic.entries[to - 1].order;
        let pos = store.encode_position(order, &topic.tenant);
        let epoch = store.epoch_of(topic);
        let payload = match dialect {
            Dialect::Plain => plain(topic, from, epoch, &pos).into(),
            Dialect::Batched => batch(topic, from, to, epoch, &pos, bench),
            Dialect::EventStream => stream_of(store, topic, from, to, epoch).into(),
        };
        each(Frame { payload, events: (to - from) as u32, end: order }, topic.entries[from].order);
        from = to;
    }
}

fn plain(topic: &TopicLog, index: usize, epoch: &str, pos: &str) -> Vec<u8> {
    let entry = topic.entries[index];
    let mut out = plain_head(&topic.name, entry.seq, topic.prev(index), epoch, entry.ts_us, pos, is_ephemeral(topic));
    topic.copy(index, index + 1, &mut out);
    out.push(b'}');
    out
}

fn plain_head(topic: &str, seq: u64, prev: u64, epoch: &str, ts_us: u64, pos: &str, ephemeral: bool) -> Vec<u8> {
    let mut text = String::with_capacity(256);
    let kind = kind_of(topic, ephemeral);
    let _ = write!(text, r#"{{"type":"{kind}","event":"#);
    quote(topic, &mut text);
    write_member("seq", seq, &mut text);
    write_member("prev", prev, &mut text);
    text.push_str(r#","epoch":"#);
    quote(epoch, &mut text);
    write_member("ts", ts_us, &mut text);
    text.push_str(r#","pos":""#);
    text.push_str(pos);
    text.push('"');
    text.push_str(if ephemeral { EPHEMERAL } else { "" });
    text.push_str(r#","data":"#);
    text.into_bytes()
}

/// One event of a stream (WHATWG HTML section 9.2). A line break in `json`, which may only stand between its tokens, would be
/// the end of a line of the stream.
#[must_use]
pub fn stream_event(kind: &str, json: &str, id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + id.map_or(0, str::len) + kind.len() + 32);
    let begun = stream_head(kind, id, &mut out);
    out.extend_from_slice(json.as_bytes());
    end_stream_event(begun, &mut out);
    out
}

/// Begins an event; where its data begins.
fn stream_head(kind: &str, id: Option<&str>, out: &mut Vec<u8>) -> usize {
    for (field, value) in [("id: ", id), ("event: ", Some(kind))] {
        if let Some(value) = value {
            out.extend_from_slice(field.as_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(b'\n');
        }
    }
    out.extend_from_slice(b"data: ");
    out.len()
}

fn end_stream_event(begun: usize, out: &mut Vec<u8>) {
    for byte in &mut out[begun..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\n\n");
}

fn stream_of(store: &Store, topic: &TopicLog, from: usize, to: usize, epoch: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 * (to - from) + topic.len_of(from, to));
    for index in from..to {
        let pos = store.encode_position(topic.entries[index].order, &topic.tenant);
        let begun = stream_head(kind_of(&topic.name, is_ephemeral(topic)), Some(&pos), &mut out);
        out.extend_from_slice(&plain(topic, index, epoch, &pos));
        end_stream_event(begun, &mut out);
    }
    out
}

fn batch(topic: &TopicLog, from: usize, to: usize, epoch: &str, pos: &str, bench: &mut Bench) -> Arc<[u8]> {
    let (first, last) = (topic.entries[from], topic.entries[to - 1]);
    let Bench { text, bytes } = bench;
    text.clear();
    bytes.clear();
    batch_head(&topic.name, epoch, is_ephemeral(topic), text);
    if to - from > 2 && last.seq - first.seq == (to - from - 1) as u64 {
        write_numbers([first.seq, last.seq].into_iter(), text);
    } else {
        write_numbers(topic.entries.range(from..to).map(|entry| entry.seq), text);
    }
    batch_middle(topic.prev(from), pos, last.ts_us, is_ephemeral(topic), text);
    bytes.extend_from_slice(text.as_bytes());
    topic.copy(from, to, bytes);
    bytes.extend_from_slice(b"]}");
    Arc::from(&bytes[..])
}

fn write_numbers(numbers: impl Iterator<Item = u64>, text: &mut String) {
    for (index, number) in numbers.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(Decimal::of(number).as_str());
    }
}

fn write_member(name: &str, number: u64, text: &mut String) {
    text.push_str(",\"");
    text.push_str(name);
    text.push_str("\":");
    text.push_str(Decimal::of(number).as_str());
}

fn is_presence(topic: &str, ephemeral: bool) -> bool {
    ephemeral && topic.starts_with(PRESENCE)
}

/// The `type` of an event.
fn kind_of(topic: &str, ephemeral: bool) -> &'static str {
    if is_presence(topic, ephemeral) { "presence" } else { EVENT }
}

fn batch_head(topic: &str, epoch: &str, ephemeral: bool, text: &mut String) {
    text.push_str(if is_presence(topic, ephemeral) { r#"{"type":"presence","t":"# } else { r#"{"t":"# });
    quote(topic, text);
    text.push_str(r#","e":"#);
    quote(epoch, text);
    text.push_str(r#","s":["#);
}

fn batch_middle(prev: u64, pos: &str, ts_us: u64, ephemeral: bool, text: &mut String) {
    text.push(']');
    write_member("prev", prev, text);
    text.push_str(r#","pos":""#);
    text.push_str(pos);
    text.push('"');
    write_member("ts", ts_us, text);
    text.push_str(if ephemeral { EPHEMERAL } else { "" });
    text.push_str(r#","d":["#);
}

/// What says that an event is in no journal: its numbers are a chain of their own beside that of the journal.
const EPHEMERAL: &str = r#","ephemeral":true"#;

fn is_ephemeral(topic: &TopicLog) -> bool {
    topic.kind == Kind::Ephemeral
}

/// An event that is not in memory (the daemon told it again).
pub(super) struct Told<'a> {
    pub(super) topic: &'a str,
    pub(super) seq: u64,
    pub(super) prev: u64,
    pub(super) ts_us: u64,
    pub(super) json: &'a str,
}

/// The frame of events of one topic that follow one another; unless they are batched, of the only one.
pub(super) fn frame_of_told(events: &[Told<'_>], dialect: Dialect, epoch: &str, pos: &str) -> Option<Frame> {
    let (first, last) = (events.first()?, events.last()?);
    let mut out = match dialect {
        Dialect::Plain | Dialect::EventStream => {
            plain_head(last.topic, last.seq, last.prev, epoch, last.ts_us, pos, false)
        }
        Dialect::Batched => {
            let mut text = String::new();
            batch_head(first.topic, epoch, false, &mut text);
            write_numbers(events.iter().map(|event| event.seq), &mut text);
            batch_middle(first.prev, pos, last.ts_us, false, &mut text);
            text.into_bytes()
        }
    };
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(event.json.as_bytes());
    }
    out.extend_from_slice(if dialect == Dialect::Batched { b"]}" } else { b"}" });
    if dialect == Dialect::EventStream {
        let json = std::mem::take(&mut out);
        let begun = stream_head(EVENT, Some(pos), &mut out);
        out.extend_from_slice(&json);
        end_stream_event(begun, &mut out);
    }
    Some(Frame { payload: out.into(), events: events.len() as u32, end: 0 })
}

/// `subscribed`: what follows begins at `pos`.
pub(super) fn subscribed(pattern: &str, pos: &str, dialect: Dialect) -> Frame {
    let mut text = String::from(r#"{"type":"subscribed","event":"#);
    quote(pattern, &mut text);
    text.push_str(r#","pos":"#);
    quote(pos, &mut text);
    text.push('}');
    Frame::control("subscribed", text, Some(pos), dialect)
}

/// What was skipped.
pub(super) struct Gap<'a> {
    /// The topic or pattern; None is everything.
    pub(super) topic: Option<&'a str>,
    /// Numbers of the topic between these may be missing.
    pub(super) between: Option<(u64, u64)>,
    pub(super) epoch: &'a str,
    pub(super) reason: &'a str,
    /// Where it goes on, where that is known.
    pub(super) pos: Option<&'a str>,
    /// The execution whose log it is: its lines can still be read.
    pub(super) log_of: Option<&'a str>,
}

/// A gap is always told.
pub(super) fn gap(gap: &Gap<'_>, dialect: Dialect) -> Frame {
    let mut text = String::with_capacity(160);
    match dialect {
        Dialect::Plain => {
            text.push_str(r#"{"type":"error","code":"gap","message":"Events were skipped; what follows is new""#);
            if let Some(topic) = gap.topic {
                text.push_str(r#","event":"#);
                quote(topic, &mut text);
            }
        }
        // An error of a stream is something else to a browser.
        Dialect::Batched | Dialect::EventStream => {
            text.push_str(r#"{"type":"gap","t":"#);
            quote(gap.topic.unwrap_or("*"), &mut text);
        }
    }
    if let Some((after, before)) = gap.between {
        let _ = write!(text, r#","after":{after},"before":{before}"#);
    }
    for (name, value) in [("reason", Some(gap.reason)), ("epoch", Some(gap.epoch)), ("pos", gap.pos)] {
        if let Some(value) = value {
            let _ = write!(text, r#","{name}":"#);
            quote(value, &mut text);
        }
    }
    if let (Some(execution), Some((after, _))) = (gap.log_of, gap.between) {
        text.push_str(r#","href":"#);
        quote(&format!("/v1/executions/{execution}/logs?from={}", after + 1), &mut text);
    }
    text.push('}');
    Frame::control("gap", text, gap.pos, dialect)
}
