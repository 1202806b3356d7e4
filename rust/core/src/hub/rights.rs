//! Who may hear which topic: topics belong to classes, a class needs a permission, and of `user.*` one hears only one's own.
//!
//! Rules of settings say more about topics of applications: the first that fits one says whether it may be heard.
//!
//! Rules: the shell translates roles into classes (permissions are its business); the tenant is compared elsewhere, since a
//! topic of another tenant is another topic.

use std::sync::Arc;

use super::topic;

/// Bytes of the longest pattern.
const MAX_PATTERN: usize = 256;

/// What topics begin with that tell who hears another one.
pub(super) const PRESENCE: &str = "presence.";

/// A class of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `pipeline_events`
    Pipeline,
    /// `execution_events` and `execution.{id}.…`
    Execution,
    /// `execution.{id}.log`
    Log,
    /// `schedule_events`
    Schedule,
    /// `system_events`
    System,
    /// `user.{subject}`: one's own, whatever the permissions.
    User,
    /// `app.…`, `bench.…`, and `presence.app.…`, which tells who hears a topic.
    App,
}

impl Class {
    /// The class of a topic, or of a pattern that begins with one; None when there is no such topic.
    #[must_use]
    pub fn of(topic: &str) -> Option<Self> {
        match topic {
            "pipeline_events" => return Some(Self::Pipeline),
            "execution_events" => return Some(Self::Execution),
            "schedule_events" => return Some(Self::Schedule),
            "system_events" => return Some(Self::System),
            _ => {}
        }
        let (head, rest) = topic.split_once('.')?;
        match head {
            _ if rest.is_empty() => None,
            "execution" if rest.strip_suffix(".log").is_some() => Some(Self::Log),
            "execution" => Some(Self::Execution),
            "user" => Some(Self::User),
            "app" | "bench" => Some(Self::App),
            "presence" if rest.starts_with("app.") || rest == "*" => Some(Self::App),
            _ => None,
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Why a subscription was refused; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is neither a topic nor a pattern.
    NotAPattern,
    /// There are no such topics.
    NoSuchTopic,
    /// Nothing that matches may be heard.
    Forbidden,
    /// The connection has as many subscriptions as it may.
    TooMany,
    /// `from` is not a position that we gave.
    NotAPosition,
    /// The connection is still catching up with an earlier subscription.
    Busy,
    /// There is no such connection.
    Unknown,
}

/// What one principal may hear.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    classes: u8,
    own: Box<str>,
    /// Patterns of `app.` topics in the order in which they count, and whether they are open.
    rules: Arc<[(Box<str>, bool)]>,
}

impl Rights {
    /// The rights of a subject whose permissions open these classes.
    #[must_use]
    pub fn new(subject: &str, classes: impl IntoIterator<Item = Class>) -> Self {
        let classes = classes.into_iter().fold(0, |all, class| all | class.bit());
        Self { classes, own: format!("user.{subject}").into(), rules: Arc::default() }
    }

    /// The same, as far as these rules leave the topics of applications open.
    #[must_use]
    pub fn under(self, rules: impl IntoIterator<Item = (Box<str>, bool)>) -> Self {
        Self { rules: rules.into_iter().collect(), ..self }
    }

    /// The same without what only this subject may hear, so that others with these rights are equal to it.
    pub(super) fn of_anybody(&self) -> Self {
        Self { classes: self.classes, own: "".into(), rules: Arc::clone(&self.rules) }
    }

    const fn has(&self, class: Class) -> bool {
        self.classes & class.bit() != 0
    }

    /// Whether events of this topic may be delivered.
    #[must_use]
    pub fn may_hear(&self, topic: &str) -> bool {
        match Class::of(topic) {
            Some(Class::User) => topic == &*self.own,
            Some(Class::App) => self.has(Class::App) && self.is_open(topic),
            Some(class) => self.has(class),
            None => false,
        }
    }

    /// Whose rights these are.
    pub(super) fn subject(&self) -> &str {
        self.own.strip_prefix("user.").unwrap_or_default()
    }

    fn opens_within(&self, pattern: &str) -> bool {
        let pattern = pattern.strip_prefix(PRESENCE).unwrap_or(pattern);
        let closed = self.rules.iter().position(|(rule, _)| topic::matches(rule, pattern));
        self.rules[..closed.unwrap_or(0)].iter().any(|(rule, is_open)| *is_open && topic::matches(pattern, rule))
    }

    fn is_open(&self, topic: &str) -> bool {
        // Who may hear a topic may know who else does.
        let topic = topic.strip_prefix(PRESENCE).unwrap_or(topic);
        let rule = self.rules.iter().find(|(pattern, _)| topic::matches(pattern, topic));
        rule.is_none_or(|(_, is_open)| *is_open)
    }

    /// Whether anything of a class of topics, `app.*` or `user.*`, could be lost to it.
    pub(super) fn may_lose(&self, class: &str) -> bool {
        Class::of(class).is_some_and(|class| class == Class::User || self.has(class))
    }

    /// Whether a principal may subscribe to a topic or a pattern.
    pub fn check(&self, pattern: &str) -> Result<(), Refused> {
        if !is_pattern(pattern) {
            return Err(Refused::NotAPattern);
        }
        let allowed = if pattern == "*" {
            self.classes != 0
        } else {
            let wild = pattern.ends_with(".*");
            match Class::of(pattern).ok_or(Refused::NoSuchTopic)? {
                Class::User => pattern == &*self.own || (wild && topic::matches(pattern, &self.own)),
                // Of a closed pattern nothing is heard, unless an earlier rule opens some of it.
                Class::App => self.has(Class::App) && (self.is_open(pattern) || (wild && self.opens_within(pattern))),
                class => self.has(class) || (wild && class == Class::Execution && self.has(Class::Log)),
            }
        };
        if allowed { Ok(()) } else { Err(Refused::Forbidden) }
    }
}

/// Dotted words of letters, digits and `_@+:-`; the last may be `*`.
fn is_pattern(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_@+:-".contains(&byte))
    };
    let (head, last) = text.rsplit_once('.').map_or((None, text), |(head, last)| (Some(head), last));
    text.len() <= MAX_PATTERN && (last == "*" || is_word(last)) && head.is_none_or(|head| head.split('.').all(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Class; 6] = [Class::Pipeline, Class::Execution, Class::Log, Class::Schedule, Class::System, Class::App];

    #[test]
    fn a_class_opens_its_topics_and_nothing_else() {
        let rights = Rights::new("ann", [Class::Execution, Class::App]);
        for topic in ["execution_events", "execution.1.status", "app.x", "bench.y", "user.ann"] {
            assert!(rights.may_hear(topic), "{topic}");
        }
        assert!(rights.may_hear("presence.app.x"));
        for topic in [
            "pipeline_events",
            "execution.1.log",
            "user.bert",
            "execution.",
            "app",
            "",
            "nothing.x",
            "presence.user.ann",
        ] {
            assert!(!rights.may_hear(topic), "{topic}");
        }
    }

    #[test]
    fn a_subscription_needs_something_to_hear() {
        let (all, none) = (Rights::new("a.b", ALL), Rights::new("a.b", []));
        for pattern in ["*", "execution.*", "execution.1.log", "user.a.b", "user.a.*", "user.*", "app.x.y"] {
            assert_eq!(Ok(()), all.check(pattern), "{pattern}");
        }
        for pattern in ["user.a.b", "user.*"] {
            assert_eq!(Ok(()), none.check(pattern), "{pattern}");
        }
        for pattern in ["*", "app.x", "execution.*", "user.c"] {
            assert_eq!(Err(Refused::Forbidden), none.check(pattern), "{pattern}");
        }
        assert_eq!(Err(Refused::Forbidden), all.check("user.c"));
        assert_eq!(Err(Refused::NoSuchTopic), all.check("nothing.x"));
        let only_logs = Rights::new("x", [Class::Log]);
        assert_eq!(Ok(()), only_logs.check("execution.*"));
        assert_eq!(Err(Refused::Forbidden), only_logs.check("execution.1.status"));
    }

    #[test]
    fn rules_close_topics_of_applications_the_first_that_fits_counts() {
        let rules = [("app.a.open.*", true), ("app.a.*", false), ("app.b", false), ("app.*", true)];
        let rules = rules.map(|(pattern, is_open)| (pattern.into(), is_open));
        let rights = Rights::new("ann", ALL).under(rules);
        for (topic, may) in
            [("app.a.x", false), ("app.a.open.x", true), ("app.b", false), ("app.b.x", true), ("app.c", true)]
        {
            assert_eq!(may, rights.may_hear(topic), "{topic}");
            assert_eq!(may, rights.check(topic).is_ok(), "{topic}");
            assert_eq!(may, rights.check(&format!("presence.{topic}")).is_ok(), "{topic}");
        }
        for (pattern, may) in
            [("app.a.*", true), ("app.a.x.*", false), ("app.*", true), ("*", true), ("app.a.open.*", true)]
        {
            assert_eq!(may, rights.check(pattern).is_ok(), "{pattern}");
        }
        assert!(!Rights::new("ann", []).under([("app.*".into(), true)]).may_hear("app.x"));
    }

    #[test]
    fn a_pattern_is_words_and_perhaps_a_last_star() {
        let all = Rights::new("ann", ALL);
        let long = format!("app.{}", "x".repeat(256));
        for pattern in ["", ".", "app.", ".app", "app..x", "app.*.x", "app.x*", "äpp.x", "app x", "app.x\n", &long] {
            assert_eq!(Err(Refused::NotAPattern), all.check(pattern), "{pattern}");
        }
    }
}
