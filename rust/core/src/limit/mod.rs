//! Rate limits: at most `limit` units in any true window of `window_ms`, in bounded memory.
//!
//! [`window`] holds many keys under one limit; [`history`] is what it remembers about one key; [`lease`] is one limit for
//! many hosts.

mod history;
pub mod lease;
pub mod window;

pub use window::{Check, SlidingWindow};
