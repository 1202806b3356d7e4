//! A series of events on topics of this process alone, made where it is published: for measuring what comes after that.
//!
//! Rule: each goes the way of any other event, by `Hub::publish_all`; what is spared is the making of Python objects.

use flx_core::decimal::Decimal;
use flx_core::hub::{Hub, Post};

/// What events of a series have in common.
pub(crate) struct Series<'a> {
    pub(crate) tenant: &'a str,
    /// Their topic; with `topics`, what the names of so many begin with that take turns.
    pub(crate) topic: &'a str,
    pub(crate) topics: Option<u64>,
    /// JSON, a part of the data of each.
    pub(crate) data: &'a str,
    /// When the first one was due, in microseconds since 1970, and how many microseconds lie between two.
    pub(crate) from_us: u64,
    pub(crate) step_us: f64,
}

impl Series<'_> {
    /// Publishes those from one place of the series up to another; false when its topics are not this process's own.
    pub(crate) fn publish(&self, hub: &mut Hub, from: u64, to: u64, now_ms: u64) -> bool {
        let (mut names, mut ends) = (String::new(), Vec::new());
        for place in from..to {
            names.push_str(self.topic);
            if let Some(topics) = self.topics {
                names.push('.');
                names.push_str(Decimal::of(place % topics.max(1)).as_str());
            }
            ends.push(names.len());
        }
        let begins = [0].into_iter().chain(ends.iter().copied());
        let topics = begins.zip(&ends).map(|(begin, end)| &names[begin..*end]);
        let tenant = self.tenant;
        let posts: Vec<_> =
            topics.zip(from..).map(|(topic, place)| Post { tenant, topic, ts_us: self.at_us(place) }).collect();
        hub.publish_all(&posts, now_ms, |index, number, data| {
            data.push_str(r#"{"at":"#);
            data.push_str(Decimal::of(posts[index].ts_us).as_str());
            data.push_str(r#","n":"#);
            data.push_str(Decimal::of(number).as_str());
            data.push_str(r#","data":"#);
            data.push_str(self.data);
            data.push('}');
        })
    }

    /// When the event of a place is due.
    fn at_us(&self, place: u64) -> u64 {
        self.from_us + (place as f64 * self.step_us) as u64
    }
}
