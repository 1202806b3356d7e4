//! `Admission`: one call per request, no callback into Python.
//!
//! The way of a request: its head is walked once, its path led to a route, its windows and token are decided upon by the
//! core, what its body is said to be is judged. What comes out is either a whole answer (a refusal, or a page that the
//! principal was given before), ready to be sent, or an `Admitted`. Everything that is answered here is counted here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flx_core::admission::client::{Proxies, ProxyHeader};
use flx_core::admission::head::Head;
use flx_core::admission::path::{METHODS, Method, Routes};
use flx_core::admission::{self as core, Ask, Decision, Token, TokenRoom};
use flx_core::error::Reason;
use flx_core::limit::Rate;
use flx_core::limit::lease::LeaseBook;
use flx_core::metrics;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::admitted::{Admitted, Client, RequestId, values_of};
use crate::answer::{Answers, Face, Given, Template, WindowLines};
use crate::counters::{Counters, method_of};
use crate::either::{Core, of_either};
use crate::errors::unusable;
use crate::given::{GivenPolicy, GivenRoute, access_of, policy, toll};
use crate::judge::Verdict;
use crate::memory::Words;
use crate::principal::{Principal, Shell};
use crate::request::{Carried, Now, Value, Version, bearer, is_secure, kept, peer, raw_path, text, walk, without_port};
use crate::revocation::Revocations;
use crate::rsgi::Rsgi;
use crate::seen::{Request, seconds, told};
use crate::shared::SharedMemory;
use crate::token::TokenVerifier;
use crate::window::seed;

/// Of so many requests one tells how long its head and its decision took.
const TIMED: u64 = 16;

/// Why a handshake is refused, the policy and the seconds to wait, and what is known of it.
type Handshake = (Option<&'static str>, Option<(usize, u64)>, Admitted);

/// What a route is beside its methods.
pub(crate) struct RouteInfo {
    /// Its last value is a command's name.
    pub(crate) names_command: bool,
    /// The class of a method that stands for a command, by `Method as usize`.
    pub(crate) own: [Option<usize>; METHODS],
    pub(crate) not_allowed: Template,
}

/// Tokens, windows, paths and prepared answers of one gateway.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Admission {
    core: Mutex<Core>,
    pub(crate) revocations: Py<Revocations>,
    counters: Arc<metrics::Counters<Words>>,
    pub(crate) answers: Answers,
    /// The fleet's limits, when several hosts share them.
    leases: Option<Arc<Mutex<LeaseBook>>>,
    /// By reason.
    pub(crate) refusals: Vec<Option<Template>>,
    pub(crate) routes: Routes,
    pub(crate) infos: Vec<RouteInfo>,
    /// The class of each command, and the one of its second decision.
    pub(crate) commands: std::collections::HashMap<String, (usize, usize)>,
    pub(crate) hosts: Vec<Vec<u8>>,
    proxies: Proxies,
    pub(crate) body_limit: u64,
    pub(crate) id_prefix: String,
    next_id: AtomicU64,
    /// Whether pages are kept for a lane.
    is_on_lane: AtomicBool,
    /// How many requests were decided upon; a few lost ones do not matter.
    decided: AtomicU64,
}

#[pymethods]
impl Admission {
    #[new]
    #[pyo3(signature = (
        verifier, revocations, counters, *, routes, commands, policies, classes, refusals, limited, not_allowed, headers,
        hosts, proxies, proxy_header, body_limit, token_bytes=33_554_432, max_bytes=67_108_864, shared=None,
        leases=None, own=vec![]
    ))]
    #[expect(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        verifier: &TokenVerifier,
        revocations: Py<Revocations>,
        counters: &Counters,
        routes: Vec<GivenRoute>,
        commands: std::collections::HashMap<String, (usize, usize)>,
        policies: Vec<GivenPolicy>,
        classes: Vec<Vec<(usize, u32)>>,
        refusals: &Bound<'_, PyDict>,
        limited: Vec<Given<'_>>,
        not_allowed: Vec<Given<'_>>,
        headers: (Vec<Bound<'_, PyTuple>>, Bound<'_, PyTuple>, Bound<'_, PyTuple>),
        hosts: Vec<Vec<u8>>,
        proxies: Vec<String>,
        proxy_header: &str,
        body_limit: u64,
        token_bytes: usize,
        max_bytes: usize,
        shared: Option<&SharedMemory>,
        leases: Option<&crate::lease::LeaseBook>,
        own: Vec<(usize, String, usize)>,
    ) -> PyResult<Self> {
        let policies = policies.into_iter().map(policy).collect::<PyResult<Vec<_>>>()?;
        let windows = policies.iter().zip(limited);
        let windows =
            windows.map(|(it, given)| WindowLines::new(py, &it.name, it.limit, it.window_ms, Template::of(given)?));
        let windows = windows.collect::<PyResult<Vec<_>>>()?;
        let (common, content_security, transport_security) = headers;
        let answers = Answers::new(py, &common, &content_security, &transport_security, windows)?;
        let mut known = Routes::default();
        let mut infos = Vec::with_capacity(routes.len());
        for ((template, methods, kind), given) in routes.into_iter().zip(not_allowed) {
            let mut access = [None; METHODS];
            for (method, asks) in methods {
                access[Method::of(method.as_bytes()).0 as usize] = Some(access_of(&asks)?);
            }
            known.add(&template, access, kind == "dotted").map_err(unusable)?;
            let names_command = kind != "value";
            infos.push(RouteInfo { names_command, own: [None; METHODS], not_allowed: Template::of(given)? });
        }
        for (route, method, class) in own {
            let info = infos.get_mut(route).ok_or_else(|| PyValueError::new_err("own: there is no such route"))?;
            info.own[Method::of(method.as_bytes()).0 as usize] = Some(class);
        }
        let share = max_bytes / policies.len().max(1);
        let room = TokenRoom { verified: token_bytes, refused: token_bytes / 8 };
        let classes = classes.into_iter().map(|tolls| tolls.into_iter().map(toll).collect()).collect();
        let seed = shared.map_or_else(seed, |shared| Ok(shared.seed()))?;
        // Behind the counters, which are as long for all who share the memory.
        let place = shared.map(|shared| (shared, counters.words().next_multiple_of(8)));
        let words = |rate: Rate| rate.words(share);
        let core =
            Core::new(Arc::clone(&verifier.core), policies, classes, room, words, place, seed).map_err(unusable)?;
        let mut templates: Vec<Option<Template>> = Vec::new();
        for reason in Reason::ALL {
            let given: Option<Given<'_>> =
                refusals.get_item(reason.word())?.map(|given| given.extract()).transpose()?;
            templates.push(given.map(Template::of).transpose()?);
        }
        let header = match proxy_header {
            "x-forwarded-for" => ProxyHeader::ForwardedFor,
            "forwarded" => ProxyHeader::Forwarded,
            _ => return Err(PyValueError::new_err("proxies write x-forwarded-for or forwarded")),
        };
        Ok(Self {
            core: Mutex::new(core),
            leases: leases.map(crate::lease::LeaseBook::shared),
            revocations,
            counters: Arc::clone(counters.core()),
            answers,
            refusals: templates,
            routes: known,
            infos,
            commands,
            hosts,
            proxies: Proxies::new(proxies.iter().map(String::as_str), header).map_err(unusable)?,
            body_limit,
            id_prefix: id_prefix()?,
            next_id: AtomicU64::new(1),
            is_on_lane: AtomicBool::new(false),
            decided: AtomicU64::new(0),
        })
    }

    /// Decides about an HTTP request by its ASGI scope.
    #[pyo3(signature = (scope, pages=true, last=true, now_s=None, now_ns=None))]
    fn admit<'py>(
        slf: &Bound<'py, Self>,
        scope: &Bound<'py, PyDict>,
        pages: bool,
        last: bool,
        now_s: Option<f64>,
        now_ns: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = scope.py();
        let now = Now::of(now_s, now_ns)?;
        let method = text(scope, intern!(py, "method"))?;
        let path = raw_path(scope)?;
        let peer = peer(scope)?;
        let request = Request {
            method: method.to_str()?,
            path: path.as_ref(),
            peer: peer.as_ref().map_or(Ok(""), |peer| peer.to_str())?,
            secure: is_secure(scope, "https")?,
            pages,
            last,
        };
        let mut head = Head::default();
        walk(&mut head, scope)?;
        Self::decide(slf, Face::Asgi, &request, peer.as_ref(), &head, Version::In(scope), now)
    }

    /// Decides about an HTTP request by its RSGI scope: the three arguments of a whole answer, or what was admitted and its
    /// scope as ASGI has it; none of a POST of the routes `bare` and `many`, when there is a body of known length.
    #[pyo3(signature = (scope, pages=true, last=true, bare=None, many=None, now_s=None, now_ns=None))]
    #[expect(clippy::too_many_arguments, reason = "they have defaults in Python")]
    fn admit_rsgi<'py>(
        slf: &Bound<'py, Self>,
        scope: &Bound<'py, PyAny>,
        pages: bool,
        last: bool,
        bare: Option<usize>,
        many: Option<usize>,
        now_s: Option<f64>,
        now_ns: Option<u64>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let py = scope.py();
        let now = Now::of(now_s, now_ns)?;
        let (it, head) = Rsgi::read(scope)?;
        let request = Request {
            method: it.method.to_str()?,
            path: it.path()?,
            peer: without_port(it.client.to_str()?),
            secure: it.scheme == "https",
            pages,
            last,
        };
        let seen = Self::decide(slf, Face::Rsgi, &request, None, &head, Version::Of(scope), now)?;
        if seen.is_none() {
            return Ok(None);
        }
        match seen.cast_into::<PyTuple>() {
            Ok(answer) => Ok(Some(answer)),
            Err(admitted) => {
                let admitted = admitted.into_inner();
                // Any other method of the route (OPTIONS needs no token) is for the general way.
                let is_bare = it.method == "POST"
                    && admitted.cast::<Admitted>().is_ok_and(|it| {
                        let route = Some(it.get().route);
                        (route == bare || route == many) && it.get().length > Some(0)
                    });
                let scope = (!is_bare).then(|| it.asgi_scope(py)).transpose()?;
                (admitted, scope).into_pyobject(py).map(Some)
            }
        }
    }

    /// Decides about a WebSocket handshake: (why it is refused, the policy and the seconds to wait, what is known of it).
    /// `token` came another way than by `Authorization`; without `needs_token` none is looked at.
    #[pyo3(signature = (scope, route, token=None, needs_token=true, now_s=None, now_ns=None))]
    fn admit_handshake(
        slf: &Bound<'_, Self>,
        scope: &Bound<'_, PyDict>,
        route: usize,
        token: Option<&[u8]>,
        needs_token: bool,
        now_s: Option<f64>,
        now_ns: Option<u64>,
    ) -> PyResult<Handshake> {
        let (py, this) = (scope.py(), slf.get());
        let now = Now::of(now_s, now_ns)?;
        let mut head = Head::default();
        walk(&mut head, scope)?;
        let peer = peer(scope)?;
        let peer = peer.as_ref().map_or(Ok(""), |peer| peer.to_str())?;
        let token = match (needs_token, token) {
            (false, _) => Token::NotNeeded,
            (true, Some(token)) => Token::Presented(Ok(token)),
            (true, None) => Token::Presented(bearer(&head)),
        };
        let client = this.client(&head, peer);
        let decision = this.ask(route, token, client, &head, now);
        let refusal = decision.refusal.or((!head.host_is_sound(&this.hosts)).then_some(Reason::InvalidHost));
        if let Some(reason) = refusal {
            this.counters.refusal(reason as usize);
        }
        let limited = decision.quota.filter(|_| refusal == Some(Reason::RateLimited));
        let limited = limited.map(|quota| (quota.policy, seconds(quota.reset_ns).max(1)));
        let admitted = Admitted {
            by: slf.clone().unbind(),
            known: decision.known,
            route,
            values: PyTuple::empty(py).unbind(),
            request_id: this.request_id(&head),
            client: Client::Told(client.to_owned()),
            api_key: kept(head.api_key.as_ref()),
            idempotency_key: None,
            traceparent: None,
            length: Some(0),
            started_ns: now.ns,
            method: method_of("WEBSOCKET"),
            secure: is_secure(scope, "wss")?,
            told: decision.quota.map(told),
            face: Face::Asgi,
        };
        Ok((refusal.map(Reason::word), limited, admitted))
    }

    /// Decides about a command that became known later, in the body of an admitted request: why it is refused, by which
    /// policy and the seconds to wait, or nothing.
    #[pyo3(signature = (admitted, command, now_ns=None))]
    fn admit_command(
        &self,
        py: Python<'_>,
        admitted: &Admitted,
        command: &str,
        now_ns: Option<u64>,
    ) -> PyResult<Option<(&'static str, usize, u64)>> {
        let Some(class) = self.class_in_body(command) else { return Ok(None) };
        let decision = self.later(py, admitted, class, Now::of(Some(0.0), now_ns)?)?;
        self.count_shadows(&decision);
        let quota = decision.quota.unwrap_or(core::Quota { policy: 0, remaining: 0, reset_ns: 0 });
        Ok(decision.refusal.map(|reason| (reason.word(), quota.policy, seconds(quota.reset_ns).max(1))))
    }

    /// Who a token speaks for that came in a message: why it is not acceptable, or the principal.
    #[pyo3(signature = (token, now_s=None))]
    fn check_token(
        &self,
        py: Python<'_>,
        token: &[u8],
        now_s: Option<f64>,
    ) -> PyResult<(Option<&'static str>, Option<Py<Principal>>)> {
        let now = Now::of(now_s, None)?;
        let revocations = self.revocations.get();
        let found = of_either!(&mut *self.core(), it => it.who(token, now.s, revocations, |_| Shell::default()));
        match found {
            Ok(known) => Ok((None, Some(known.shell.object(py, &known.principal)?))),
            Err(reason) => {
                self.counters.refusal(reason as usize);
                Ok((Some(reason.word()), None))
            }
        }
    }

    /// Puts another key set in the place of the present one, at once.
    fn replace_keys(&self, verifier: &TokenVerifier) {
        self.core().tokens().replace_keys(Arc::clone(&verifier.core));
    }

    /// What is remembered of tokens: (answered from memory, verified, bytes, tokens).
    fn tokens(&self) -> (u64, u64, usize, usize) {
        let mut core = self.core();
        let tokens = core.tokens();
        let (bytes, count) = tokens.remembered();
        (tokens.hits, tokens.misses, bytes, count)
    }

    /// How many tokens named a key that is not known.
    #[getter]
    fn unknown_keys(&self) -> u64 {
        self.core().tokens().unknown_keys
    }

    /// How many keys verify tokens.
    #[getter]
    fn key_count(&self) -> usize {
        self.core().tokens().key_count()
    }
}

impl Admission {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_on_lane(&self) -> bool {
        self.is_on_lane.load(Ordering::Relaxed)
    }

    /// From now on pages are kept for a lane. It begins before the first request, so there are no others.
    pub(crate) fn serve_lane(&self) {
        self.is_on_lane.store(true, Ordering::Relaxed);
    }

    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    pub(crate) fn counters(&self) -> &metrics::Counters<Words> {
        &self.counters
    }

    pub(crate) fn id_prefix(&self) -> &str {
        &self.id_prefix
    }

    /// The class of a command that becomes known in a body.
    pub(crate) fn class_in_body(&self, command: &str) -> Option<usize> {
        self.commands.get(command).map(|&(_, class)| class)
    }

    /// The second decision about an admitted request, by what its command passes.
    pub(crate) fn later(
        &self,
        py: Python<'_>,
        admitted: &Admitted,
        class: usize,
        now: Now,
    ) -> PyResult<Decision<Shell>> {
        let ask = Ask {
            class,
            token: Token::NotNeeded,
            client: admitted.client.text(py)?,
            api_key: admitted.api_key.as_ref().map(|key| key.bytes(py)),
            revocations: self.revocations.get(),
            now_s: now.s,
            now_ns: now.ns,
        };
        let mut leases = self.leases.as_ref().map(|book| book.lock().unwrap_or_else(PoisonError::into_inner));
        let known = admitted.known.as_deref();
        Ok(of_either!(&mut *self.core(), it => it.admit_later(&ask, leases.as_deref_mut(), known)))
    }

    /// Charges what limits a command of an admitted request; false, and nothing charged, where it is refused: that is found again,
    /// and told, the general way.
    pub(crate) fn passes(&self, py: Python<'_>, admitted: &Admitted, class: Option<usize>, now: Now) -> PyResult<bool> {
        let Some(class) = class else { return Ok(true) };
        let decision = self.later(py, admitted, class, now)?;
        if decision.refusal.is_some() {
            return Ok(false);
        }
        self.count_shadows(&decision);
        Ok(true)
    }

    pub(crate) fn request_id<V: Carried>(&self, head: &Head<V>) -> RequestId {
        match head.sane_request_id() {
            Some(given) => given.id(),
            None => RequestId::New(self.next_id.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Whether this request's phases are timed: deciding takes hardly longer than reading a clock does.
    pub(crate) fn is_timed(&self) -> bool {
        let decided = self.decided.load(Ordering::Relaxed);
        self.decided.store(decided.wrapping_add(1), Ordering::Relaxed);
        decided.is_multiple_of(TIMED)
    }

    pub(crate) fn client<'a, V: AsRef<[u8]>>(&self, head: &'a Head<V>, peer: &'a str) -> &'a str {
        if !self.proxies.any() {
            return peer;
        }
        let lines = match self.proxies.header {
            ProxyHeader::ForwardedFor => &head.forwarded_for,
            ProxyHeader::Forwarded => &head.forwarded,
        };
        self.proxies.client(peer, lines.iter().map(AsRef::as_ref))
    }

    pub(crate) fn ask<V: AsRef<[u8]>>(
        &self,
        class: usize,
        token: Token<'_>,
        client: &str,
        head: &Head<V>,
        now: Now,
    ) -> Decision<Shell> {
        let revocations = self.revocations.get();
        let api_key = head.api_key.as_ref().map(AsRef::as_ref);
        let ask = Ask { class, token, client, api_key, revocations, now_s: now.s, now_ns: now.ns };
        let mut leases = self.leases.as_ref().map(|book| book.lock().unwrap_or_else(PoisonError::into_inner));
        let decision = of_either!(&mut *self.core(), it => it.admit(&ask, leases.as_deref_mut(), |_| Shell::default()));
        self.count_shadows(&decision);
        decision
    }

    pub(crate) fn count_shadows(&self, decision: &Decision<Shell>) {
        for &policy in &decision.shadow {
            self.counters.shadow(policy);
        }
    }

    fn decide<'py>(
        slf: &Bound<'py, Self>,
        face: Face,
        request: &Request<'_>,
        peer: Option<&Bound<'py, PyString>>,
        head: &Head<Value<'py>>,
        version: Version<'_, 'py>,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let (seen, verdict) = this.judge(request, head, now, || version.is_http1())?;
        let go = match verdict {
            Verdict::Wait => return Ok(py.None().into_bound(py)),
            Verdict::Refused { template, retry_after_s, close } => {
                let request_id = seen.request_id.text(py, &this.id_prefix);
                let parts = seen.parts(&request_id);
                let answer = this.answers.problem(py, face, template, &parts, retry_after_s, close, seen.is_head)?;
                return Ok(answer.into_any());
            }
            Verdict::Page(page) => {
                let request_id = seen.request_id.text(py, &this.id_prefix);
                let answer = this.answers.page(py, face, &page, &seen.parts(&request_id), seen.is_head)?;
                return Ok(answer.into_any());
            }
            Verdict::Go(go) => go,
        };
        let admitted = Admitted {
            by: slf.clone().unbind(),
            known: go.known,
            route: seen.route,
            values: values_of(py, &go.values)?,
            client: match peer {
                Some(text) if std::ptr::eq(go.client, request.peer) => Client::Peer(text.clone().unbind()),
                _ => Client::Told(go.client.to_owned()),
            },
            api_key: kept(head.api_key.as_ref()),
            idempotency_key: kept(head.idempotency_key.one()),
            traceparent: kept(head.traceparent.as_ref()),
            length: go.length,
            started_ns: now.ns,
            method: seen.method,
            secure: request.secure,
            told: seen.told,
            face,
            request_id: seen.request_id,
        };
        Ok(Bound::new(py, admitted)?.into_any())
    }
}

fn id_prefix() -> PyResult<String> {
    let (random, _) = seed()?;
    Ok(format!("{:012x}", random >> 16))
}
