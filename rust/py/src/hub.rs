//! `Hub`: the hub of a gateway process, its first shard, and the forms in which Python gives events and gets positions.
//!
//! Rules: the lock is held for one call of the core, and no Python object is made meanwhile; who has to wait for it waits
//! without the interpreter. What the daemon tells is taken as it is, with U+FFFD for what is not UTF-8: a stream that broke at
//! such an event would break there for ever.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use flx_core::hub::{
    self as core, Backfill, Class, ConnKey, Dialect, Event, Frame, Limits, Position, Post, Profile, Refused, Shard,
    TopicRule,
};
use flx_realtime::shared_hub::{Guard, SharedHub};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyString, PyTuple};

use crate::series::Series;
use crate::window::seed;

const NOT_ITS_TOPIC: &str = "not a topic that an event without a journal can be of";

/// (tenant, topic, seq, prev, `ts_us`, JSON)
pub(crate) type Told = (PyBackedStr, PyBackedStr, u64, u64, u64, PyBackedBytes);
/// (tenant, topic, `ts_us`, JSON)
type Untold = (PyBackedStr, PyBackedStr, u64, PyBackedBytes);
/// (pattern, key of a state topic, bytes, events and milliseconds of history)
type Rule = (String, Option<String>, Option<usize>, Option<usize>, Option<u64>);
/// (epoch, seq, last line by execution)
pub(crate) type Place = (String, u64, HashMap<String, u64>);

/// All events and connections of one process; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Hub {
    pub(crate) shared: Arc<SharedHub>,
}

impl Hub {
    /// The core, and nobody else has it meanwhile.
    fn lock(&self, py: Python<'_>) -> Guard<'_> {
        loop {
            if let Some(guard) = self.shared.try_lock() {
                return guard;
            }
            // Another thread has it for a call. It is asked for again with the interpreter: waiting for that with the hub in
            // hand would keep the threads waiting that have no interpreter to wait for.
            py.detach(|| drop(self.shared.lock()));
        }
    }
}

#[pymethods]
impl Hub {
    #[new]
    #[pyo3(signature = (local_epoch, *, topic_bytes=None, total_bytes=None, max_subscriptions=None, max_connections=None,
        rules=None))]
    fn new(
        local_epoch: &str,
        topic_bytes: Option<usize>,
        total_bytes: Option<usize>,
        max_subscriptions: Option<usize>,
        max_connections: Option<usize>,
        rules: Option<Vec<Rule>>,
    ) -> PyResult<Self> {
        let usual = Limits::default();
        let limits = Limits {
            topic_bytes: topic_bytes.unwrap_or(usual.topic_bytes),
            total_bytes: total_bytes.unwrap_or(usual.total_bytes),
            max_subscriptions: max_subscriptions.unwrap_or(usual.max_subscriptions),
            max_connections: max_connections.unwrap_or(usual.max_connections),
            ..usual
        };
        let mut hub = core::Hub::new(limits, seed()?.0, local_epoch);
        hub.set_topic_rules(rules.into_iter().flatten().map(rule));
        Ok(Self { shared: Arc::new(SharedHub::new(hub)) })
    }

    /// How far the journal was heard.
    #[getter]
    fn seq(&self, py: Python<'_>) -> u64 {
        self.lock(py).seq()
    }

    /// The present history; empty before the first.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> String {
        self.lock(py).epoch().to_owned()
    }

    /// How many events were heard.
    #[getter]
    fn order(&self, py: Python<'_>) -> u64 {
        self.lock(py).order()
    }

    /// How far this process has come with everything: epoch, journal, and last line by execution.
    fn position(&self, py: Python<'_>) -> Place {
        let position = self.lock(py).position_of_all();
        place(position)
    }

    fn restart(&self, py: Python<'_>, epoch: &str, seq: u64, reason: &str, now_ms: u64) {
        self.lock(py).restart(epoch, seq, reason, now_ms);
    }

    /// Remembers events; how many of them were new.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn append(&self, py: Python<'_>, events: Vec<Told>, now_ms: u64) -> usize {
        let texts = texts_of(&events);
        let events = events_of(&events, &texts);
        let mut core = self.lock(py);
        events.iter().filter(|event| core.append(event, now_ms)).count()
    }

    fn advance(&self, py: Python<'_>, seq: u64) {
        self.lock(py).advance(seq);
    }

    fn over(&self, py: Python<'_>, tenant: &str, execution: &str) {
        self.lock(py).over(tenant, execution);
    }

    /// Tells an event that is in no journal; its number.
    fn publish(
        &self,
        py: Python<'_>,
        tenant: &str,
        topic: &str,
        ts_us: u64,
        data: &[u8],
        now_ms: u64,
    ) -> PyResult<u64> {
        let data = std::str::from_utf8(data).map_err(|_| PyValueError::new_err("data is not UTF-8"))?;
        let number = self.lock(py).publish(tenant, topic, ts_us, data, now_ms);
        number.ok_or_else(|| PyValueError::new_err(NOT_ITS_TOPIC))
    }

    /// The same for many, all of them or none.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn publish_all(&self, py: Python<'_>, events: Vec<Untold>, now_ms: u64) -> PyResult<()> {
        let texts: Vec<_> = events.iter().map(|event| String::from_utf8_lossy(&event.3)).collect();
        let posts: Vec<_> =
            events.iter().map(|(tenant, topic, ts_us, _)| Post { tenant, topic, ts_us: *ts_us }).collect();
        let is_done = self.lock(py).publish_all(&posts, now_ms, |place, _, data| data.push_str(&texts[place]));
        is_done.then_some(()).ok_or_else(|| PyValueError::new_err(NOT_ITS_TOPIC))
    }

    /// The numbers of the latest events of topics of this process alone.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn numbers_of(&self, py: Python<'_>, tenant: &str, topics: Vec<PyBackedStr>) -> Vec<u64> {
        let core = self.lock(py);
        topics.iter().map(|topic| core.number_of(tenant, topic)).collect()
    }

    /// Makes and tells events of a series on topics of this process alone, from one place in it up to another.
    #[pyo3(signature = (tenant, topic, topics, data, places, *, from_us, step_us, now_ms))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn publish_series(
        &self,
        py: Python<'_>,
        tenant: &str,
        topic: &str,
        topics: Option<u64>,
        data: &[u8],
        places: (u64, u64),
        from_us: u64,
        step_us: f64,
        now_ms: u64,
    ) -> PyResult<()> {
        let data = std::str::from_utf8(data).map_err(|_| PyValueError::new_err("data is not UTF-8"))?;
        let series = Series { tenant, topic, topics, data, from_us, step_us };
        let is_done = series.publish(&mut self.lock(py), places.0, places.1, now_ms);
        is_done.then_some(()).ok_or_else(|| PyValueError::new_err(NOT_ITS_TOPIC))
    }

    /// Ephemeral events were lost on their way here: whoever may miss one is told.
    fn lose(&self, py: Python<'_>, reason: &str, now_ms: u64) {
        self.lock(py).lose(reason, now_ms);
    }

    fn note_presence_of(&self, py: Python<'_>, patterns: Vec<String>) {
        self.lock(py).note_presence_of(patterns.into_iter().map(Into::into));
    }

    /// Tenant, topic and subject of connections that began (true) or ceased to hear it.
    fn presence_changes(&self, py: Python<'_>) -> Vec<(String, String, String, bool)> {
        let changes = self.lock(py).presence_changes();
        let tuple = |it: core::PresenceChange| (it.tenant.into(), it.topic.into(), it.subject.into(), it.here);
        changes.into_iter().map(tuple).collect()
    }

    /// Lets a connection in: its handle, or None when there are too many.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn connect(
        &self,
        py: Python<'_>,
        tenant: &str,
        subject: &str,
        classes: Vec<String>,
        dialect: &str,
    ) -> PyResult<Option<u64>> {
        let rights = rights(subject, classes.iter().map(String::as_str))?;
        let dialect = self::dialect(dialect)?;
        let profile = Profile { shard: Shard::FIRST, tenant: tenant.into(), rights, dialect };
        let conn = self.lock(py).connect(profile);
        Ok(conn.ok().map(handle))
    }

    fn disconnect(&self, py: Python<'_>, conn: u64) {
        self.lock(py).disconnect(key(conn));
    }

    /// The connections that are furthest behind: handles, and events heard since.
    fn laggards(&self, py: Python<'_>, most: usize) -> Vec<(u64, u64)> {
        let found = self.lock(py).laggards(most);
        found.into_iter().map(|(key, behind)| (handle(key), behind)).collect()
    }

    /// Gives a connection other rights; the patterns that it has no longer.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn set_rights(
        &self,
        py: Python<'_>,
        conn: u64,
        subject: &str,
        classes: Vec<String>,
        now_ms: u64,
    ) -> PyResult<Vec<String>> {
        let rights = rights(subject, classes.iter().map(String::as_str))?;
        let lost = self.lock(py).set_rights(key(conn), rights, now_ms);
        Ok(lost.into_iter().map(Into::into).collect())
    }

    fn subscriptions(&self, py: Python<'_>, conn: u64) -> Vec<String> {
        let core = self.lock(py);
        let patterns: Vec<String> = core.subscriptions(key(conn)).iter().map(|pattern| (**pattern).into()).collect();
        patterns
    }

    /// Subscribes; why not, frames to send at once, and the position from which the daemon has to tell.
    #[pyo3(signature = (conn, patterns, from_, now_ms))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn subscribe(
        &self,
        py: Python<'_>,
        conn: u64,
        patterns: Vec<PyBackedStr>,
        from_: Option<&str>,
        now_ms: u64,
    ) -> (Option<&'static str>, Vec<String>, Option<Place>) {
        let patterns: Vec<&str> = patterns.iter().map(|pattern| &**pattern).collect();
        let found = self.lock(py).subscribe_all(key(conn), &patterns, from_, now_ms);
        match found {
            Ok(subscribed) => (None, texts(&subscribed.frames), subscribed.history.map(place)),
            Err(why) => (Some(word(why)), Vec::new(), None),
        }
    }

    fn unsubscribe(&self, py: Python<'_>, conn: u64, pattern: &str, now_ms: u64) -> bool {
        self.lock(py).unsubscribe(key(conn), pattern, now_ms)
    }

    /// Gives a connection what the daemon tells: frames, and whether that was all; None when the history has ended.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    #[expect(clippy::too_many_arguments, reason = "what a batch says, one by one")]
    fn backfill(
        &self,
        py: Python<'_>,
        conn: u64,
        epoch: &str,
        events: Vec<Told>,
        journal_seq: u64,
        is_last: bool,
        now_ms: u64,
    ) -> Option<(Vec<String>, bool)> {
        let of_events = texts_of(&events);
        let events = events_of(&events, &of_events);
        let batch = Backfill { epoch, events: &events, journal_seq, is_last };
        let found = self.lock(py).backfill(key(conn), &batch, now_ms);
        found.ok().map(|(frames, done)| (texts(&frames), done))
    }

    /// Ends the catching up of a connection: the gap to tell it.
    fn give_up(&self, py: Python<'_>, conn: u64, reason: &str, now_ms: u64) -> Option<String> {
        let frame = self.lock(py).give_up(key(conn), reason, now_ms);
        frame.map(|frame| text(&frame))
    }

    /// Who is due, with the frames for each; all of them have no room for more until they are `writable`.
    fn take<'py>(&self, py: Python<'py>, now_ms: u64, room: usize) -> PyResult<Vec<(u64, Bound<'py, PyTuple>)>> {
        let mut out = Vec::new();
        {
            let mut core = self.lock(py);
            core.take(Shard::FIRST, now_ms, room, &mut out);
            for delivery in &out {
                core.busy(delivery.conn);
            }
        }
        let mut made: Option<(u64, Bound<'py, PyTuple>)> = None;
        let mut taken = Vec::with_capacity(out.len());
        for delivery in out {
            let turn = &delivery.turn;
            let frames = match &made {
                Some((number, frames)) if *number == turn.number => frames.clone(),
                _ => {
                    let frames = turn.frames.iter().map(|frame| piece(py, &frame.payload, turn.dialect));
                    let frames = PyTuple::new(py, frames.collect::<PyResult<Vec<_>>>()?)?;
                    made.insert((turn.number, frames)).1.clone()
                }
            };
            taken.push((handle(delivery.conn), frames));
        }
        Ok(taken)
    }

    fn writable(&self, py: Python<'_>, conn: u64, now_ms: u64) {
        self.lock(py).writable(key(conn), now_ms);
    }

    fn has_passed(&self, py: Python<'_>, conn: u64, order: u64) -> bool {
        self.lock(py).has_passed(key(conn), order)
    }

    /// When `take` has something next.
    fn wakes_at(&self, py: Python<'_>) -> Option<u64> {
        self.lock(py).wakes_at(Shard::FIRST)
    }

    fn spent(&self, py: Python<'_>, frames: u64, busy_us: u64) {
        self.lock(py).spent(Shard::FIRST, frames, busy_us);
    }

    fn sweep(&self, py: Python<'_>, now_ms: u64) {
        self.lock(py).sweep(now_ms);
    }

    /// What was counted, by name.
    fn stats(&self, py: Python<'_>) -> HashMap<&'static str, u64> {
        let stats = self.lock(py).stats();
        HashMap::from([
            ("events", stats.events),
            ("delivered", stats.delivered),
            ("frames", stats.frames),
            ("turns", stats.turns),
            ("sent_bytes", stats.sent_bytes),
            ("resumes", stats.resumes),
            ("asked", stats.asked),
            ("connections", stats.connections),
            ("subscriptions", stats.subscriptions),
            ("topics", stats.topics),
            ("audiences", stats.audiences),
            ("cohorts", stats.cohorts),
            ("bytes", stats.bytes),
            ("window_ms", stats.window_ms),
            ("behind", stats.behind),
            ("furthest", stats.furthest),
        ])
    }

    /// Frames by how long their oldest event was here: cumulative counts (the last is all of them), and the sum in seconds.
    fn ages(&self, py: Python<'_>) -> (Vec<u64>, f64) {
        let ages = *self.lock(py).ages();
        let mut sum = 0;
        let cumulative = ages.counts.iter().map(|count| {
            sum += count;
            sum
        });
        (cumulative.collect(), ages.sum_ms as f64 / 1e3)
    }

    /// The upper bounds of these counts, in seconds.
    #[staticmethod]
    fn age_bounds() -> Vec<f64> {
        core::LAG_BOUNDS_MS.iter().map(|bound| *bound as f64 / 1e3).collect()
    }

    /// Gaps that were told, by reason.
    fn gaps(&self, py: Python<'_>) -> HashMap<String, u64> {
        self.lock(py).gaps().iter().map(|(reason, count)| ((**reason).into(), *count)).collect()
    }
}

/// How events are written, by its name.
pub(crate) fn dialect(name: &str) -> PyResult<Dialect> {
    match name {
        "plain" => Ok(Dialect::Plain),
        "batched" => Ok(Dialect::Batched),
        "stream" => Ok(Dialect::EventStream),
        _ => Err(PyValueError::new_err("no such dialect")),
    }
}

/// A frame of a turn as the server takes it: text, or bytes of a stream.
fn piece<'py>(py: Python<'py>, payload: &[u8], dialect: Dialect) -> PyResult<Bound<'py, PyAny>> {
    Ok(match dialect {
        Dialect::Plain | Dialect::Batched => PyString::from_bytes(py, payload)?.into_any(),
        Dialect::EventStream => PyBytes::new(py, payload).into_any(),
    })
}

/// A connection of a hub as a number.
pub(crate) const fn handle(conn: ConnKey) -> u64 {
    (conn.generation as u64) << 32 | conn.index as u64
}

/// The connection of a number.
pub(crate) const fn key(handle: u64) -> ConnKey {
    ConnKey { index: handle as u32, generation: (handle >> 32) as u32 }
}

fn rule((pattern, latest, history_bytes, history_events, history_ms): Rule) -> TopicRule {
    let (pattern, latest) = (pattern.into(), latest.map(Into::into));
    TopicRule { pattern, latest, history_bytes, history_events, history_ms }
}

/// A position as Python has it.
pub(crate) fn place(position: Position) -> Place {
    let logs = position.logs.into_iter().map(|(execution, line)| (execution.into(), line)).collect();
    (position.epoch.into(), position.seq, logs)
}

/// The JSON of events.
pub(crate) fn texts_of(told: &[Told]) -> Vec<Cow<'_, str>> {
    told.iter().map(|told| String::from_utf8_lossy(&told.5)).collect()
}

/// Events with their JSON.
pub(crate) fn events_of<'a>(told: &'a [Told], texts: &'a [Cow<'a, str>]) -> Vec<Event<'a>> {
    let pairs = told.iter().zip(texts);
    let event = |((tenant, topic, seq, prev, ts_us, _), data): (&'a Told, &'a Cow<'a, str>)| Event {
        tenant,
        topic,
        seq: *seq,
        prev: *prev,
        ts_us: *ts_us,
        data,
    };
    pairs.map(event).collect()
}

fn text(frame: &Frame) -> String {
    String::from_utf8_lossy(&frame.payload).into_owned()
}

fn texts(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(text).collect()
}

/// The rights of a subject: names of classes, and rules for topics of applications in their order, each a pattern behind `+`
/// (open) or `-` (closed).
pub(crate) fn rights<'a>(subject: &str, granted: impl Iterator<Item = &'a str>) -> PyResult<core::Rights> {
    let (mut classes, mut rules) = (Vec::new(), Vec::new());
    for name in granted {
        match name.split_at_checked(1) {
            Some(("+", pattern)) => rules.push((pattern.into(), true)),
            Some(("-", pattern)) => rules.push((pattern.into(), false)),
            _ => classes.push(class(name)?),
        }
    }
    Ok(core::Rights::new(subject, classes).under(rules))
}

/// A class of topics by its name.
fn class(name: &str) -> PyResult<Class> {
    Ok(match name {
        "pipeline" => Class::Pipeline,
        "execution" => Class::Execution,
        "log" => Class::Log,
        "schedule" => Class::Schedule,
        "system" => Class::System,
        "user" => Class::User,
        "app" => Class::App,
        _ => return Err(PyValueError::new_err("no such class of topics")),
    })
}

pub(crate) const fn word(why: Refused) -> &'static str {
    match why {
        Refused::NotAPattern => "not_a_pattern",
        Refused::NoSuchTopic => "no_such_topic",
        Refused::Forbidden => "forbidden",
        Refused::TooMany => "too_many",
        Refused::NotAPosition => "not_a_position",
        Refused::Busy => "busy",
        Refused::Unknown => "unknown",
    }
}
