//! Paths: refused or understood once, before anybody decides anything by them.
//!
//! Strategy: a path is checked byte by byte against what one spelling of a path may hold, then led through a tree of
//! segments to a template. Rules:
//! - `//`, a trailing `/`, `.` and `..`, encoded slashes, backslashes, dots, percent signs and control characters, anything
//!   that is not ASCII, and escapes that are not UTF-8 lead nowhere: a proxy in front may have read them another way;
//! - names are matched as they stand, byte by byte, so that there is one spelling of each path;
//! - a literal segment is preferred to a value, and there is no way back from it.

use std::borrow::Cow;

use hashbrown::HashMap;

use crate::error::Unusable;

/// Segments of a path that leads anywhere.
const MAX_SEGMENTS: usize = 11;
/// Values in one path.
pub const MAX_VALUES: usize = 4;

/// A request method that routes may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET; HEAD asks for the same without the body.
    Get,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
    /// OPTIONS, which every route answers.
    Options,
    /// Any other.
    Other,
}

impl Method {
    /// The method of a request line, and whether it is HEAD.
    #[must_use]
    pub fn of(text: &[u8]) -> (Self, bool) {
        let method = match text {
            b"GET" | b"HEAD" => Self::Get,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"PATCH" => Self::Patch,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            _ => Self::Other,
        };
        (method, text == b"HEAD")
    }
}

/// How many methods there are.
pub const METHODS: usize = 7;

/// What a method of a route asks of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing; windows by address apply.
    Public,
    /// Nothing, and nothing limits it.
    Probe,
    /// A principal.
    Token,
    /// A principal, or a ticket that somebody else redeems where there is no token.
    Ticket,
}

impl Access {
    /// Whether a token is looked at; there may be none.
    #[must_use]
    pub const fn asks(self, is_given: bool) -> bool {
        match self {
            Self::Public | Self::Probe => false,
            Self::Token => true,
            Self::Ticket => is_given,
        }
    }
}

/// One path template and its methods.
#[derive(Debug)]
pub struct Route {
    /// What each method asks for, by `Method as usize`; none: not allowed.
    pub access: [Option<Access>; METHODS],
    /// How many values its path holds.
    pub values: usize,
    /// The value of the path is a command's name, which holds a dot; without one the path is unknown.
    pub dotted: bool,
}

#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<[u8]>, usize>,
    value: Option<usize>,
    route: Option<usize>,
}

/// Every path a gateway serves.
#[derive(Debug)]
pub struct Routes {
    nodes: Vec<Node>,
    /// Paths without values lead straight to their route.
    exact: HashMap<Box<[u8]>, usize>,
    all: Vec<Route>,
}

/// Where a path leads.
#[derive(Debug, PartialEq)]
pub struct Found<'a> {
    /// Index of the route, in the order they were added.
    pub route: usize,
    /// The values in the path, decoded, in its order.
    pub values: Vec<Cow<'a, str>>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], exact: HashMap::new(), all: Vec::new() }
    }
}

impl Routes {
    /// Makes a template such as `/v1/things/{id}` known; says its index.
    pub fn add(&mut self, template: &str, access: [Option<Access>; METHODS], dotted: bool) -> Result<usize, Unusable> {
        let mut at = 0;
        let mut values = 0;
        if template != "/" {
            for segment in template.trim_start_matches('/').split('/') {
                at = if segment.starts_with('{') {
                    values += 1;
                    let known = self.nodes[at].value;
                    known.unwrap_or_else(|| self.grow(|nodes, new| nodes[at].value = Some(new)))
                } else {
                    let known = self.nodes[at].literal.get(segment.as_bytes()).copied();
                    known.unwrap_or_else(|| {
                        self.grow(|nodes, new| {
                            nodes[at].literal.insert(segment.as_bytes().into(), new);
                        })
                    })
                };
            }
        }
        if values > MAX_VALUES || self.nodes[at].route.is_some() {
            return Err(Unusable("routes have templates of their own with at most four values"));
        }
        let index = self.all.len();
        self.nodes[at].route = Some(index);
        if values == 0 {
            self.exact.insert(template.as_bytes().into(), index);
        }
        self.all.push(Route { access, values, dotted });
        Ok(index)
    }

    fn grow(&mut self, link: impl FnOnce(&mut Vec<Node>, usize)) -> usize {
        let new = self.nodes.len();
        self.nodes.push(Node::default());
        link(&mut self.nodes, new);
        new
    }

    /// The route of this index.
    #[must_use]
    pub fn route(&self, index: usize) -> &Route {
        &self.all[index]
    }

    /// How many routes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Where a path leads that may have a query behind it.
    #[must_use]
    pub fn find_before_query<'a>(&self, target: &'a [u8]) -> Option<Found<'a>> {
        // Hardly any has one, and no path that is known by heart.
        let known = self.find_by_heart(target);
        known.or_else(|| self.find(target.split(|&byte| byte == b'?').next().unwrap_or_default()))
    }

    /// Where `path` (without its query) leads; none when it is refused or unknown.
    #[must_use]
    pub fn find<'a>(&self, path: &'a [u8]) -> Option<Found<'a>> {
        self.find_by_heart(path).or_else(|| self.find_by_segments(path))
    }

    /// What was checked when it was added.
    fn find_by_heart<'a>(&self, path: &[u8]) -> Option<Found<'a>> {
        let &route = self.exact.get(path)?;
        Some(Found { route, values: Vec::new() })
    }

    fn find_by_segments<'a>(&self, path: &'a [u8]) -> Option<Found<'a>> {
        let path = sound(path)?;
        let mut at = 0;
        let mut values = Vec::new();
        for segment in path[1..].split('/') {
            let node = &self.nodes[at];
            at = if let Some(&next) = node.literal.get(segment.as_bytes()) {
                next
            } else {
                values.push(decoded(segment)?);
                node.value?
            };
        }
        let route = self.nodes[at].route?;
        if self.all[route].dotted && !values.last().is_some_and(|name| name.contains('.')) {
            return None;
        }
        Some(Found { route, values })
    }
}

/// A path as text, when there is nothing to suspect about it.
#[must_use]
pub fn sound(path: &[u8]) -> Option<&str> {
    if path == b"/" {
        return Some("/");
    }
    if path.first() != Some(&b'/') {
        return None;
    }
    let mut segments = 0;
    for segment in path[1..].split(|&byte| byte == b'/') {
        segments += 1;
        if segments > MAX_SEGMENTS || !is_sound(segment) {
            return None;
        }
    }
    std::str::from_utf8(path).ok()
}

fn is_sound(segment: &[u8]) -> bool {
    if segment.is_empty() || segment == b"." || segment == b".." {
        return false;
    }
    let mut rest = segment;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte == b'%' {
            let [high, low, tail @ ..] = rest else { return false };
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return false };
            // What could make a path another one: control characters, dot, slash, backslash, percent.
            if matches!(high << 4 | low, 0..=0x1f | 0x7f | b'.' | b'/' | b'\\' | b'%') {
                return false;
            }
            rest = tail;
        } else if !(byte.is_ascii_alphanumeric() || b"_.~!$&'()*+,=:@-".contains(byte)) {
            return false;
        }
    }
    true
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// A value in a sound path, its escapes decoded once; none when they are not UTF-8.
#[must_use]
pub fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte == b'%' {
            let [high, low, tail @ ..] = rest else { return None };
            bytes.push(digit(*high)? << 4 | digit(*low)?);
            rest = tail;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes() -> Routes {
        let mut routes = Routes::default();
        let mut get = [None; METHODS];
        get[Method::Get as usize] = Some(Access::Token);
        for template in ["/", "/v1/things", "/v1/things/{id}", "/v1/things/{id}/parts/{part}", "/v1/things/new"] {
            routes.add(template, get, false).unwrap();
        }
        routes.add("/{name}", get, true).unwrap();
        routes
    }

    fn led(path: &str) -> Option<(usize, Vec<String>)> {
        let routes = routes();
        routes.find(path.as_bytes()).map(|found| (found.route, found.values.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_path_leads_to_its_template_and_values() {
        for (path, route, values) in [
            ("/", 0, vec![]),
            ("/v1/things", 1, vec![]),
            ("/v1/things/7", 2, vec!["7"]),
            ("/v1/things/a%20b", 2, vec!["a b"]),
            ("/v1/things/%C3%A9", 2, vec!["é"]),
            ("/v1/things/7/parts/x", 3, vec!["7", "x"]),
            ("/v1/things/new", 4, vec![]),
            ("/system.echo", 5, vec!["system.echo"]),
        ] {
            assert_eq!(Some((route, values.iter().map(ToString::to_string).collect())), led(path), "{path}");
        }
    }

    #[test]
    fn what_is_in_doubt_leads_nowhere() {
        for path in [
            "",
            "x",
            "//",
            "/v1/",
            "/v1/things/",
            "//v1/things",
            "/v1//things",
            "/V1/things",
            "/v1/./things",
            "/v1/../v1/things",
            "/v1/things/.",
            "/v1/things/..",
            "/v1/things/%2e%2e",
            "/v1/things/%2E",
            "/v1/things/a%2fb",
            "/v1/things/a%5Cb",
            "/v1/things/a%00",
            "/v1/things/a%0a",
            "/v1/things/a%7f",
            "/v1/things/a%252f",
            "/v1/things/%",
            "/v1/things/%4",
            "/v1/things/%zz",
            "/v1/things/%ff",
            "/v1/things/a b",
            "/v1/things/é",
            "/v1/things;/..;/x",
            "/v1/things/a\\b",
            "/v1/things?x",
            "/%76%31/things",
            "/nodot",
            "/a/b/c/d/e/f/g/h/i/j/k/l",
        ] {
            assert_eq!(None, led(path), "{path}");
        }
    }

    #[test]
    fn templates_are_given_once() {
        let mut routes = routes();
        assert!(routes.add("/v1/things/{other}", [None; METHODS], false).is_err());
        assert!(routes.add("/a/{a}/{b}/{c}/{d}/{e}", [None; METHODS], false).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(path in proptest::collection::vec(any::<u8>(), 0..60)) {
            let routes = routes();
            let found = routes.find(&path);
            prop_assert!(found.is_none() || path.is_ascii());
        }

        #[test]
        fn a_query_leads_nowhere_else(
            path in prop_oneof![Just("/"), Just("/v1/things"), Just("/v1/things/a"), Just("/v1/none"), Just("")],
            query in "[?]?[a-z?/]{0,4}",
        ) {
            let (routes, target) = (routes(), [path, &query].concat());
            let end = target.find('?').unwrap_or(target.len());
            prop_assert_eq!(routes.find(&target.as_bytes()[..end]), routes.find_before_query(target.as_bytes()));
        }
    }
}
