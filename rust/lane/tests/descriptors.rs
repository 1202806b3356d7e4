//! Nobody is lost when the descriptors run out: who comes then waits, and is served when somebody leaves.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![cfg(target_os = "linux")]

mod parts;

use std::fs::File;
use std::io::{self, Read as _};
use std::time::Duration;

use flx_lane::server::Limits;
use parts::serve;
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn who_comes_when_there_are_no_descriptors_waits_for_one() {
    let mut lane = serve(Limits::default());
    let first = lane.served();
    let mut other = lane.served();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(300);
    setrlimit(Resource::Nofile, limit).unwrap();
    // All are taken but one, for the client's side of the connection.
    let mut hoard: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    hoard.pop();
    let mut starved = lane.client();
    starved.get("/now");
    // Others are served meanwhile.
    for _ in 0..1_000 {
        other.get("/now");
        assert_eq!("now", other.answer().text());
    }
    starved.0.set_nonblocking(true).unwrap();
    assert_eq!(io::ErrorKind::WouldBlock, starved.0.read(&mut [0]).unwrap_err().kind());
    starved.0.set_nonblocking(false).unwrap();
    drop(first);
    assert_eq!("now", starved.answer().text());
    // It can be stopped meanwhile, too.
    hoard.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
    assert!(lane.stop(parts::PATIENCE) < Duration::from_secs(2));
}
