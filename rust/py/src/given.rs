//! What Python gives to make an `Admission`, as the core takes it; and the words and paths that Python asks the core about.

use flx_core::admission::path::{Access, decoded, sound};
use flx_core::admission::{By, Policy, Toll};
use flx_core::error::Reason;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// name, by, limit, `window_ms`, cost, shadow
pub(crate) type GivenPolicy = (String, String, u32, u64, u32, bool);
/// template, its methods and what they ask for, what its last value is: "value" or "command", at the root "dotted"
pub(crate) type GivenRoute = (String, Vec<(String, String)>, String);

pub(crate) fn toll((policy, cost): (usize, u32)) -> Toll {
    Toll { policy, cost }
}

pub(crate) fn policy(given: GivenPolicy) -> PyResult<Policy> {
    let (name, by, limit, window_ms, cost, shadow) = given;
    let by =
        By::named(&by).ok_or_else(|| PyValueError::new_err("a policy counts by ip, api_key, subject or tenant"))?;
    Ok(Policy { name, by, limit, window_ms, cost, shadow })
}

pub(crate) fn access_of(word: &str) -> PyResult<Access> {
    Ok(match word {
        "public" => Access::Public,
        "probe" => Access::Probe,
        "token" => Access::Token,
        "ticket" => Access::Ticket,
        _ => return Err(PyValueError::new_err("a route is public, probe, token or ticket")),
    })
}

/// The words of all refusals, in the order in which they are counted.
#[pyfunction]
pub(crate) fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.word()).collect()
}

/// The segments of a path, decoded; None when there is something to suspect about it.
#[pyfunction]
pub(crate) fn segments(path: &[u8]) -> Option<Vec<String>> {
    let path = sound(path)?;
    path[1..].split('/').map(|segment| Some(decoded(segment)?.into_owned())).collect()
}
