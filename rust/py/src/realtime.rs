//! The realtime decisions that Python shells ask for.

use std::collections::BTreeMap;

use flx_core::ws::close::code;
use flx_realtime::handshake;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The subprotocol to answer with and the token of a `bearer.` entry.
#[pyfunction]
pub(crate) fn negotiate(protocol_header: Option<&str>) -> PyResult<(Option<&'static str>, Option<&[u8]>)> {
    let offer = handshake::negotiate(protocol_header)
        .map_err(|handshake::MalformedList| PyValueError::new_err("malformed list of subprotocols"))?;
    Ok((offer.subprotocol, offer.token.map(str::as_bytes)))
}

/// Close codes, and what they say.
#[pyfunction]
pub(crate) fn close_codes() -> BTreeMap<u16, &'static str> {
    code::REASONS.into()
}

/// Whether a handshake from `origin`, sent to `host`, may go on.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
pub(crate) fn origin_allowed(origin: Option<&str>, host: Option<&str>, allowed: Vec<String>) -> bool {
    handshake::origin_allowed(origin, host, &allowed)
}
