//! Nobody is lost when the descriptors run out: who comes then waits, and is served when somebody leaves.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![cfg(target_os = "linux")]

mod parts;

use std::fs::File;
use std::io::{self, Read};

use parts::{Client, head, limits, listen};
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn who_comes_when_there_are_no_descriptors_waits_for_one() {
    let (listener, _told) = listen(limits());
    let first = Client::open(&listener);
    let mut other = Client::open(&listener);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(300);
    setrlimit(Resource::Nofile, limit).unwrap();
    // All are taken but one, for the client's side of the connection.
    let mut hoard: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    hoard.pop();
    let mut starved = Client::tcp(&listener);
    starved.send(head("/").as_bytes());
    // Others are served meanwhile, and the thread is not busy with what it cannot do.
    for _ in 0..100 {
        other.echo("meanwhile");
    }
    starved.0.set_nonblocking(true).unwrap();
    let nothing = starved.0.read(&mut [0]).unwrap_err();
    assert_eq!(io::ErrorKind::WouldBlock, nothing.kind());
    starved.0.set_nonblocking(false).unwrap();
    drop(first);
    assert!(starved.http().starts_with("HTTP/1.1 101 "));
    starved.echo("at last");
    assert!(listener.is_alive());
}
