//! A daemon in a list: what happened, and what its Watch would tell of it.

use std::collections::BTreeMap;

use flx_core::hub::topic::matches;
use flx_core::hub::{Backfill, Event, Position};

pub(crate) const TENANTS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) tenant: usize,
    pub(crate) topic: String,
    pub(crate) seq: u64,
    pub(crate) prev: u64,
    pub(crate) data: String,
    /// What it is about, of a state topic.
    pub(crate) key: Option<usize>,
}

impl Told {
    pub(crate) fn event(&self) -> Event<'_> {
        let (tenant, topic) = (TENANTS[self.tenant], &*self.topic);
        Event { tenant, topic, seq: self.seq, prev: self.prev, ts_us: 7, data: &self.data }
    }

    pub(crate) fn execution_of_log(&self) -> Option<&str> {
        self.topic.strip_prefix("execution.")?.strip_suffix(".log")
    }
}

/// All that happened in one epoch.
#[derive(Default)]
pub(crate) struct Daemon {
    pub(crate) epoch: u32,
    pub(crate) told: Vec<Told>,
    pub(crate) seq: u64,
    pub(crate) last: BTreeMap<(usize, String), u64>,
    /// Index into `told`, by what an event is called.
    pub(crate) index: BTreeMap<(usize, String, u64), usize>,
}

impl Daemon {
    pub(crate) fn name(&self) -> String {
        format!("e{}", self.epoch)
    }

    pub(crate) fn tell(&mut self, tenant: usize, topic: &str, is_log: bool, size: usize) {
        let last = self.last.entry((tenant, topic.to_owned())).or_default();
        let prev = *last;
        let seq = if is_log {
            prev + 1
        } else {
            self.seq += 1;
            self.seq
        };
        *last = seq;
        let member = match topic {
            "app.x" => Some("k"),
            "pipeline_events" => Some("pipeline"),
            topic if topic.ends_with(".status") => Some("execution"),
            _ => None,
        };
        let (key, text) = (member.map(|_| size % 3), format!("\"{topic}/{seq}/{}\"", "x".repeat(size)));
        // Names in their order, as the judge writes them again.
        let data = match member.zip(key) {
            Some((member, key)) => format!("{{\"a\":{text},\"{member}\":\"{key}\"}}"),
            None => text,
        };
        self.index.insert((tenant, topic.to_owned(), seq), self.told.len());
        self.told.push(Told { tenant, topic: topic.to_owned(), seq, prev, data, key });
    }

    /// Whether nothing newer makes an event worthless.
    pub(crate) fn is_newest(&self, index: usize) -> bool {
        let told = &self.told[index];
        let is_newer = |other: &Told| (other.tenant, &other.topic, other.key) == (told.tenant, &told.topic, told.key);
        told.key.is_none() || !self.told[index + 1..].iter().any(is_newer)
    }

    /// An execution tells its status, and a line once it has begun.
    pub(crate) fn run(&mut self, tenant: usize, execution: usize, line: bool, size: usize) {
        // The two tenants have executions of their own.
        let id = execution * 2 + tenant;
        let status = format!("execution.{id}.status");
        if !line || !self.last.contains_key(&(tenant, status.clone())) {
            self.tell(tenant, &status, false, size);
        } else {
            self.tell(tenant, &format!("execution.{id}.log"), true, size);
        }
    }

    /// As Watch: journal events in turn, then lines of the logs that the position names or that began after it.
    pub(crate) fn history(&self, position: &Position, pattern: &str, mut each: impl FnMut(&Backfill<'_>) -> bool) {
        let (mut seq, mut lines) = (position.seq, position.logs.clone());
        loop {
            let after = seq;
            let journal = self.told.iter().filter(|told| told.execution_of_log().is_none() && told.seq > after);
            let mut events = Vec::new();
            let mut full = false;
            for told in journal.take(3) {
                seq = told.seq;
                full = events.len() > 1;
                let begun = told.topic.strip_prefix("execution.").and_then(|rest| rest.strip_suffix(".status"));
                if let Some(execution) = begun.filter(|_| told.prev == 0) {
                    lines.entry(execution.into()).or_insert(0);
                }
                if matches(pattern, &told.topic) {
                    events.push(told.event());
                }
            }
            for (execution, line) in &mut lines {
                let its = self.told.iter().filter(|told| told.execution_of_log() == Some(execution));
                for told in its.filter(|told| matches(pattern, &told.topic)) {
                    if told.seq > *line && events.len() < 5 {
                        *line = told.seq;
                        events.push(told.event());
                    }
                }
            }
            let is_last = !full && events.len() < 5 && seq == self.seq;
            if each(&Backfill { epoch: &self.name(), events: &events, journal_seq: seq, is_last }) {
                return;
            }
        }
    }
}
