//! Streams of events against the plain dialect, which says one object a message: both tell the same, whatever happens.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use flx_core::hub::{
    Backfill, Class, ConnKey, Delivery, Dialect, Event, Frame, Hub, Limits, Position, Profile, Refused, Rights, Shard,
    stream_event,
};
use proptest::prelude::*;
use serde_json::Value;

const ALL: [Class; 6] = [Class::Pipeline, Class::Execution, Class::Log, Class::Schedule, Class::System, Class::App];
const TOPICS: [&str; 4] = ["app.a", "app.b", "execution.x.log", "pipeline_events"];

/// An event of a stream as WHATWG HTML section 9.2.6 reads it.
#[derive(Debug, PartialEq)]
struct Read {
    id: Option<String>,
    kind: String,
    data: Value,
}

fn read(payload: &[u8]) -> Vec<Read> {
    let text = std::str::from_utf8(payload).unwrap();
    assert!(text.ends_with("\n\n"), "{text:?} is torn");
    let blocks = text.trim_end_matches('\n').split("\n\n");
    blocks
        .map(|block| {
            let (mut id, mut kind, mut data) = (None, String::new(), Vec::new());
            for line in block.split(['\n', '\r']) {
                match line.split_once(": ").unwrap() {
                    ("id", value) => id = Some(value.to_owned()),
                    ("event", value) => value.clone_into(&mut kind),
                    ("data", value) => data.push(value),
                    (other, _) => panic!("{other}"),
                }
            }
            Read { id, kind, data: serde_json::from_str(&data.join("\n")).unwrap() }
        })
        .collect()
}

fn profile(dialect: Dialect) -> Profile {
    Profile { shard: Shard::FIRST, tenant: "t".into(), rights: Rights::new("ann", ALL), dialect }
}

/// Two connections of a hub that should be told the same.
struct Pair {
    hub: Hub,
    plain: ConnKey,
    stream: ConnKey,
    told: (Vec<Value>, Vec<Read>),
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let mut hub = Hub::new(limits, 1, "here");
        hub.restart("e", 0, "start", 0);
        let (plain, stream) = (profile(Dialect::Plain), profile(Dialect::EventStream));
        let (plain, stream) = (hub.connect(plain).unwrap(), hub.connect(stream).unwrap());
        Self { hub, plain, stream, told: (Vec::new(), Vec::new()) }
    }

    fn hear(&mut self, conn: ConnKey, frames: &[Frame]) {
        for frame in frames {
            if conn == self.plain {
                self.told.0.push(serde_json::from_slice(&frame.payload).unwrap());
            } else {
                let events = read(&frame.payload);
                assert_eq!(frame.events as usize, events.iter().filter(|read| read.kind == "event").count());
                self.told.1.extend(events);
            }
        }
    }

    fn take(&mut self, now_ms: u64) {
        let mut out: Vec<Delivery> = Vec::new();
        self.hub.take(Shard::FIRST, now_ms, usize::MAX / 2, &mut out);
        for Delivery { conn, turn } in out {
            self.hear(conn, &turn.frames);
        }
    }

    /// The same was told, in the same order for each topic, and every event of the stream has its position as its id.
    fn agrees(&self) {
        let (plain, stream) = &self.told;
        for read in stream {
            assert_eq!(read.kind, read.data["type"].as_str().unwrap());
            assert_eq!(read.id.as_deref(), read.data["pos"].as_str());
        }
        for topic in TOPICS {
            let of = |value: &&Value| value["event"] == topic && value["type"] == "event";
            let ours: Vec<_> = stream.iter().map(|read| &read.data).filter(of).map(without_pos).collect();
            let theirs: Vec<_> = plain.iter().filter(of).map(without_pos).collect();
            assert_eq!(theirs, ours, "{topic}");
        }
        let gaps = |value: &&Value| value["type"] == "gap" || value["code"] == "gap";
        assert_eq!(plain.iter().filter(gaps).count(), stream.iter().map(|read| &read.data).filter(gaps).count());
    }
}

/// Those that catch up one pattern after the other pass other positions than those that do so together.
fn without_pos(value: &Value) -> Value {
    let mut value = value.clone();
    value.as_object_mut().unwrap().remove("pos");
    value
}

proptest! {
    #[test]
    fn a_stream_is_told_what_the_plain_dialect_is(
        before in prop::collection::vec(0..TOPICS.len(), 0..30),
        after in prop::collection::vec((0..TOPICS.len(), any::<bool>()), 0..60),
        patterns in prop::sample::subsequence(vec!["app.*", "app.a", "execution.x.log", "pipeline_events", "*"], 1..5),
        seen in 0_usize..30,
        small in any::<bool>(),
    ) {
        let frame_bytes = if small { 40 } else { 64 << 10 };
        let mut pair = Pair::new(Limits { frame_bytes, ..Limits::default() });
        let (mut seq, mut last, mut position) = (0, [0_u64; TOPICS.len()], None);
        let mut tell = |pair: &mut Pair, topic: usize| {
            let number = if TOPICS[topic].starts_with("execution.") { last[topic] + 1 } else { seq += 1; seq };
            let data = format!("{{\"n\":\n {number},\r\n\"s\":\"a\\nb\"}}");
            let event = Event { tenant: "t", topic: TOPICS[topic], seq: number, prev: last[topic], ts_us: 5, data: &data };
            assert!(pair.hub.append(&event, 1));
            last[topic] = number;
        };
        for (index, topic) in before.iter().enumerate() {
            if index == seen {
                position = Some(pair.hub.position("t").encode());
            }
            tell(&mut pair, *topic);
        }
        let all = pair.hub.subscribe_all(pair.stream, &patterns, position.as_deref(), 2).unwrap();
        prop_assert!(all.history.is_none());
        pair.hear(pair.stream, &all.frames);
        for pattern in &patterns {
            let one = pair.hub.subscribe(pair.plain, pattern, position.as_deref(), 2).unwrap();
            prop_assert!(one.history.is_none());
            pair.hear(pair.plain, &one.frames);
        }
        pair.take(3);
        for (at, (topic, serve)) in after.into_iter().enumerate() {
            tell(&mut pair, topic);
            if serve {
                pair.take(300 * at as u64);
            }
        }
        pair.take(1_000_000);
        pair.agrees();
    }

    #[test]
    fn whatever_json_is_told_is_one_line(value in "\\PC{0,20}", id in "[A-Za-z0-9_-]{0,20}") {
        let json = serde_json::to_string_pretty(&serde_json::json!({"type": "x", "a": value, "b": [1, 2]})).unwrap();
        let found = read(&stream_event("x", &json, Some(&id)));
        let data = serde_json::from_str::<Value>(&json).unwrap();
        prop_assert_eq!(vec![Read { id: Some(id), kind: "x".into(), data }], found);
    }
}

#[test]
fn several_topics_catch_up_together_and_each_position_covers_them_all() {
    let mut pair = Pair::new(Limits { topic_bytes: 1, ..Limits::default() });
    let long = format!("\"{}\"", "x".repeat(40_000));
    let event = |topic, seq, prev, data| Event { tenant: "t", topic, seq, prev, ts_us: 5, data };
    for (topic, seq, prev) in [("app.a", 1, 0), ("app.b", 2, 0), ("app.a", 3, 1), ("app.a", 4, 3), ("app.b", 5, 2)] {
        pair.hub.append(&event(topic, seq, prev, &long), 1);
    }
    let from = Position { epoch: "e".into(), seq: 1, ..Position::default() }.encode();
    let asked = pair.hub.subscribe_all(pair.stream, &["app.a", "app.b", "app.a"], Some(&from), 1).unwrap();
    pair.hear(pair.stream, &asked.frames);
    assert_eq!(Some(1), asked.history.map(|position| position.seq));
    assert_eq!(Refused::Busy, pair.hub.subscribe_all(pair.stream, &["app.c"], None, 1).unwrap_err());
    let events =
        [event("app.b", 2, 0, "2"), event("app.a", 3, 1, "3"), event("app.a", 4, 3, "4"), event("app.b", 5, 2, "5")];
    let batch = Backfill { epoch: "e", events: &events, journal_seq: 5, is_last: true };
    let (frames, done) = pair.hub.backfill(pair.stream, &batch, 1).unwrap();
    assert!(done);
    pair.hear(pair.stream, &frames);
    pair.hub.append(&event("app.b", 6, 5, "6"), 2);
    pair.take(3);
    let told: Vec<_> = pair.told.1.iter().filter(|read| read.kind == "event").collect();
    assert_eq!([2, 3, 4, 5, 6], *told.iter().map(|read| read.data["seq"].as_u64().unwrap()).collect::<Vec<_>>());
    for read in told {
        let position = Position::decode(read.id.as_deref().unwrap()).unwrap();
        assert_eq!(read.data["seq"], position.seq);
    }
}

#[test]
fn all_topics_are_subscribed_or_none() {
    let mut pair = Pair::new(Limits { max_subscriptions: 2, ..Limits::default() });
    for (patterns, why) in [
        (&["app.a", "nothing.x"][..], Refused::NoSuchTopic),
        (&["app.a", "user.bert"], Refused::Forbidden),
        (&["app.a", "app..b"], Refused::NotAPattern),
        (&["app.a", "app.b", "app.c"], Refused::TooMany),
    ] {
        assert_eq!(why, pair.hub.subscribe_all(pair.stream, patterns, None, 1).unwrap_err());
        assert!(pair.hub.subscriptions(pair.stream).is_empty());
    }
    let both = pair.hub.subscribe_all(pair.stream, &["app.a", "app.b", "app.a"], None, 1).unwrap();
    assert_eq!((3, 2), (both.frames.len(), pair.hub.subscriptions(pair.stream).len()));
    // A gap is no error, which would be one of the transport.
    pair.hub.restart("f", 0, "epoch", 2);
    pair.take(3);
    let last = pair.told.1.pop().unwrap();
    assert_eq!(("gap", "epoch"), (&*last.kind, last.data["reason"].as_str().unwrap()));
}
