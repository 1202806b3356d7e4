//! What settings say of topics of applications, and what goes for those of the service: how much of one is remembered, and
//! whether it is a state topic.
//!
//! Rules: the first rule that fits a topic counts, also where it says nothing; topics of the service have rules of their own.

use super::latest::Latest;
use super::log::Bound;
use super::topic::matches;
use super::{Hub, Limits};

/// A rule for topics of applications.
#[derive(Clone, Debug, Default)]
pub struct TopicRule {
    /// A topic, or a beginning and `.*`.
    pub pattern: Box<str>,
    /// The member of an event's data that says what it is about: who is behind is given only the newest event of each value.
    pub latest: Option<Box<str>>,
    /// Bytes of one topic that are remembered, in place of [`Limits::topic_bytes`].
    pub history_bytes: Option<usize>,
    /// Events of one topic that are remembered at most.
    pub history_events: Option<usize>,
    /// For how long, in place of [`Limits::topic_ttl_ms`].
    pub history_ms: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct TopicRules(Vec<TopicRule>);

impl TopicRules {
    fn rule_of(&self, topic: &str) -> Option<&TopicRule> {
        self.0.iter().find(|rule| matches(&rule.pattern, topic))
    }

    /// The member of a topic's data that is its key.
    fn member_of(&self, topic: &str) -> Option<&str> {
        match topic {
            "pipeline_events" => return Some("pipeline"),
            "execution_events" => return Some("execution"),
            _ => {}
        }
        if let Some(of_one) = topic.strip_prefix("execution.") {
            let (_, what) = of_one.rsplit_once('.')?;
            return match what {
                "status" => Some("execution"),
                "metric" => Some("plugin"),
                _ => None,
            };
        }
        self.rule_of(topic)?.latest.as_deref()
    }

    /// What a topic that has no events yet remembers of keys.
    pub(super) fn latest_of(&self, topic: &str) -> Option<Box<Latest>> {
        self.member_of(topic).map(|member| Box::new(Latest::of(member)))
    }

    /// What is remembered of a topic at most.
    pub(super) fn bound_of(&self, topic: &str, limits: &Limits) -> Bound {
        let rule = self.rule_of(topic);
        Bound {
            bytes: rule.and_then(|rule| rule.history_bytes).unwrap_or(limits.topic_bytes),
            events: rule.and_then(|rule| rule.history_events).map_or(usize::MAX, |events| events.max(1)),
            ttl_ms: rule.and_then(|rule| rule.history_ms).unwrap_or(limits.topic_ttl_ms),
        }
    }
}

impl Hub {
    /// From now on these are the rules of topics of applications, in the order in which they count. Topics that there are
    /// already stay as they are.
    pub fn set_topic_rules(&mut self, rules: impl IntoIterator<Item = TopicRule>) {
        self.store.rules = TopicRules(rules.into_iter().collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_counts_and_the_service_has_its_own() {
        let rule = |pattern: &str, latest: Option<&str>, history_events| TopicRule {
            pattern: pattern.into(),
            latest: latest.map(Into::into),
            history_events,
            ..TopicRule::default()
        };
        let rules = TopicRules(vec![
            rule("app.plain", None, Some(0)),
            rule("app.*", Some("id"), None),
            rule("app.other", Some("never"), Some(7)),
        ]);
        for (topic, member) in [
            ("app.x", Some("id")),
            ("app.plain", None),
            ("app.other", Some("id")),
            ("user.ann", None),
            ("bench.x", None),
            ("pipeline_events", Some("pipeline")),
            ("execution_events", Some("execution")),
            ("execution.1.status", Some("execution")),
            ("execution.1.metric", Some("plugin")),
            ("execution.1.log", None),
            ("schedule_events", None),
            ("system_events", None),
        ] {
            assert_eq!(member, rules.member_of(topic), "{topic}");
        }
        let events = |topic| rules.bound_of(topic, &Limits::default()).events;
        assert_eq!((1, usize::MAX, usize::MAX), (events("app.plain"), events("app.other"), events("user.ann")));
    }
}
