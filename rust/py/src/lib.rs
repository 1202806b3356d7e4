//! `flx_api._core`: what of the Rust side Python may call.
//!
//! Strategy: this crate translates arguments, calls a pure core, and maps the answer; it decides nothing. It is the only
//! crate that names Python; its only `unsafe` makes the mapping in `shared`. Each module exports what its noun needs; this
//! file lists them. Rules:
//! - nothing here blocks, sleeps or does I/O, so the interpreter is not detached (a hop costs more than the work), except to
//!   wait for the hub while a listener's thread has it;
//! - objects are frozen; state is atomic words, or lives behind a mutex that is held for one call of a core and never
//!   while a Python object is made;
//! - nothing of the package `flx_api` is imported before an error has to be raised: the meter shell loads this library by
//!   its path in a bare interpreter.
//!
//! The stub `python/flx_api/_core.pyi` documents every name and is checked against this binary.

mod admission;
mod admitted;
mod answer;
mod batch;
mod command;
mod counters;
mod decided;
mod descriptor;
mod either;
mod errors;
mod express;
mod given;
mod hub;
mod json;
mod judge;
mod lane;
mod lane_call;
mod lease;
mod listener;
mod memory;
mod meter;
mod principal;
mod process;
mod realtime;
mod request;
mod revocation;
mod ride;
mod roster;
mod rsgi;
mod seen;
mod series;
mod shared;
mod sheet;
mod token;
mod window;

use pyo3::prelude::*;

/// The native half of FLX API: tokens, windows, admission, metering, live events.
#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::admission::Admission;
    #[pymodule_export]
    use crate::admitted::Admitted;
    #[pymodule_export]
    use crate::batch::PlainBatch;
    #[pymodule_export]
    use crate::command::{PlainCommand, PlainCommands, batch_results, joined};
    #[pymodule_export]
    use crate::counters::Counters;
    #[pymodule_export]
    use crate::express::{Express, Settled};
    #[pymodule_export]
    use crate::given::{reasons, segments};
    #[pymodule_export]
    use crate::hub::Hub;
    #[pymodule_export]
    use crate::json::check_json;
    #[pymodule_export]
    use crate::lane::{Lane, check_certificate};
    #[pymodule_export]
    use crate::lane_call::{LaneCall, LaneSocket};
    #[pymodule_export]
    use crate::lease::LeaseBook;
    #[pymodule_export]
    use crate::listener::RealtimeListener;
    #[pymodule_export]
    use crate::meter::Meter;
    #[pymodule_export]
    use crate::principal::Principal;
    #[pymodule_export]
    use crate::process::{become_subreaper, build_profile, die_with_parent};
    #[pymodule_export]
    use crate::realtime::{close_codes, negotiate, origin_allowed};
    #[pymodule_export]
    use crate::revocation::Revocations;
    #[pymodule_export]
    use crate::ride::{Hall, Ride, Shortcut};
    #[pymodule_export]
    use crate::roster::Roster;
    #[pymodule_export]
    use crate::rsgi::asgi_scope;
    #[pymodule_export]
    use crate::shared::SharedMemory;
    #[pymodule_export]
    use crate::token::{TokenVerifier, verify_jws};
    #[pymodule_export]
    use crate::window::SlidingWindow;
}
