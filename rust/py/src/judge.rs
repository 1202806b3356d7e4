//! The decision about a request by its head, the same for every face and for the lane.
//!
//! Its order: the head is walked already; the path is led to a route, its windows and token are decided upon by the core, and
//! then what its body is said to be is judged. What is answered by this is counted here.

use std::borrow::Cow;
use std::sync::Arc;

use flx_core::admission::head::{Body, Head};
use flx_core::admission::path::{Access, Method};
use flx_core::admission::{Known, Token};
use flx_core::error::Reason;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::admission::Admission;
use crate::answer::Template;
use crate::counters::method_of;
use crate::principal::{Page, Shell};
use crate::request::{Carried, Now, bearer};
use crate::seen::{Request, Seen, told};

/// What becomes of a request by its head.
pub(crate) enum Verdict<'a> {
    /// It has to wait for a lease.
    Wait,
    /// It is answered with this, and how long to wait before the next try.
    Refused { template: &'a Template, retry_after_s: Option<u64>, close: bool },
    /// It is answered with what the principal was given before.
    Page(Arc<Page>),
    /// It may go on.
    Go(Go<'a>),
}

/// What is known of a request that may go on, beside what is seen of all.
pub(crate) struct Go<'a> {
    pub(crate) known: Option<Arc<Known<Shell>>>,
    /// The values in its path, decoded.
    pub(crate) values: Vec<Cow<'a, str>>,
    pub(crate) client: &'a str,
    /// Bytes of its body: 0 when there is none, None when it ends when it ends.
    pub(crate) length: Option<u64>,
}

impl Admission {
    /// Decides. `is_http1` is asked for the few requests of which it decides something: in HTTP/1 a connection can be closed,
    /// and a body announces itself.
    pub(crate) fn judge<'a, V: Carried>(
        &'a self,
        request: &Request<'a>,
        head: &'a Head<V>,
        now: Now,
        is_http1: impl Fn() -> PyResult<bool>,
    ) -> PyResult<(Seen, Verdict<'a>)> {
        let (method, is_head) = Method::of(request.method.as_bytes());
        let found = self.routes.find_before_query(request.path);
        let route = found.as_ref().map(|found| found.route);
        let access = route.and_then(|route| self.routes.route(route).access[method as usize]);
        let access = if method == Method::Options { Some(Access::Public) } else { access };
        let fault = if !head.host_is_sound(&self.hosts) {
            Some(Reason::InvalidHost)
        } else if found.is_none() {
            Some(Reason::NotFound)
        } else if access.is_none() {
            Some(Reason::MethodNotAllowed)
        } else {
            None
        };
        let received_ns = self.is_timed().then(|| Now::elapsed(now));
        if let Some(received_ns) = received_ns {
            self.counters().phase(0, received_ns);
        }
        let client = self.client(head, request.peer);
        let mut seen = Seen {
            route: route.unwrap_or(self.infos.len()),
            method: method_of(request.method),
            request_id: self.request_id(head),
            told: None,
            now,
            secure: request.secure,
            is_head,
            received_ns,
            two_lengths: head.has_two_lengths(),
        };
        let mut known = None;
        if fault.is_some() || access != Some(Access::Probe) {
            let token = match access {
                Some(it) if fault.is_none() && it.asks(head.authorization.is_given()) => Token::Presented(bearer(head)),
                _ => Token::NotNeeded,
            };
            let class = self.class(route, method, found.as_ref().map(|found| &*found.values).unwrap_or_default());
            let decision = self.ask(class, token, client, head, now);
            seen.told = decision.quota.map(told);
            match decision.refusal {
                Some(Reason::LeaseAwaited) if !request.last => return Ok((seen, Verdict::Wait)),
                Some(reason) => return self.refuse(seen, reason, is_http1),
                None => {}
            }
            known = decision.known;
        }
        if let Some(reason) = fault {
            return self.refuse(seen, reason, is_http1);
        }
        let bodiless = matches!(method, Method::Get | Method::Options);
        let streams = !bodiless && !is_http1()?;
        let length = match head.body(self.body_limit, streams) {
            Ok(Body::Streamed) if bodiless => Some(0),
            Ok(Body::Streamed) => None,
            Ok(Body::Absent) => Some(0),
            Ok(Body::Sized(length)) => Some(length),
            Err(reason) => return self.refuse(seen, reason, is_http1),
        };
        if let Some(known) = &known
            && request.pages
            && method == Method::Get
            && let Some(page) = known.shell.page(seen.route)
        {
            self.answered(&seen, page.status);
            return Ok((seen, Verdict::Page(page)));
        }
        if let Some(received_ns) = received_ns {
            self.counters().phase(1, Now::elapsed(now).saturating_sub(received_ns));
        }
        let values = found.map(|found| found.values).unwrap_or_default();
        Ok((seen, Verdict::Go(Go { known, values, client, length })))
    }

    /// The class of what a method of a route stands for, of the command that its path names, or of the route.
    fn class(&self, route: Option<usize>, method: Method, values: &[Cow<'_, str>]) -> usize {
        let Some(route) = route else { return self.infos.len() };
        if let Some(class) = self.infos[route].own[method as usize] {
            return class;
        }
        let command = self.infos[route].names_command.then(|| values.last()).flatten();
        command.and_then(|name| self.commands.get(&**name)).map_or(route, |&(class, _)| class)
    }

    fn refuse(
        &self,
        seen: Seen,
        reason: Reason,
        is_http1: impl Fn() -> PyResult<bool>,
    ) -> PyResult<(Seen, Verdict<'_>)> {
        let mut retry_after_s = None;
        let template = match (reason, seen.told) {
            (Reason::RateLimited, Some(told)) => {
                retry_after_s = Some(told.reset_s.max(1));
                Some(&self.answers.windows[told.policy].refusal)
            }
            (Reason::MethodNotAllowed, _) => self.infos.get(seen.route).map(|info| &info.not_allowed),
            _ => self.refusals[reason as usize].as_ref(),
        };
        let template = template.ok_or_else(|| PyValueError::new_err(format!("no answer for {}", reason.word())))?;
        self.counters().refusal(reason as usize);
        self.answered(&seen, template.status());
        // The rest of the body, or whatever follows on the connection, is not worth reading, or to be believed.
        let done_for = seen.two_lengths || matches!(reason, Reason::PayloadTooLarge | Reason::InvalidHost);
        let close = done_for && is_http1()?;
        Ok((seen, Verdict::Refused { template, retry_after_s, close }))
    }

    /// Counts what is answered by this.
    fn answered(&self, seen: &Seen, status: u16) {
        let elapsed = Now::elapsed(seen.now);
        if let Some(received_ns) = seen.received_ns {
            self.counters().phase(1, elapsed.saturating_sub(received_ns));
        }
        self.counters().request(seen.route, seen.method, status, elapsed);
    }
}
