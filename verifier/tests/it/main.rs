//! What a resource server may rely on, through the public interface only.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod attack;
mod claim;
mod inspect;
mod issuer;
mod json;
mod key_set;
mod property;
mod ring_provider;
mod vector;
