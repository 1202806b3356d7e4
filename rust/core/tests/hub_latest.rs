//! State topics: who has been behind for a while is given the newest event of each key, and told that there were others.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use flx_core::hub::{Class, ConnKey, Delivery, Dialect, Event, Hub, Limits, Profile, Rights, Shard, TopicRule};

const CLASSES: [Class; 4] = [Class::Pipeline, Class::Execution, Class::Log, Class::App];

fn hub() -> Hub {
    let mut hub = Hub::new(Limits::default(), 1, "here");
    hub.set_topic_rules([("app.each.*", None), ("app.*", Some("k".into()))].map(|(pattern, latest)| TopicRule {
        pattern: pattern.into(),
        latest,
        ..TopicRule::default()
    }));
    hub.restart("e", 0, "start", 0);
    hub
}

fn connect(hub: &mut Hub, dialect: Dialect, pattern: &str) -> ConnKey {
    let (shard, rights) = (Shard::FIRST, Rights::new("ann", CLASSES));
    let conn = hub.connect(Profile { shard, tenant: "t".into(), rights, dialect }).unwrap();
    hub.subscribe(conn, pattern, None, 0).unwrap();
    conn
}

fn tell(hub: &mut Hub, topic: &str, seq: u64, prev: u64, data: &str) {
    assert!(hub.append(&Event { tenant: "t", topic, seq, prev, ts_us: 5, data }, 0));
}

fn take(hub: &mut Hub, now_ms: u64) -> Vec<Delivery> {
    let mut out = Vec::new();
    hub.take(Shard::FIRST, now_ms, usize::MAX / 2, &mut out);
    out
}

/// What a connection is told, but for positions: gaps as (topic, after, before, reason), events as (topic, numbers).
fn told(deliveries: &[Delivery], conn: ConnKey) -> Vec<String> {
    let its = deliveries.iter().filter(|delivery| delivery.conn == conn).flat_map(|delivery| &delivery.turn.frames);
    its.map(|frame| {
        let value: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
        if value["type"] == "gap" {
            return format!("{} {} to {}: {}", value["t"], value["after"], value["before"], value["reason"]);
        }
        format!("{} {} after {}", value["t"], value["s"], value["prev"])
    })
    .collect()
}

/// A connection that takes nothing at 0 ms, and hears `a:1 b:2 a:3 c:4 b:5`, where the letters are keys.
fn behind(hub: &mut Hub, topic: &str, member: &str) -> ConnKey {
    let slow = connect(hub, Dialect::Batched, topic);
    let data = |key| format!("{{\"{member}\":\"{key}\"}}");
    tell(hub, topic, 1, 0, &data("a"));
    for delivery in take(hub, 0) {
        if delivery.conn == slow {
            hub.put_back(slow, &delivery.turn, 0);
        }
    }
    for (seq, key) in [(2, "b"), (3, "a"), (4, "c"), (5, "b")] {
        tell(hub, topic, seq, seq - 1, &data(key));
    }
    slow
}

#[test]
fn who_is_behind_for_long_is_given_the_newest_of_each_key() {
    for (topic, member) in [
        ("app.x", "k"),
        ("pipeline_events", "pipeline"),
        ("execution_events", "execution"),
        ("execution.1.status", "execution"),
        ("execution.1.metric", "plugin"),
    ] {
        let mut hub = hub();
        let slow = behind(&mut hub, topic, member);
        hub.writable(slow, 1_000);
        let expected = [format!("\"{topic}\" 0 to 3: \"superseded\""), format!("\"{topic}\" [3,5] after 2")];
        assert_eq!(expected, *told(&take(&mut hub, 1_200), slow));
        assert_eq!(1, hub.gaps()["superseded"]);
        // It has caught up, and is given everything again.
        let data = format!("{{\"{member}\":\"a\"}}");
        tell(&mut hub, topic, 6, 5, &data);
        tell(&mut hub, topic, 7, 6, &data);
        assert_eq!([format!("\"{topic}\" [6,7] after 5")], *told(&take(&mut hub, 5_000), slow));
    }
}

#[test]
fn everything_is_told_to_who_keeps_up_of_what_is_no_state_and_without_a_key() {
    let mut hub = hub();
    let swift = connect(&mut hub, Dialect::Batched, "app.x");
    let slow = behind(&mut hub, "app.x", "k");
    assert_eq!(["\"app.x\" [2,5] after 1"], *told(&take(&mut hub, 900), swift));
    hub.writable(slow, 900);
    assert_eq!(["\"app.x\" [1,5] after 0"], *told(&take(&mut hub, 999), slow), "for less than a second");
    for (topic, member) in [("app.each.x", "k"), ("app.x", "other")] {
        let mut hub = self::hub();
        let slow = behind(&mut hub, topic, member);
        hub.writable(slow, 1_000);
        assert_eq!([format!("\"{topic}\" [1,5] after 0")], *told(&take(&mut hub, 1_200), slow));
    }
}

#[test]
fn several_topics_are_told_of_once_each_and_frames_that_were_not_taken_come_again() {
    let mut hub = hub();
    let slow = connect(&mut hub, Dialect::Batched, "*");
    tell(&mut hub, "app.x", 1, 0, r#"{"k":1}"#);
    let turn = take(&mut hub, 0).remove(0).turn;
    hub.put_back(slow, &turn, 0);
    for seq in 1..=3 {
        tell(&mut hub, "app.x", 3 * seq - 1, if seq == 1 { 1 } else { 3 * seq - 4 }, r#"{"k":1}"#);
        tell(&mut hub, "app.y", 3 * seq, if seq == 1 { 0 } else { 3 * seq - 3 }, r#"{"k":"z"}"#);
        tell(&mut hub, "app.each.x", 3 * seq + 1, if seq == 1 { 0 } else { 3 * seq - 2 }, "0");
    }
    hub.writable(slow, 1_100);
    let deliveries = take(&mut hub, 2_000);
    let expected = [
        "\"app.x\" 0 to 6: \"superseded\"",
        "\"app.y\" 0 to 7: \"superseded\"",
        "\"app.each.x\" [4,7] after 0",
        "\"app.x\" [8] after 5",
        "\"app.y\" [9] after 6",
        "\"app.each.x\" [10] after 7",
    ];
    assert_eq!(expected, *told(&deliveries, slow));
    // It took the gaps and one frame; what is newer by now than what it was to get is left out, too.
    hub.put_back(slow, &deliveries[0].turn, 3);
    tell(&mut hub, "app.x", 11, 8, r#"{"k":1}"#);
    hub.writable(slow, 2_100);
    let expected = [
        "\"app.x\" 5 to 9: \"superseded\"",
        "\"app.y\" [9] after 6",
        "\"app.each.x\" [10] after 7",
        "\"app.x\" [11] after 8",
    ];
    assert_eq!(expected, *told(&take(&mut hub, 3_000), slow));
}

#[test]
fn who_resumes_is_given_everything() {
    let mut hub = hub();
    let slow = connect(&mut hub, Dialect::Batched, "app.y");
    let begin = hub.position("t").encode();
    for seq in 1..=4 {
        tell(&mut hub, "app.x", seq, seq - 1, r#"{"k":1}"#);
    }
    hub.subscribe(slow, "app.x", Some(&begin), 0).unwrap();
    let turn = take(&mut hub, 500).remove(0).turn;
    hub.put_back(slow, &turn, 0);
    hub.writable(slow, 9_000);
    assert_eq!(["\"app.x\" [1,4] after 0"], *told(&take(&mut hub, 9_200), slow));
}
