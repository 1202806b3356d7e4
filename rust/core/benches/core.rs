//! Each hot decision beside a naive rival, so that a figure means something on a noisy machine: compare ratios.
#![allow(missing_docs, reason = "criterion's macros make functions")]

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use aws_lc_rs::hmac;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flx_core::admission::{Admission, Ask, By, Policy, Token, TokenRoom, Toll};
use flx_core::error::Unusable;
use flx_core::hub::{Class, Dialect, Hub, Limits, Profile, Rights, Shard};
use flx_core::jwt::TokenVerifier;
use flx_core::jwt::claims::Expected;
use flx_core::jwt::keys::KeySet;
use flx_core::jwt::revocation::Revocations;
use flx_core::limit::{Heap, Rate, SlidingWindow};
use flx_core::meter::Meter;

/// HS256 over `{"sub":"ann","iss":"flx","aud":"flx-api","roles":["admin"],"tenant":"t","jti":"x","exp":4102444800}`.
const SECRET: &[u8] = b"0123456789abcdef0123456789ABCDEF";
const K: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlBQkNERUY";
const SIGNED: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4iLCJpc3MiOiJmbHgiLCJhdWQiOiJmbHgtYXBpIiwicm9sZXMiOlsiYWRtaW4iXSw\
                      idGVuYW50IjoidCIsImp0aSI6IngiLCJleHAiOjQxMDI0NDQ4MDB9";
const SIGNATURE: &str = "UmqK8pUXeRrDBUOIZsx8JIfv35jE-Uo148EozOJ9GMM";

fn verifier() -> TokenVerifier {
    let keys = KeySet::parse(format!(r#"{{"keys":[{{"kty":"oct","k":"{K}"}}]}}"#).as_bytes());
    let expected = Expected {
        issuer: Some("flx".into()),
        audience: Some("flx-api".into()),
        required: vec!["exp".into(), "sub".into()],
        ..Expected::default()
    };
    TokenVerifier::new(keys.expect("key set"), expected).expect("verifier")
}

/// A token's floor is its HMAC; everything above is form and claims.
fn tokens(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token");
    let token = format!("{SIGNED}.{SIGNATURE}");
    let verifier = verifier();
    assert!(verifier.verify(token.as_bytes(), 1e9).is_ok());
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let tag = hmac::sign(&key, SIGNED.as_bytes());
    group.bench_function("verify", |bencher| bencher.iter(|| verifier.verify(black_box(token.as_bytes()), 1e9)));
    group.bench_function("floor: the HMAC alone", |bencher| {
        bencher.iter(|| hmac::verify(&key, black_box(SIGNED.as_bytes()), tag.as_ref()));
    });
    let policy = |name: &str, by| Policy {
        name: name.into(),
        by,
        limit: 1_000_000_000,
        window_ms: 60_000,
        cost: 1,
        shadow: false,
    };
    let policies = vec![policy("ip", By::Ip), policy("subject", By::Subject), policy("slow", By::Subject)];
    let tolls = (0..policies.len()).map(|policy| Toll { policy, cost: 1 }).collect();
    let room = TokenRoom { verified: 0, refused: 0 };
    let memory = |rate: Rate| Heap::<AtomicU64>::zeroed(rate.words(1 << 24)?).ok_or(Unusable("memory"));
    let verifier = std::sync::Arc::new(self::verifier());
    let mut admission = Admission::new(verifier, policies, vec![tolls], room, memory, (1, 2)).expect("admission");
    let revocations = Revocations::new((3, 4));
    group.bench_function("admit: verify and three windows", |bencher| {
        bencher.iter(|| {
            let token = Token::Presented(Ok(black_box(token.as_bytes())));
            let client = "10.0.0.1";
            let now_ns = 1_000_000_000;
            let ask = Ask { class: 0, token, client, api_key: None, revocations: &revocations, now_s: 1e9, now_ns };
            admission.admit(&ask, None, |_| ()).status()
        });
    });
    group.finish();
}

/// Ten thousand clients, one hit each in turn; the rival keeps every time in a deque.
fn windows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window");
    let keys: Vec<[u8; 8]> = (0..10_000_u64).map(u64::to_le_bytes).collect();
    for limit in [50_u32, 5_000] {
        let rate = Rate { limit, window_ms: 60_000, max_cost: 1 };
        let window = SlidingWindow::<Heap>::on_heap(rate, 1 << 26, (1, 2)).expect("window");
        let mut now = 0_u64;
        group.bench_function(format!("hit, limit {limit}"), |bencher| {
            bencher.iter(|| {
                now += 100_000;
                window.hit(&keys[now as usize / 100_000 % keys.len()], now, 1).is_ok()
            });
        });
        let (identity, mut now) = (window.identify(b"one"), now);
        group.bench_function(format!("check and charge of a known key, limit {limit}"), |bencher| {
            bencher.iter(|| {
                now += 20_000_000;
                window.charge(&window.check(identity, now, 1)).is_ok()
            });
        });
        let mut logs: HashMap<Vec<u8>, VecDeque<u64>> = HashMap::new();
        let mut now = 0;
        group.bench_function(format!("rival: log in a map, limit {limit}"), |bencher| {
            bencher.iter(|| {
                now += 100_000;
                let log = logs.entry(keys[now as usize / 100_000 % keys.len()].to_vec()).or_default();
                while log.front().is_some_and(|&at| now - at >= 60_000_000_000) {
                    log.pop_front();
                }
                let admitted = log.len() < limit as usize;
                if admitted {
                    log.push_back(now);
                }
                admitted
            });
        });
    }
    group.finish();
}

/// Ten thousand records of about 600 bytes in chunks of 256 KiB; the rival parses each line.
fn meter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("meter");
    let mut columns = String::new();
    for column in 0..12 {
        let _ = write!(columns, r#", "text_{column}": "some words with é", "number_{column}": {column}.25"#);
    }
    let schema = "{\"type\":\"SCHEMA\",\"stream\":\"s\",\"key_properties\":[\"id\"]}\n";
    let usual =
        |id: u32| format!("{{\"type\": \"RECORD\", \"stream\": \"s\", \"record\": {{\"id\": {id}{columns}}}}}\n");
    let late =
        |id: u32| format!("{{\"record\": {{\"id\": {id}{columns}}}, \"stream\": \"s\", \"type\": \"RECORD\"}}\n");
    let texts: [(&str, String); 3] = [
        ("no key properties", (0..10_000).map(usual).collect()),
        ("no key properties, type last", (0..10_000).map(late).collect()),
        ("key properties", schema.to_owned() + &(0..10_000).map(usual).collect::<String>()),
    ];
    group.sample_size(20);
    for (name, text) in &texts {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                let mut meter = Meter::new(1_000_000);
                text.as_bytes().chunks(256 * 1024).for_each(|chunk| meter.feed(chunk));
                meter.lines()
            });
        });
    }
    group.bench_function("rival: serde_json per line", |bencher| {
        bencher.iter(|| {
            let lines = texts[0].1.lines().map(serde_json::from_str::<serde_json::Value>);
            lines.filter(|line| line.as_ref().is_ok_and(|line| line["type"] == "RECORD")).count()
        });
    });
    group.finish();
}

/// A hub with this many connections, each hearing what `pattern` says.
fn hub(connections: usize, pattern: impl Fn(usize) -> String) -> Hub {
    let mut hub = Hub::new(Limits::default(), 1, "local");
    hub.restart("epoch", 0, "start", 0);
    for index in 0..connections {
        let rights = Rights::new("ann", [Class::App]);
        let profile = Profile { shard: Shard::FIRST, tenant: "default".into(), rights, dialect: Dialect::Batched };
        let conn = hub.connect(profile).expect("room");
        hub.subscribe(conn, &pattern(index), None, 0).expect("a subscription");
    }
    hub
}

/// 128-byte events to ten thousand connections; the rival puts a reference into a queue of each.
fn realtime(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hub");
    let data = format!("\"{}\"", "x".repeat(126));
    group.throughput(Throughput::Elements(100));
    let mut shared = hub(10_000, |_| "bench.x".to_owned());
    group.bench_function("append 100 to a topic of 10,000", |bencher| {
        bencher.iter(|| {
            for _ in 0..100 {
                shared.publish("default", "bench.x", 1, black_box(&data), 1);
            }
        });
    });
    let mut queues: Vec<VecDeque<std::sync::Arc<str>>> = vec![VecDeque::new(); 10_000];
    group.sample_size(10);
    group.bench_function("rival: append 100 to a queue of each of 10,000", |bencher| {
        bencher.iter(|| {
            for _ in 0..100 {
                let frame: std::sync::Arc<str> = black_box(&data).as_str().into();
                for queue in &mut queues {
                    queue.push_back(frame.clone());
                }
            }
            queues.iter_mut().for_each(VecDeque::clear);
        });
    });
    group.sample_size(50).throughput(Throughput::Elements(10_000));
    let mut now_ms = 1;
    let mut out = Vec::new();
    group.bench_function("150 events to each of 10,000: all turns", |bencher| {
        bencher.iter(|| {
            now_ms += 1_000;
            for _ in 0..150 {
                shared.publish("default", "bench.x", 1, &data, now_ms);
            }
            out.clear();
            shared.take(Shard::FIRST, now_ms, 20_000, &mut out);
            assert_eq!(10_000, out.len());
        });
    });
    let topics: Vec<String> = (0..10_000).map(|index| format!("bench.{index}")).collect();
    let mut own = hub(10_000, |index| topics[index].clone());
    group.bench_function("an event to each of 10,000 in a topic of its own", |bencher| {
        bencher.iter(|| {
            now_ms += 1_000;
            for topic in &topics {
                own.publish("default", topic, 1, &data, now_ms);
            }
            out.clear();
            own.take(Shard::FIRST, now_ms, 20_000, &mut out);
            assert_eq!(10_000, out.len());
        });
    });
    group.finish();
}

criterion_group!(benches, tokens, windows, meter, realtime);
criterion_main!(benches);
