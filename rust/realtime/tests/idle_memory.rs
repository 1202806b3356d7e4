//! What an idle WebSocket costs the process: measured alone in its process, over as many as its descriptors allow.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::fs;

use flx_realtime::listener::Limits;
use parts::{Client, Told, head, limits, listen, next};

const CONNECTIONS: usize = 4_000;
const MOST_BYTES: usize = 512;

/// Bytes of this process that are in memory and no file's.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn an_idle_websocket_costs_half_a_kibibyte_at_most() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Both ends are this process's.
    let count = limit.maximum.map_or(CONNECTIONS, |most| CONNECTIONS.min(most as usize / 2 - 100));
    let (listener, told) = listen(Limits { deflate: true, ..limits() });
    let mut clients = Vec::with_capacity(count);
    let offering = head("/").replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
    let mut connect = |count: usize| {
        for _ in 0..count {
            // That it may compress costs nothing as long as it is idle.
            let mut client = Client::tcp(&listener);
            client.send(offering.as_bytes());
            assert!(client.http().contains("permessage-deflate"));
            clients.push(client);
            next(&told, |told| matches!(told, Told::Opened(_)).then_some(()));
        }
    };
    connect(200);
    let before = resident();
    connect(count - 200);
    let each = resident().saturating_sub(before) / (count - 200);
    assert!(each <= MOST_BYTES, "{each}");
}
