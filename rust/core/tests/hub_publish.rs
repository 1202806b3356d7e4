//! Events that are told together are what they are one by one.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use flx_core::hub::{Class, ConnKey, Delivery, Dialect, Hub, Limits, Post, Profile, Rights, Shard};
use proptest::prelude::*;

const TOPICS: [&str; 6] = ["bench.a", "bench.a.0", "bench.b", "app.x", "app.x.y", "user.ann"];
const PATTERNS: [&str; 7] = ["*", "bench.*", "app.*", "bench.a", "app.x", "user.ann", "app.x.*"];

/// A hub with these clients, each with its patterns.
fn hub(clients: &[Vec<usize>]) -> (Hub, Vec<ConnKey>) {
    let mut hub = Hub::new(Limits { topic_bytes: 4096, total_bytes: 16_384, ..Limits::default() }, 1, "here");
    hub.restart("e", 0, "start", 0);
    let conns = clients.iter().enumerate().map(|(index, patterns)| {
        let dialect = if index % 2 == 0 { Dialect::Batched } else { Dialect::Plain };
        let rights = Rights::new(if index < 2 { "ann" } else { "bob" }, [Class::App, Class::User]);
        let conn = hub.connect(Profile { shard: Shard::FIRST, tenant: "t".into(), rights, dialect }).unwrap();
        for pattern in patterns {
            let _ = hub.subscribe(conn, PATTERNS[*pattern], None, 0);
        }
        conn
    });
    let conns = conns.collect();
    (hub, conns)
}

fn data(at: usize, number: u64, size: usize) -> String {
    format!(r#"{{"at":{at},"n":{number},"x":"{}"}}"#, "x".repeat(size))
}

fn texts(deliveries: &[Delivery]) -> Vec<(ConnKey, Vec<String>)> {
    let frames = |delivery: &Delivery| {
        let frames = delivery.turn.frames.iter();
        frames.map(|frame| String::from_utf8(frame.payload.to_vec()).unwrap()).collect()
    };
    deliveries.iter().map(|delivery| (delivery.conn, frames(delivery))).collect()
}

proptest! {
    /// The twin publishes one after the other, and finds out by itself how many each topic had before.
    #[test]
    fn all_at_once_is_one_by_one(
        clients in prop::collection::vec(prop::collection::vec(0..PATTERNS.len(), 0..4), 1..6),
        batches in prop::collection::vec(prop::collection::vec((0..TOPICS.len(), 0..400_usize), 0..20), 1..8),
        rooms in prop::collection::vec(0..8_usize, 8),
    ) {
        let ((mut hub, _), (mut twin, _)) = (hub(&clients), hub(&clients));
        let mut counts = [0; TOPICS.len()];
        for (now_ms, (batch, room)) in (1..).zip(batches.iter().zip(rooms)) {
            let posts: Vec<_> =
                batch.iter().map(|(topic, size)| Post { tenant: "t", topic: TOPICS[*topic], ts_us: *size as u64 }).collect();
            let told = hub.publish_all(&posts, now_ms, |place, number, out| {
                assert!(out.is_empty());
                out.push_str(&data(place, number, batch[place].1));
            });
            prop_assert!(told);
            for (place, (topic, size)) in batch.iter().enumerate() {
                let text = data(place, counts[*topic], *size);
                counts[*topic] += 1;
                prop_assert_eq!(Some(counts[*topic]), twin.publish("t", TOPICS[*topic], *size as u64, &text, now_ms));
            }
            for (topic, count) in TOPICS.iter().zip(counts) {
                let is_local = topic.starts_with("bench.");
                prop_assert_eq!(if is_local { count } else { 0 }, hub.number_of("t", topic));
            }
            let (mut mine, mut its) = (Vec::new(), Vec::new());
            hub.take(Shard::FIRST, now_ms, room, &mut mine);
            twin.take(Shard::FIRST, now_ms, room, &mut its);
            prop_assert_eq!(texts(&its), texts(&mine));
            prop_assert_eq!(twin.stats(), hub.stats());
            prop_assert_eq!(twin.wakes_at(Shard::FIRST), hub.wakes_at(Shard::FIRST));
        }
    }
}

#[test]
fn one_that_may_not_be_told_keeps_all_from_being_told() {
    let (mut hub, _) = hub(&[vec![0]]);
    let post = |topic| Post { tenant: "t", topic, ts_us: 1 };
    for topic in ["pipeline_events", "execution.x.log", "nothing"] {
        assert!(!hub.publish_all(&[post("app.x"), post(topic)], 1, |_, _, out| out.push('1')));
    }
    assert_eq!(0, hub.order());
}
