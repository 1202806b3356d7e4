//! A kernel that refuses `io_uring`, here for want of a descriptor, changes nothing but the way out.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![cfg(target_os = "linux")]

mod parts;

use std::fs::File;
use std::iter;

use flx_realtime::listener::Listener;
use parts::{Client, Told, frame, limits, listen, next};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that a listener has before its thread asks for a ring: its socket, and two for its poll.
const NEEDS: usize = 3;

#[test]
fn a_listener_without_a_ring_serves_as_one_with_it_does() {
    let (with, _told) = listen(limits());
    all_hear(&with);
    let before = getrlimit(Resource::Nofile);
    let mut few = before;
    few.current = Some(300);
    setrlimit(Resource::Nofile, few).unwrap();
    let mut hoard: Vec<_> = iter::from_fn(|| File::open("/dev/null").ok()).collect();
    hoard.truncate(hoard.len() - NEEDS);
    let (without, told) = listen(limits());
    next(&told, |told| matches!(told, Told::Began).then_some(()));
    drop(hoard);
    setrlimit(Resource::Nofile, before).unwrap();
    all_hear(&without);
    assert_eq!(0, without.rings());
    // Where the machine has none to give, there is no other way to compare with.
    assert!(with.rings() <= 1);
    without.stop();
    with.stop();
}

fn all_hear(listener: &Listener) {
    let mut clients: Vec<_> = (0..20).map(|_| Client::open(listener)).collect();
    for text in ["all at once", "all of it"] {
        clients[0].send(&frame(0x81, text.as_bytes()));
        for client in &mut clients {
            assert_eq!(Some((0x81, text["all ".len()..].into())), client.frame());
        }
    }
}
