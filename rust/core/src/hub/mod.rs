//! Topics of the hub. For now only the patterns a client may subscribe with.

pub mod topic;
