//! The tests of listeners over the other way out: each send by a system call of its own (`parts::limits`).
#![expect(clippy::duplicate_mod, reason = "each of the files is a test of its own as well")]

#[path = "listener.rs"]
mod listener;
#[path = "sessions.rs"]
mod sessions;
#[path = "streams.rs"]
mod streams;
