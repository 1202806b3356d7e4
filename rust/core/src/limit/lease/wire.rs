//! The bytes between a node and the script `sync.lua`: one call with all reports, one answer with all grants.
//!
//! Integers are little-endian, as the script's `struct` reads them. The call is a complete RESP command, so that no object
//! is made per key on the way to the socket.

use super::Report;
use crate::limit::lease::{Mode, Policy};

/// Names in Redis; the braces keep a cluster from spreading what one script touches.
const FLEET: &[u8] = b"{flx}:fleet";
const NODES: &[u8] = b"{flx}:nodes";
const CALLS: &[u8] = b"{flx}:calls";
const KEY: &[u8] = b"{flx}:units:";
/// Bytes of an answer's head and of each grant.
const HEAD: usize = 45;
const GRANT: usize = 16;

/// What every call says about its sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    pub(super) node: u64,
    pub(super) call: u64,
    pub(super) epoch: u64,
    pub(super) clock: u32,
    pub(super) step_us: i64,
    pub(super) fresh: bool,
    pub(super) bye: bool,
    pub(super) judged: bool,
    pub(super) seed: (u64, u64),
    pub(super) grace_us: u32,
}

/// How the script took a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Done,
    /// The fleet began anew since this node's last call: nothing was done.
    NewEpoch,
    /// A later call of this node was there before: nothing was done.
    Stale,
    /// The fleet's clock moved far since its last call: nothing was done. The node judges, and calls again.
    Doubt,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) status: Status,
    pub(super) epoch: u64,
    pub(super) clock: u32,
    pub(super) now_us: u64,
    pub(super) nodes: u32,
    pub(super) grace_us: u32,
    pub(super) seed: (u64, u64),
}

/// The answer to one report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) units: u32,
    pub(super) free: u32,
    pub(super) retry_us: u64,
}

/// `EVALSHA sha n key… input` as RESP.
pub(super) fn command(sha: &[u8], sender: &Sender, policies: &[Policy], reports: &[Report]) -> Vec<u8> {
    let mut input = Vec::with_capacity(128 + reports.len() * 48);
    input.extend(sender.node.to_le_bytes());
    input.extend(sender.call.to_le_bytes());
    input.extend(sender.epoch.to_le_bytes());
    input.extend(sender.clock.to_le_bytes());
    input.extend(sender.step_us.to_le_bytes());
    input.push(u8::from(sender.fresh) | u8::from(sender.bye) << 1 | u8::from(sender.judged) << 2);
    input.extend(sender.seed.0.to_le_bytes());
    input.extend(sender.seed.1.to_le_bytes());
    input.extend(sender.grace_us.to_le_bytes());
    input.extend((policies.len() as u16).to_le_bytes());
    for policy in policies {
        input.extend(policy.limit.to_le_bytes());
        input.extend((policy.window_ms * 1_000).to_le_bytes());
        input.extend((policy.lease_ns() / 1_000).to_le_bytes());
        input.push(u8::from(policy.mode == Mode::Fast));
    }
    for report in reports {
        input.extend((report.policy as u16 + 1).to_le_bytes());
        input.extend(report.spent.to_le_bytes());
        input.extend(report.pairs.iter().map(|pair| pair.1).sum::<u32>().to_le_bytes());
        for number in [report.keep, report.need, report.extra, report.unit] {
            input.extend(number.to_le_bytes());
        }
        input.extend(report.newest.to_le_bytes());
        input.push(report.pairs.len() as u8);
        for (back, units) in report.pairs.iter().rev() {
            input.push(*back);
            input.extend(units.to_le_bytes());
        }
    }
    let mut out = Vec::with_capacity(input.len() + 160 + reports.len() * 40);
    out.extend_from_slice(format!("*{}\r\n", reports.len() + 7).as_bytes());
    bulk(&mut out, &[b"EVALSHA"]);
    bulk(&mut out, &[sha]);
    bulk(&mut out, &[(reports.len() + 3).to_string().as_bytes()]);
    for name in [FLEET, NODES, CALLS] {
        bulk(&mut out, &[name]);
    }
    for report in reports {
        bulk(&mut out, &[KEY, &report.identity.0.to_le_bytes(), &report.identity.1.to_le_bytes()]);
    }
    bulk(&mut out, &[&input]);
    out
}

fn bulk(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(format!("${length}\r\n").as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads an answer; none when it is not one.
pub(super) fn answer(bytes: &[u8]) -> Option<(Head, impl Iterator<Item = Grant> + '_)> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let status = match head[0] {
        0 => Status::Done,
        1 => Status::NewEpoch,
        2 => Status::Stale,
        3 => Status::Doubt,
        _ => return None,
    };
    if rest.len() % GRANT != 0 {
        return None;
    }
    let head = Head {
        status,
        epoch: long(&head[1..9])?,
        clock: int(&head[9..13])?,
        now_us: long(&head[13..21])?,
        nodes: int(&head[21..25])?,
        grace_us: int(&head[25..29])?,
        seed: (long(&head[29..37])?, long(&head[37..45])?),
    };
    let grants = rest.chunks_exact(GRANT).filter_map(|record| {
        Some(Grant { units: int(&record[..4])?, free: int(&record[4..8])?, retry_us: long(&record[8..])? })
    });
    Some((head, grants))
}

fn int(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn long(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}
