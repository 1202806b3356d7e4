//! The pure half of FLX API: values and `now` go in, decisions come out.
//!
//! What is absent here, on purpose: Python, sockets, threads, clocks, randomness, logging, environment look-ups and
//! `unsafe`. A shell passes the time and the seeds in, and carries the decision out.
//!
//! - [`json`]: one strict reader of JSON
//! - [`jwt`]: key sets and strict verification of compact JWS and of claims
//! - [`limit`]: true sliding windows in bounded memory
//! - [`admission`]: one decision per request out of the two above
//! - [`command`]: what is read and written of a command on its way
//! - [`meter`]: counting Singer messages as they pass
//! - [`hub`]: who hears what, and what each connection has still to get
//! - [`ws`]: WebSocket framing
//! - [`decimal`]: numbers in decimal
//! - [`error`]: why something was refused
#![deny(unsafe_code)]

pub mod admission;
pub mod command;
pub mod decimal;
pub mod error;
pub mod hub;
pub mod json;
pub mod jwt;
pub mod limit;
pub mod meter;
pub mod metrics;
pub mod ws;
