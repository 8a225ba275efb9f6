//! The nouns of the service and the rules they obey by themselves.
//!
//! Owns ids, secrets, clients, resources, scopes, key records, refresh tokens, changes and their causes. Knows no
//! async, no database and no HTTP: whatever is here can be tested with plain values. Imports only
//! `clock` and `entropy`.
//!
//! To add a noun: a file of its own with private fields where a rule protects them, `parse` for
//! what comes from outside, and an error enum with one variant per way of being malformed.

pub mod assertion;
pub mod browser_session;
pub mod change;
pub mod claims;
pub mod client;
pub mod code;
pub mod consent;
pub(crate) mod digest;
pub mod event;
pub mod factor;
pub mod family;
pub mod id;
pub mod key;
pub mod logout_notice;
pub mod name;
pub mod node;
pub mod profile;
pub mod redirect;
pub mod refresh_token;
pub mod resource;
pub mod revocation;
pub mod scope;
pub mod secret;
pub mod session_family;
pub mod user;
pub mod words;
