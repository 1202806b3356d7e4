//! What those cost the process who are connected and say nothing: measured alone in its process.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![cfg(target_os = "linux")]

mod parts;

use std::fs;

use flx_lane::server::Limits;
use parts::{HANDSHAKE, frame, serve};
use rustix::process::{Resource, getrlimit, setrlimit};

const CONNECTIONS: usize = 1_500;
const MOST_BYTES_OF_A_CONNECTION: usize = 24 << 10;
const MOST_BYTES_OF_A_SOCKET: usize = 14 << 10;
/// What the allocator needs anyway is in memory before it is counted.
const FIRST: usize = 100;

/// Bytes of this process that are in memory and no file's.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024
}

/// Bytes that each of many costs; they are kept.
fn each<T>(mut one: impl FnMut() -> T) -> (usize, Vec<T>) {
    let mut all = Vec::with_capacity(CONNECTIONS);
    all.extend((0..FIRST).map(|_| one()));
    let before = resident();
    all.extend((FIRST..CONNECTIONS).map(|_| one()));
    (resident().saturating_sub(before) / (CONNECTIONS - FIRST), all)
}

#[test]
fn who_is_idle_costs_little() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let lane = serve(Limits { connections: 2 * CONNECTIONS, ..Limits::default() });
    let (of_a_connection, _connections) = each(|| lane.served());
    let (of_a_socket, _sockets) = each(|| {
        let mut client = lane.client();
        client.send(HANDSHAKE.as_bytes());
        let socket = lane.handshake().accept(Vec::new());
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        client.send(&frame(0x89, b"ping"));
        assert_eq!(Some((0x8a, b"ping".to_vec())), client.frame());
        (client, socket)
    });
    assert!(of_a_connection <= MOST_BYTES_OF_A_CONNECTION, "{of_a_connection}");
    assert!(of_a_socket <= MOST_BYTES_OF_A_SOCKET, "{of_a_socket}");
}
