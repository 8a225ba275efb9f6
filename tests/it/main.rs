//! Everything that is tested from outside the crate, in one binary. Run by `scripts/test`.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod admin;
mod cli;
mod corpus;
mod document;
mod http;
mod identity;
mod key_sets;
mod keys;
mod layering;
mod observability;
mod outbound;
mod process;
mod rotation_queue;
mod store;
mod support;
