//! Topic patterns: a name, `*` for every topic, or a trailing `.*` for everything below a prefix.
//!
//! Rules: topics are dotted names and are compared byte by byte; a star anywhere else is an ordinary character, so a
//! pattern never means more than it says.

use std::iter;

use hashbrown::HashSet;

/// Whether a subscription to `pattern` includes `topic`.
///
/// `a.*` includes `a.b` and `a.b.c`, but neither `a` nor `a.` nor `ab.c`.
#[must_use]
pub fn matches(pattern: &str, topic: &str) -> bool {
    if pattern == "*" {
        return !topic.is_empty();
    }
    match pattern.strip_suffix(".*") {
        Some(prefix) if !prefix.is_empty() => {
            topic.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).is_some_and(|below| !below.is_empty())
        }
        _ => pattern == topic,
    }
}

/// Whether a pattern and a class of topics, `app.*`, may have one in common.
pub(super) fn may_match(pattern: &str, class: &str) -> bool {
    pattern == "*" || pattern.starts_with(class.trim_end_matches('*'))
}

/// What topics begin with, before a dot, that a pattern includes for its star; empty for all.
pub(super) fn wild_prefix(pattern: &str) -> Option<&str> {
    if pattern == "*" { Some("") } else { pattern.strip_suffix(".*").filter(|prefix| !prefix.is_empty()) }
}

/// What comes before the star of any pattern that includes a topic, the shortest first.
pub(super) fn beginnings(topic: &str) -> impl Iterator<Item = &str> {
    let dots = topic.match_indices('.').map(|(dot, _)| dot);
    let below = dots.filter(|dot| (1..topic.len() - 1).contains(dot));
    iter::once(0).take(usize::from(!topic.is_empty())).chain(below).map(|end| &topic[..end])
}

/// Patterns that many topics are compared with.
pub(super) struct Patterns<'a> {
    names: HashSet<&'a str>,
    /// What comes before their stars.
    prefixes: HashSet<&'a str>,
}

impl<'a> Patterns<'a> {
    pub(super) fn new(patterns: &'a [Box<str>]) -> Self {
        let prefixes = patterns.iter().filter_map(|pattern| wild_prefix(pattern)).collect();
        let names =
            patterns.iter().map(|pattern| &**pattern).filter(|pattern| wild_prefix(pattern).is_none()).collect();
        Self { names, prefixes }
    }

    /// Whether one of them includes a topic: a look for each dot of the topic, however many patterns there are.
    pub(super) fn include(&self, topic: &str) -> bool {
        self.names.contains(topic) || beginnings(topic).any(|beginning| self.prefixes.contains(beginning))
    }
}

/// Whether a topic lives in the gateway alone.
pub(super) fn is_local(topic: &str) -> bool {
    topic.starts_with("bench.")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Patterns, matches};

    #[test]
    fn exact_names_match_only_themselves() {
        assert!(matches("pipeline_events", "pipeline_events"));
        assert!(!matches("pipeline_events", "pipeline_event"));
        assert!(!matches("execution.1.log", "execution.1.log.x"));
        assert!(!matches("", "a"));
    }

    #[test]
    fn a_star_alone_matches_every_topic() {
        assert!(matches("*", "a"));
        assert!(matches("*", "a.b.c"));
        assert!(!matches("*", ""));
    }

    #[test]
    fn a_trailing_star_matches_what_lies_below() {
        assert!(matches("execution.*", "execution.1.log"));
        assert!(matches("execution.1.*", "execution.1.log"));
        for topic in ["execution", "execution.", "executions.1", "user.execution.1"] {
            assert!(!matches("execution.*", topic), "{topic}");
        }
    }

    #[test]
    fn a_star_elsewhere_is_an_ordinary_character() {
        for (pattern, topic) in [("*.log", "a.log"), ("a.*.log", "a.b.log"), ("a*", "ab"), (".*", ".a")] {
            assert!(!matches(pattern, topic), "{pattern}");
        }
    }
    proptest! {
        /// The twin asks each pattern.
        #[test]
        fn patterns_include_together_what_one_of_them_does(
            patterns in prop::collection::vec("[ab.*]{0,5}", 0..6),
            topics in prop::collection::vec("[ab.*]{0,6}", 1..30),
        ) {
            let patterns: Vec<Box<str>> = patterns.into_iter().map(Into::into).collect();
            let together = Patterns::new(&patterns);
            for topic in topics {
                let expected = patterns.iter().any(|pattern| matches(pattern, &topic));
                prop_assert_eq!(expected, together.include(&topic), "{:?}", (&patterns, topic));
            }
        }
    }
}
