//! Ephemeral topics come and go, and are too many now and then.
//!
//! Strategy: clients that read at their own pace hear random events, while the hub forgets what is old and keeps the numbers of
//! hardly any topic. Each client judges what it is told as docs/protocol.md says, and in the end what it was not told.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{HashMap, HashSet};

use flx_core::hub::{Class, ConnKey, Dialect, Hub, Limits, Profile, Rights, Shard, topic};
use proptest::prelude::*;
use serde_json::Value;

const PATTERNS: [&[&str]; 5] = [&["app.*"], &["*"], &["app.1"], &["app.2", "app.1", "user.*"], &["app.1", "app.*"]];
const TOPICS: u64 = 9;
const TTL_MS: u64 = 10;

#[derive(Clone, Debug)]
enum Step {
    Publish(u64),
    Pass(u64),
    /// All that is due is taken; who is of this number takes only so many frames.
    Take(usize, usize),
    Writable,
    Lose,
    /// Another one comes, or goes.
    Other,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..TOPICS).prop_map(Step::Publish),
        3 => (1..2 * TTL_MS).prop_map(Step::Pass),
        3 => (0..PATTERNS.len(), 0..4_usize).prop_map(|(who, taken)| Step::Take(who, taken)),
        2 => Just(Step::Writable),
        1 => Just(Step::Lose),
        1 => Just(Step::Other),
    ]
}

/// Topic, epoch and number.
type Number = (String, String, u64);
/// What a gap names, the numbers between, and how many events there were by then.
type Told = (String, Option<(u64, u64)>, usize);

struct Client {
    conn: ConnKey,
    patterns: &'static [&'static str],
    /// Of each topic: epoch and number of the last event, unless a gap ended the chain.
    chains: HashMap<String, (String, u64)>,
    seen: HashSet<Number>,
    heard: HashSet<usize>,
    gaps: Vec<Told>,
}

impl Client {
    fn hear(&mut self, message: &Value, published: usize, meaning: &mut HashMap<Number, u64>) {
        let its = message["t"].as_str().unwrap();
        if message["type"] == "gap" {
            let between = message["after"].as_u64().zip(message["before"].as_u64());
            self.gaps.push((its.into(), between, published));
            self.chains.retain(|topic, _| !topic::matches(its, topic));
            return;
        }
        let epoch = message["e"].as_str().unwrap();
        let (numbers, events) = (message["s"].as_array().unwrap(), message["d"].as_array().unwrap());
        let first = numbers[0].as_u64().unwrap();
        let last = numbers.last().unwrap().as_u64().unwrap();
        assert_eq!(last - first + 1, events.len() as u64, "{message}");
        if let Some((known, seq)) = self.chains.get(its) {
            assert_eq!((known.as_str(), Some(*seq)), (epoch, message["prev"].as_u64()), "{message}");
        }
        for (seq, event) in (first..).zip(events) {
            let number = (its.to_owned(), epoch.to_owned(), seq);
            let id = event.as_u64().unwrap();
            assert_eq!(id, *meaning.entry(number.clone()).or_insert(id), "a number means two events: {message}");
            assert!(self.seen.insert(number) && self.heard.insert(id as usize), "told twice: {message}");
        }
        self.chains.insert(its.into(), (epoch.into(), last));
    }

    /// Whether it was told that it may have missed an event.
    fn knows_of(&self, id: usize, topic: &str, seq: u64) -> bool {
        self.gaps.iter().any(|(what, between, published)| {
            let has_it = between.is_none_or(|(after, before)| after < seq && seq < before);
            topic::matches(what, topic) && has_it && id < *published
        })
    }
}

fn connect(hub: &mut Hub, patterns: &[&str]) -> ConnKey {
    let rights = Rights::new("ann", [Class::App, Class::User]);
    let conn =
        hub.connect(Profile { shard: Shard::FIRST, tenant: "t".into(), rights, dialect: Dialect::Batched }).unwrap();
    hub.subscribe_all(conn, patterns, None, 0).unwrap();
    conn
}

proptest! {
    #[test]
    fn nothing_is_missing_without_a_word_however_many_topics_there_were(steps in prop::collection::vec(step(), 1..150)) {
        let limits = Limits { topic_ttl_ms: TTL_MS, empty_topics: 2, ..Limits::default() };
        let (mut hub, mut now_ms) = (Hub::new(limits, 1, "here"), 1);
        hub.restart("e", 0, "start", 0);
        let clients = PATTERNS.map(|patterns| Client {
            conn: connect(&mut hub, patterns),
            patterns,
            chains: HashMap::new(),
            seen: HashSet::new(),
            heard: HashSet::new(),
            gaps: Vec::new(),
        });
        let (mut clients, mut published, mut meaning) = (Vec::from(clients), Vec::new(), HashMap::new());
        let mut other = None;
        let end = [Step::Writable, Step::Pass(1_000), Step::Take(usize::MAX, 0), Step::Pass(1_000), Step::Take(usize::MAX, 0)];
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Publish(topic) => {
                    let topic = format!("app.{topic}");
                    let seq = hub.publish("t", &topic, 5, &published.len().to_string(), now_ms).unwrap();
                    published.push((topic, seq));
                }
                Step::Pass(ms) => {
                    now_ms += ms;
                    hub.sweep(now_ms);
                }
                Step::Take(who, taken) => {
                    let mut deliveries = Vec::new();
                    hub.take(Shard::FIRST, now_ms, 100, &mut deliveries);
                    for delivery in deliveries {
                        let Some(at) = clients.iter().position(|client| client.conn == delivery.conn) else { continue };
                        let frames = &delivery.turn.frames;
                        let taken = if at == who { taken.min(frames.len()) } else { frames.len() };
                        for frame in &frames[..taken] {
                            let message = serde_json::from_slice(&frame.payload).unwrap();
                            clients[at].hear(&message, published.len(), &mut meaning);
                        }
                        if at == who {
                            hub.put_back(delivery.conn, &delivery.turn, taken);
                        }
                    }
                }
                Step::Writable => clients.iter().for_each(|client| hub.writable(client.conn, now_ms)),
                Step::Lose => hub.lose("bus_restarted", now_ms),
                Step::Other => match other.take() {
                    Some(conn) => hub.disconnect(conn),
                    None => other = Some(connect(&mut hub, &["app.3", "app.*"])),
                },
            }
        }
        for client in &clients {
            prop_assert!(hub.has_passed(client.conn, hub.order()));
            for (id, (topic, seq)) in published.iter().enumerate() {
                let wants = client.patterns.iter().any(|pattern| topic::matches(pattern, topic));
                let is_told = client.heard.contains(&id) || client.knows_of(id, topic, *seq);
                prop_assert_eq!(wants, is_told && wants, "{} {} {}", id, topic, seq);
                prop_assert!(wants || !client.heard.contains(&id));
            }
        }
        // What is left: what somebody hears by its name, the lists of losses, and the numbers of few.
        prop_assert!(hub.stats().topics <= 16, "{}", hub.stats().topics);
    }
}
