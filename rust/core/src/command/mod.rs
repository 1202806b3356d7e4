//! A command on its way through a gateway, when it asks for nothing special: its body is read, its frame and its answer are
//! written.
//!
//! Strategy: nearly all commands are plain: a name, arguments, maybe a key, a deadline or an environment. For those the
//! arguments and the result travel as the bytes they are, from the body into the frame and from the reply into the answer,
//! and nothing in between is made an object of. What is not certainly plain, or not certainly right, is none of this
//! module's: it says so, and whoever asked goes the general way, which has the words for what is wrong.
//!
//! - [`request`]: the body of the universal endpoint
//! - [`catalog`]: which commands may be plain, and who may call them
//! - [`frame`]: what goes to the daemon, as `daemon.proto` has it
//! - [`reply`]: what comes back from it
//! - [`answer`]: what goes to the client

pub mod answer;
pub mod catalog;
pub mod frame;
pub mod reply;
pub mod request;
