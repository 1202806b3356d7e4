//! What is known of a request while it is decided upon.

use flx_core::admission as core;

use crate::admitted::RequestId;
use crate::answer::{Parts, Told};
use crate::request::Now;

/// What a request says about itself.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a [u8],
    pub(crate) peer: &'a str,
    pub(crate) secure: bool,
    /// Whether it may be answered with what the principal was given before.
    pub(crate) pages: bool,
    /// Whether a lease that is not there yet is a refusal: else nothing is said, and the caller asks again after a sync.
    pub(crate) last: bool,
}

/// What is known of a request while it is decided upon.
pub(crate) struct Seen {
    pub(crate) route: usize,
    pub(crate) method: usize,
    pub(crate) request_id: RequestId,
    pub(crate) told: Option<Told>,
    pub(crate) now: Now,
    pub(crate) secure: bool,
    pub(crate) is_head: bool,
    /// How long it took to read, in nanoseconds; none when its phases are not timed.
    pub(crate) received_ns: Option<u64>,
    pub(crate) two_lengths: bool,
}

impl Seen {
    pub(crate) fn parts<'a>(&self, request_id: &'a str) -> Parts<'a> {
        Parts { request_id, secure: self.secure, told: self.told }
    }
}

pub(crate) fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(1_000_000_000)
}

pub(crate) fn told(quota: core::Quota) -> Told {
    Told { policy: quota.policy, remaining: quota.remaining, reset_s: seconds(quota.reset_ns) }
}
