//! What clients do: authenticate and exchange credentials for tokens.
//!
//! Owns the rules of RFC 6749 and its relatives; knows nothing of HTTP but the names and values of
//! parameters. Imports `registry` and everything right of it; builds nothing itself, `app` does.
//!
//! To add a grant: a file in [`grants`] with its `exchange`, a variant of
//! [`GrantType`](crate::domain::client::GrantType), and its line in [`token::TokenEndpoint::exchange`].

pub mod access_token;
pub mod client_auth;
pub mod error;
pub mod form;
pub mod grants;
pub mod introspection;
pub mod limits;
pub mod live_token;
pub mod metadata;
pub mod revocation;
pub mod token;
