//! The hub against a naive model: what a client saw is the log with declared gaps.
//!
//! Strategy: a daemon is a list of events. Two small hubs hear it, each at its own pace, and cut, restart and sweep. Each has
//! three shards, whose servers sleep until something is due or they are called: nothing may come to be due behind a sleeper's
//! back, and who is awake is not called. Clients subscribe with and without positions, take turns whole or in part, stall,
//! leave, and come back to either hub with the last position they saw. Of state topics, who stalls for long may be told that
//! events were superseded, but never of the newest of a key. The judge knows for each client where each of its patterns began; in the end every event since then was
//! seen or lies in a gap that was told. On the way each frame is checked: right topic, tenant and rights, true numbers and
//! `prev`, the published data, and within a session nothing twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

mod daemon;

use std::collections::{BTreeMap, BTreeSet};

use daemon::{Daemon, TENANTS, Told};
use flx_core::hub::topic::matches;
use flx_core::hub::{
    Class, ConnKey, Delivery, Dialect, Frame, Hub, Limits, Profile, Refused, Rights, Shard, TopicRule,
};
use proptest::prelude::*;
use serde_json::Value;

const PATTERNS: [&str; 7] =
    ["pipeline_events", "execution.*", "execution.0.log", "execution.1.log", "execution.0.*", "*", "app.x"];

struct Gateway {
    hub: Hub,
    heard: usize,
    shards: [Shard; 3],
    /// Until when each shard's server sleeps (MAX is for ever); None while it is awake.
    sleeps: [Option<u64>; 3],
}

impl Gateway {
    fn new(number: u64) -> Self {
        let limits = Limits {
            topic_bytes: 3_000,
            total_bytes: 9_000,
            topic_ttl_ms: 5_000,
            frame_bytes: 600,
            turn_bytes: 1_500,
            lag_ms: 100,
            ..Limits::default()
        };
        let mut hub = Hub::new(limits, number, &format!("local{number}"));
        let latest = Some("k".into());
        hub.set_topic_rules([TopicRule {
            pattern: "app.x".into(),
            latest,
            history_events: Some(2),
            ..TopicRule::default()
        }]);
        hub.restart("e0", 0, "start", 0);
        let shards = [Shard::FIRST, hub.add_shard(), hub.add_shard()];
        Self { hub, heard: 0, shards, sleeps: [Some(u64::MAX); 3] }
    }

    fn sleep(&mut self, shard: usize) {
        self.sleeps[shard] = Some(self.hub.wakes_at(self.shards[shard]).unwrap_or(u64::MAX));
    }

    /// Who sleeps past something that is due was called.
    fn judge_calls(&mut self) {
        for called in self.hub.called() {
            assert!(self.sleeps[called.index()].take().is_some(), "who is awake is not called");
        }
        for shard in 0..3 {
            if let Some(until_ms) = self.sleeps[shard] {
                self.sleep(shard);
                assert!(self.sleeps[shard] >= Some(until_ms), "shard {shard} sleeps until {until_ms}");
            }
        }
    }
}

/// What a client was told to be missing: topic or pattern or `*`, the numbers between which it is, and whether newer events of
/// the same keys are to come.
type Gap = (String, Option<(u64, u64)>, bool);

struct Client {
    tenant: usize,
    rights: Rights,
    dialect: Dialect,
    shard: Shard,
    on: Option<(usize, ConnKey)>,
    stalled: bool,
    pos: Option<String>,
    epoch: u32,
    /// Where each pattern began, in what the daemon told.
    begins: BTreeMap<String, usize>,
    seen: BTreeSet<usize>,
    /// How often in this session, and how often may it be.
    times: BTreeMap<usize, usize>,
    replays: usize,
    last: BTreeMap<String, u64>,
    gaps: Vec<Gap>,
}

impl Client {
    fn hears(&self, told: &Told) -> bool {
        told.tenant == self.tenant && self.rights.may_hear(&told.topic)
    }

    fn forget_all(&mut self, heard: usize) {
        self.seen.clear();
        self.gaps.clear();
        self.last.clear();
        self.begins.values_mut().for_each(|begin| *begin = heard);
    }

    fn read(&mut self, frame: &Frame, daemon: &Daemon, heard: usize) {
        let text = std::str::from_utf8(&frame.payload).unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        if let Some(pos) = value["pos"].as_str() {
            self.pos = Some(pos.to_owned());
        }
        let is_gap = value["type"] == "gap" || value["code"] == "gap";
        if is_gap {
            assert_eq!(0, frame.events);
            let topic = value["t"].as_str().or_else(|| value["event"].as_str()).unwrap_or("*").to_owned();
            let between = value["after"].as_u64().map(|after| (after, value["before"].as_u64().unwrap()));
            if between.is_none() && topic == "*" {
                // Everything before is settled, here and in a new history.
                self.epoch = daemon.epoch;
                self.forget_all(heard);
            }
            self.gaps.push((topic, between, value["reason"] == "superseded"));
        } else if let Some(topic) = value["t"].as_str() {
            assert_eq!(Dialect::Batched, self.dialect);
            let data = value["d"].as_array().unwrap();
            let numbers: Vec<u64> = value["s"].as_array().unwrap().iter().map(|seq| seq.as_u64().unwrap()).collect();
            let numbers = match *numbers {
                [first, last] if data.len() > 2 => (first..=last).collect(),
                _ => numbers,
            };
            assert_eq!(data.len(), numbers.len());
            assert_eq!(data.len(), frame.events as usize);
            let mut prev = value["prev"].as_u64().unwrap();
            for (seq, data) in numbers.into_iter().zip(data) {
                self.take(topic, seq, prev, data, &value["e"], daemon);
                prev = seq;
            }
        } else if value["type"] == "event" {
            assert_eq!(Dialect::Plain, self.dialect);
            let (seq, prev) = (value["seq"].as_u64().unwrap(), value["prev"].as_u64().unwrap());
            self.take(value["event"].as_str().unwrap(), seq, prev, &value["data"], &value["epoch"], daemon);
        } else {
            assert_eq!("subscribed", value["type"]);
        }
    }

    fn take(&mut self, topic: &str, seq: u64, prev: u64, data: &Value, epoch: &Value, daemon: &Daemon) {
        assert_eq!(daemon.name(), epoch.as_str().unwrap());
        let index = daemon.index[&(self.tenant, topic.to_owned(), seq)];
        let told = &daemon.told[index];
        assert!(self.hears(told), "{topic} is not for this ear");
        assert!(self.begins.keys().any(|pattern| matches(pattern, topic)), "{topic} was not asked for");
        assert_eq!(told.prev, prev, "prev of {topic} {seq}");
        assert_eq!(told.data, data.to_string());
        let times = self.times.entry(index).or_default();
        *times += 1;
        assert!(*times <= 1 + self.replays, "{topic} {seq} came {times} times");
        if self.replays == 0 {
            let last = self.last.insert(topic.to_owned(), seq).unwrap_or(0);
            assert!(seq > last, "{topic}: {seq} after {last}");
            // What is missing in between was declared, or was before its pattern began.
            if let Some(missing) = (last > 0).then_some(prev).filter(|prev| *prev > last) {
                let index = daemon.index[&(self.tenant, topic.to_owned(), missing)];
                assert!(!self.is_due(index, daemon), "{topic}: {missing} was passed over");
            }
        }
        self.seen.insert(index);
    }

    /// Whether an event should have come and was neither seen nor told to be missing.
    fn is_due(&self, index: usize, daemon: &Daemon) -> bool {
        let told = &daemon.told[index];
        let begun = self.begins.iter().any(|(pattern, begin)| matches(pattern, &told.topic) && index >= *begin);
        let is_told = |(topic, between, is_superseded): &Gap| {
            matches(topic, &told.topic)
                && between.is_none_or(|(after, before)| told.seq > after && told.seq < before)
                && !(*is_superseded && daemon.is_newest(index))
        };
        begun && self.hears(told) && !self.seen.contains(&index) && !self.gaps.iter().any(is_told)
    }
}

struct World {
    daemon: Daemon,
    gateways: Vec<Gateway>,
    clients: Vec<Client>,
    now_ms: u64,
}

impl World {
    fn new(clients: &[(usize, bool, bool)]) -> Self {
        let client = |&(tenant, is_plain, logs_only): &(usize, bool, bool)| Client {
            tenant,
            rights: Rights::new(
                "ann",
                if logs_only {
                    vec![Class::Log, Class::App]
                } else {
                    vec![Class::Pipeline, Class::Execution, Class::Log, Class::App]
                },
            ),
            dialect: if is_plain { Dialect::Plain } else { Dialect::Batched },
            shard: Shard::FIRST,
            on: None,
            stalled: false,
            pos: None,
            epoch: 0,
            begins: BTreeMap::new(),
            seen: BTreeSet::new(),
            times: BTreeMap::new(),
            replays: 0,
            last: BTreeMap::new(),
            gaps: Vec::new(),
        };
        let gateways = vec![Gateway::new(1), Gateway::new(2)];
        Self { daemon: Daemon::default(), gateways, clients: clients.iter().map(client).collect(), now_ms: 1_000 }
    }

    fn hear(&mut self, gateway: usize, count: usize) {
        let Gateway { hub, heard, .. } = &mut self.gateways[gateway];
        for told in self.daemon.told.iter().skip(*heard).take(count) {
            assert!(hub.append(&told.event(), self.now_ms));
            assert!(!hub.append(&told.event(), self.now_ms), "heard before");
            *heard += 1;
        }
        if *heard == self.daemon.told.len() {
            hub.advance(self.daemon.seq);
        }
    }

    /// Serves the connections of a gateway's shard; one that has stalled takes only so many frames.
    fn serve(&mut self, gateway: usize, shard: usize, room: usize, partial: usize) {
        let mut out: Vec<Delivery> = Vec::new();
        let of_shard = self.gateways[gateway].shards[shard];
        self.gateways[gateway].sleeps[shard] = None;
        self.gateways[gateway].hub.take(of_shard, self.now_ms, room, &mut out);
        assert!(out.len() <= room);
        for Delivery { conn, turn } in out {
            let heard = self.gateways[gateway].heard;
            let client = self.clients.iter_mut().find(|client| client.on == Some((gateway, conn))).unwrap();
            assert_eq!(of_shard, client.shard);
            let taken = if client.stalled { partial.min(turn.frames.len()) } else { turn.frames.len() };
            for frame in &turn.frames[..taken] {
                client.read(frame, &self.daemon, heard);
            }
            if client.stalled {
                self.gateways[gateway].hub.put_back(conn, &turn, taken);
            }
        }
        self.gateways[gateway].sleep(shard);
    }

    fn subscribe(&mut self, client: usize, pattern: &str, from: Option<&str>) {
        let Some((gateway, conn)) = self.clients[client].on else { return };
        let now_ms = self.now_ms;
        let Gateway { hub, heard, .. } = &mut self.gateways[gateway];
        let found = hub.subscribe(conn, pattern, from, now_ms);
        let subscribed = match found {
            Ok(subscribed) => subscribed,
            Err(Refused::Forbidden) => {
                self.clients[client].begins.remove(pattern);
                return;
            }
            Err(other) => panic!("{other:?}"),
        };
        let client = &mut self.clients[client];
        client.begins.entry(pattern.to_owned()).or_insert(*heard);
        if from.is_some() {
            client.replays += 1;
        }
        for frame in &subscribed.frames {
            client.read(frame, &self.daemon, *heard);
        }
        let Some(position) = subscribed.history else { return };
        self.daemon.history(&position, pattern, |batch| {
            let (frames, done) = hub.backfill(conn, batch, now_ms).unwrap();
            for frame in &frames {
                client.read(frame, &self.daemon, *heard);
            }
            done
        });
    }

    fn connect(&mut self, client: usize, gateway: usize, shard: usize) {
        let it = &mut self.clients[client];
        if it.on.is_some() || it.epoch != self.daemon.epoch {
            return;
        }
        it.shard = self.gateways[gateway].shards[shard];
        let (tenant, rights) = (TENANTS[it.tenant].into(), it.rights.clone());
        let profile = Profile { shard: it.shard, tenant, rights, dialect: it.dialect };
        it.on = Some((gateway, self.gateways[gateway].hub.connect(profile).unwrap()));
        (it.stalled, it.replays) = (false, 0);
        it.times.clear();
        it.last.clear();
        let (patterns, pos): (Vec<String>, _) = (it.begins.keys().cloned().collect(), it.pos.clone());
        for pattern in patterns {
            self.subscribe(client, &pattern, pos.as_deref());
        }
    }

    fn leave(&mut self, client: usize) {
        if let Some((gateway, conn)) = self.clients[client].on.take() {
            self.gateways[gateway].hub.disconnect(conn);
        }
    }

    fn unsubscribe(&mut self, client: usize, pattern: &str) {
        let Some((gateway, conn)) = self.clients[client].on else { return };
        let has = self.clients[client].begins.remove(pattern).is_some();
        assert_eq!(has, self.gateways[gateway].hub.unsubscribe(conn, pattern, self.now_ms));
    }

    fn resume_writing(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.stalled = false;
        if let Some((gateway, conn)) = client.on {
            self.gateways[gateway].hub.writable(conn, self.now_ms);
        }
    }

    /// Another history: the database was restored. Whoever is connected is told; who is not begins anew.
    fn restart(&mut self) {
        let epoch = self.daemon.epoch + 1;
        self.daemon = Daemon { epoch, ..Daemon::default() };
        for gateway in &mut self.gateways {
            gateway.hub.restart(&format!("e{epoch}"), 0, "epoch", self.now_ms);
            gateway.heard = 0;
        }
        for client in &mut self.clients {
            client.times.clear();
            // Frames that were on their way are of the past, as is what it knew.
            client.epoch = epoch;
            client.forget_all(0);
            if client.on.is_none() {
                client.begins.clear();
                client.pos = None;
            }
        }
    }

    /// Everyone comes back and takes everything; then nothing may be missing.
    fn judge(&mut self) {
        for gateway in 0..2 {
            self.hear(gateway, usize::MAX);
        }
        for client in 0..self.clients.len() {
            self.connect(client, client % 2, client % 3);
            self.resume_writing(client);
        }
        for gateway in 0..2 {
            for shard in 0..3 {
                let of_shard = self.gateways[gateway].shards[shard];
                while let Some(due_ms) = self.gateways[gateway].hub.wakes_at(of_shard) {
                    self.now_ms = self.now_ms.max(due_ms);
                    self.serve(gateway, shard, 100, 0);
                }
            }
        }
        for client in &self.clients {
            for (index, told) in self.daemon.told.iter().enumerate() {
                assert!(
                    !client.is_due(index, &self.daemon),
                    "{told:?} is missing; begins {:?}, gaps {:?}",
                    client.begins,
                    client.gaps
                );
            }
        }
        let stats = self.gateways.iter().map(|gateway| gateway.hub.stats());
        assert!(stats.clone().all(|stats| stats.bytes <= 9_000 + 4_096));
        let patterns: usize = self.clients.iter().map(|client| client.begins.len()).sum();
        assert_eq!(patterns as u64, stats.map(|stats| stats.subscriptions).sum::<u64>());
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Tell { tenant: usize, what: usize, size: usize },
    Hear { gateway: usize, count: usize },
    Serve { gateway: usize, shard: usize, room: usize, partial: usize, after_ms: u64 },
    Connect { client: usize, gateway: usize, shard: usize },
    Leave { client: usize },
    Subscribe { client: usize, pattern: usize },
    Unsubscribe { client: usize, pattern: usize },
    Stall { client: usize },
    Resume { client: usize },
    Sweep { gateway: usize, after_ms: u64 },
    Restart,
    Over { execution: usize },
}

fn deed() -> impl Strategy<Value = Deed> {
    let (client, gateway) = (0..4_usize, 0..2_usize);
    prop_oneof![
        12 => (0..2_usize, 0..6_usize, prop_oneof![4 => 1..60_usize, 1 => 200..900_usize])
            .prop_map(|(tenant, what, size)| Deed::Tell { tenant, what, size }),
        6 => (gateway.clone(), 1..12_usize).prop_map(|(gateway, count)| Deed::Hear { gateway, count }),
        9 => (gateway.clone(), 0..3_usize, 1..4_usize, 0..3_usize, 0..200_u64)
            .prop_map(|(gateway, shard, room, partial, after_ms)| Deed::Serve { gateway, shard, room, partial, after_ms }),
        4 => (client.clone(), gateway.clone(), 0..3_usize)
            .prop_map(|(client, gateway, shard)| Deed::Connect { client, gateway, shard }),
        2 => client.clone().prop_map(|client| Deed::Leave { client }),
        5 => (client.clone(), 0..PATTERNS.len()).prop_map(|(client, pattern)| Deed::Subscribe { client, pattern }),
        1 => (client.clone(), 0..PATTERNS.len()).prop_map(|(client, pattern)| Deed::Unsubscribe { client, pattern }),
        2 => client.clone().prop_map(|client| Deed::Stall { client }),
        2 => client.prop_map(|client| Deed::Resume { client }),
        1 => (gateway, 0..6_000_u64).prop_map(|(gateway, after_ms)| Deed::Sweep { gateway, after_ms }),
        1 => Just(Deed::Restart),
        1 => (0..4_usize).prop_map(|execution| Deed::Over { execution }),
    ]
}

fn act(world: &mut World, deed: &Deed) {
    let count = world.clients.len();
    match *deed {
        Deed::Tell { tenant, what, size } => match what {
            0 => world.daemon.tell(tenant, "pipeline_events", false, size),
            1 => world.daemon.tell(tenant, "app.x", false, size),
            what => world.daemon.run(tenant, what % 2, what < 4, size),
        },
        Deed::Hear { gateway, count } => world.hear(gateway, count),
        Deed::Serve { gateway, shard, room, partial, after_ms } => {
            world.now_ms += after_ms;
            world.serve(gateway, shard, room, partial);
        }
        Deed::Connect { client, gateway, shard } => world.connect(client % count, gateway, shard),
        Deed::Leave { client } => world.leave(client % count),
        Deed::Subscribe { client, pattern } => {
            let client = client % count;
            if !world.clients[client].begins.contains_key(PATTERNS[pattern]) {
                world.subscribe(client, PATTERNS[pattern], None);
            }
        }
        Deed::Unsubscribe { client, pattern } => world.unsubscribe(client % count, PATTERNS[pattern]),
        Deed::Stall { client } => world.clients[client % count].stalled = true,
        Deed::Resume { client } => world.resume_writing(client % count),
        Deed::Sweep { gateway, after_ms } => {
            world.now_ms += after_ms;
            world.gateways[gateway].hub.sweep(world.now_ms);
        }
        Deed::Restart => world.restart(),
        Deed::Over { execution } => {
            let tenant = TENANTS[execution % 2];
            world.gateways.iter_mut().for_each(|gateway| gateway.hub.over(tenant, &execution.to_string()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn what_a_client_saw_is_the_log_with_declared_gaps(
        clients in prop::collection::vec((0..2_usize, any::<bool>(), any::<bool>()), 1..5),
        deeds in prop::collection::vec(deed(), 1..160),
    ) {
        let mut world = World::new(&clients);
        for deed in &deeds {
            act(&mut world, deed);
            world.gateways.iter_mut().for_each(Gateway::judge_calls);
        }
        world.judge();
    }
}

/// What the property found, each a hole before.
#[test]
fn holes_that_were_found_stay_closed() {
    let tell = |what, size| Deed::Tell { tenant: 0, what, size };
    let other = |what| Deed::Tell { tenant: 1, what, size: 1 };
    let (connect, leave) = (Deed::Connect { client: 0, gateway: 1, shard: 0 }, Deed::Leave { client: 0 });
    let subscribe = |pattern| Deed::Subscribe { client: 0, pattern };
    let serve = Deed::Serve { gateway: 1, shard: 0, room: 2, partial: 0, after_ms: 0 };
    let hear = |count| Deed::Hear { gateway: 1, count };
    let stories = [
        // Two turns in one go, of which the first was not taken.
        vec![
            connect.clone(),
            subscribe(1),
            tell(2, 757),
            tell(3, 698),
            hear(2),
            Deed::Stall { client: 0 },
            serve,
            subscribe(2),
            tell(0, 1),
        ],
        // The position of `subscribed` was behind a gap that was not told yet.
        vec![
            connect.clone(),
            subscribe(4),
            tell(2, 1),
            hear(1),
            Deed::Sweep { gateway: 1, after_ms: 5_000 },
            subscribe(0),
            leave.clone(),
        ],
        // The position of the history of one pattern covered what another had still to get.
        vec![
            tell(2, 1),
            tell(0, 1),
            tell(2, 1),
            tell(3, 1),
            connect.clone(),
            tell(3, 1),
            subscribe(6),
            hear(2),
            subscribe(1),
            tell(1, 1),
            leave.clone(),
            hear(10),
            connect.clone(),
            leave.clone(),
        ],
        // The same, with a log that began meanwhile.
        vec![
            connect.clone(),
            subscribe(3),
            other(3),
            other(2),
            subscribe(1),
            hear(2),
            tell(2, 1),
            other(3),
            tell(2, 1),
            leave.clone(),
            other(2),
            Deed::Sweep { gateway: 1, after_ms: 5_000 },
            connect.clone(),
            leave.clone(),
        ],
        // As much as fits into a turn was none of its business, and what came after it was passed over.
        vec![
            Deed::Connect { client: 0, gateway: 0, shard: 0 },
            tell(5, 1),
            subscribe(2),
            leave,
            tell(1, 579),
            tell(0, 9),
            connect,
            hear(3),
            tell(2, 836),
            subscribe(5),
        ],
    ];
    for story in stories {
        for tenant in 0..2 {
            let mut world = World::new(&[(tenant, false, false), (0, false, false)]);
            for deed in &story {
                act(&mut world, deed);
            }
            world.judge();
        }
    }
}
